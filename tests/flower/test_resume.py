"""A ServerApp that is killed and started again ends in the bits of one that was not."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.flower.app.splitapp.task import Job
from tests.flower.harness import Outcome, flower_in

pytestmark = pytest.mark.flower

# Flower takes a minute to see that a ServerApp is dead; the moments within a save are
# tried one by one in tests/test_checkpoint.py.
MOMENTS = ("before the save", "in the save", "after the save")
JOB = Job(
    "whole",
    strategy="FedAdam",
    strategy_settings={"eta": 0.01},
    num_rounds=4,
    up="waterfill(nrmse=0.2)",
    down="feedback(inner=topk(fraction=0.1))",
    # What devices keep is gone with the run; the rest is to be the same.
    keep_optimizer=False,
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Outcome]]:
    """Kill one run after another, each of which begins by resuming the one before."""
    folder = tmp_path_factory.mktemp("killed")
    jobs = [JOB]
    runs = []
    with flower_in(folder) as flower:
        for moment in MOMENTS:
            saved = replace(JOB, checkpoint=str(folder / moment), resume=True)
            killed = replace(saved, name="killed", killed=moment)
            runs.append(flower.simulate([*jobs, killed]))
            jobs = [replace(saved, name=moment)]
        runs.append(flower.simulate(jobs))
        yield runs


def untimed(value: Any) -> Any:
    """Return results without what a clock says."""
    if isinstance(value, dict):
        names = ("seconds", "train_s", "compute_s", "train-seconds")
        return {k: untimed(v) for k, v in value.items() if k not in names}
    return [untimed(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_is_resumed_bit_for_bit(
    outcomes: list[Outcome], moment: str
) -> None:
    """Weights, traffic, reports and metrics are those of the run that went on."""
    number = MOMENTS.index(moment)
    whole = outcomes[0].results["whole"]
    assert "killed" not in outcomes[number].results
    assert outcomes[number].status == "finished:failed"
    resumed = outcomes[number + 1].results[moment]
    assert "error" not in resumed, resumed["traceback"]
    for name in ("hash", "kept-hash", "train-metrics", "evaluate-metrics"):
        assert untimed(resumed[name]) == untimed(whole[name])
    for name in ("central-metrics", "traffic", "reports", "costs"):
        assert untimed(resumed[name]) == untimed(whole[name])
    # Rounds are not run again, but for the one that was not saved.
    again = 2 if moment == "after the save" else 3
    assert resumed["hash-by-round"] == whole["hash-by-round"][-again:]
    assert f"after round {4 - again}" in outcomes[number + 1].log
