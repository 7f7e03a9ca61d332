"""Law 1 for whatever a grammar draws: models, losses, optimizers, schemes, sizes.

More draws, by hand: ``python -m tests.bench.any_model``.
"""

import logging

import pytest
import torch

from tests.split.drawn_runs import compare

DRAWS, PART = 200, 10
# What a user is told where no cut is possible; anything else is a fault of ours.
REFUSALS = (
    "Both halves would need the tensor",
    "torch.fx cannot trace",
    "Neither torch.fx nor torch.export can trace",
    "the model itself fails",
)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("first", range(0, DRAWS, PART))
def test_drawn_models_train_as_unsplit(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drawn model ends in the bits of unsplit training, or is refused by name."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.INFO)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcomes = {seed: compare(seed) for seed in range(first, first + PART)}
    finally:
        torch.set_num_threads(threads)
    refused = [s for s, why in outcomes.items() if why.startswith("refused: ")]
    wrong = {s: why for s, why in outcomes.items() if why and s not in refused}
    assert not wrong
    assert len(refused) <= PART // 2
    for seed in refused:
        assert outcomes[seed].removeprefix("refused: ").startswith(REFUSALS)
