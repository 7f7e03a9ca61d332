"""Law 1 for whatever a grammar draws: models, losses, optimizers, schemes, sizes.

More draws, by hand: ``python -m tests.bench.any_model``.
"""

import logging

import pytest

from tests.split.drawn_runs import compare, compare_engines

DRAWS, PART = 200, 10
# What a user is told where no cut is possible; anything else is a fault of ours.
REFUSALS = (
    "Both halves would need the tensor",
    "torch.fx cannot trace",
    "Neither torch.fx nor torch.export can trace",
    "the model itself fails",
    "the back cannot give its input a gradient",
)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say nothing of what is tried."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.INFO)


@pytest.mark.parametrize("first", range(0, DRAWS, PART))
def test_drawn_models_train_as_unsplit(first: int) -> None:
    """A drawn model ends in the bits of unsplit training, or is refused by name."""
    outcomes = {seed: compare(seed) for seed in range(first, first + PART)}
    refused = [s for s, why in outcomes.items() if why.startswith("refused: ")]
    wrong = {s: why for s, why in outcomes.items() if why and s not in refused}
    assert not wrong
    assert len(refused) <= PART // 2
    for seed in refused:
        assert outcomes[seed].removeprefix("refused: ").startswith(REFUSALS)


@pytest.mark.parametrize("first", range(10_000, 10_060, PART))
def test_a_device_built_anew_for_each_step_trains_the_same(first: int) -> None:
    """What is stored between two messages is all that a drawn device needs."""
    outcomes = {s: compare_engines(s) for s in range(first, first + PART)}
    refusals = tuple(f"refused: {start}" for start in REFUSALS)
    assert not {s: o for s, o in outcomes.items() if o and not o.startswith(refusals)}
