"""Bad input ends a run before any training, with an error that says what to change."""

from collections.abc import Iterator

import pytest

from tests.flower.app.splitapp.task import Job
from tests.flower.harness import Outcome, flower_in

pytestmark = pytest.mark.flower

# What the error of each job must name; device 1 is the one that is spoiled.
EXPECTED = {
    "other front": ("device 1", "(3, 1, 3, 3)", "(5, 1, 3, 3)"),
    "empty partition": ("device 1", "training set is empty"),
    "targets dtype": ("device 1", "targets", "float64"),
    "codec": ("server-only",),
    "release": ("9.9.9", "flwr-slfac"),
    "batch of one": ("BatchNorm", "batch"),
    "nan": ("device", "round 1", "step 0", "nan"),
}


def job_of(bad: str) -> Job:
    """Return the job that goes wrong in this way."""
    if bad == "batch of one":
        return Job(bad, batch_size=1, on_device_error="raise")
    return Job(bad, bad=bad, on_device_error="raise")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Run all jobs in one simulation, and a good one after them."""
    with flower_in(tmp_path_factory.mktemp("bad")) as flower:
        yield flower.simulate([*map(job_of, EXPECTED), Job("good")])


@pytest.mark.parametrize("bad", EXPECTED)
def test_bad_input_is_a_clear_error_before_training(outcome: Outcome, bad: str) -> None:
    """The error names what is wrong, and no model has changed."""
    result = outcome.results[bad]
    for words in EXPECTED[bad]:
        assert words.lower() in result["error"].lower()
    assert result["hash-by-round"] == outcome.results["good"]["hash-by-round"][:1]
    assert "hash" not in result


def test_a_bad_run_harms_none_that_follows(outcome: Outcome) -> None:
    """A good job after the bad ones completes."""
    assert "error" not in outcome.results["good"]
