"""The stream in a real deployment: a SuperLink, SuperNodes, one message a session."""

from collections.abc import Iterator

import pytest

from tests.flower.app.splitapp.task import Job
from tests.flower.harness import Outcome, flower_in
from tests.flower.oracle import train_in_process

pytestmark = pytest.mark.flower

JOBS = (
    Job("plain", up="waterfill(nrmse=0.2)", down="waterfill(nrmse=0.5)"),
    Job("relay", scheme="sequential", configure=True, start={"train_config": {}}),
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Run all jobs in one deployment with two SuperNodes."""
    with flower_in(tmp_path_factory.mktemp("stream")) as flower:
        yield flower.deploy(JOBS)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_streams_end_in_the_weights_of_one_process(outcome: Outcome, job: Job) -> None:
    """By streams, which "auto" takes in deployment: the weights of one process."""
    assert outcome.status == "finished:completed", outcome.log[-3000:]
    assert outcome.results[job.name]["hash"] == train_in_process(job, 2)[0]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_device_is_built_once_for_all_rounds(outcome: Outcome, job: Job) -> None:
    """Training and evaluation of every round run in one process of each device."""
    built = [line.rsplit(maxsplit=2) for line in outcome.lines("built.txt")]
    mine = [(partition, pid) for name, partition, pid in built if name == job.name]
    assert sorted(partition for partition, _ in mine) == ["0", "1"]
