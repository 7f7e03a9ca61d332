"""The stream in a real deployment: a SuperLink, SuperNodes, one message a session."""

from collections.abc import Iterator

import pytest

from tests.flower.app.splitapp.task import Fault, Job
from tests.flower.harness import Outcome, flower_in
from tests.flower.oracle import train_in_process

pytestmark = pytest.mark.flower

JOBS = (
    Job("plain", up="waterfill(nrmse=0.2)", down="waterfill(nrmse=0.5)"),
    Job("relay", scheme="sequential", configure=True, mods=["message_size_mod"]),
    Job("pipeline", pipeline_depth=1, up="waterfill(nrmse=0.2)"),
    Job("cuts", up="float16", cuts={"0": "front.0"}),
    # Device 1 is lost at step 1 of round 1, and takes part in round 2 again.
    Job("raises", faults=[Fault(1, 1, 1, "raise")]),
    Job("raises-ahead", faults=[Fault(1, 1, 1, "raise")], pipeline_depth=1),
    # Device 1 forgets what it learned of samples in round 2, and so does the server.
    Job(
        "samples",
        up="temporal(inner=waterfill(nrmse=0.2))",
        num_rounds=3,
        faults=[Fault(1, 2, 1, "raise")],
    ),
)
# What was sent ahead is trained on.
LOSSES = {"raises": {(1, 1): 1}, "raises-ahead": {(1, 1): 2}, "samples": {(1, 2): 1}}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Run all jobs in one deployment with two SuperNodes."""
    with flower_in(tmp_path_factory.mktemp("stream")) as flower:
        yield flower.deploy(JOBS)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_streams_end_in_the_weights_of_one_process(outcome: Outcome, job: Job) -> None:
    """By streams, which "auto" takes in deployment: the weights of one process."""
    assert outcome.status == "finished:completed", outcome.log[-3000:]
    expected = train_in_process(job, 2, losses=LOSSES.get(job.name))[0]
    assert outcome.results[job.name]["hash"] == expected


@pytest.mark.parametrize("job", JOBS[:2], ids=lambda job: job.name)
def test_a_device_is_built_once_for_all_rounds(outcome: Outcome, job: Job) -> None:
    """Training and evaluation of every round run in one process of each device."""
    built = [line.rsplit(maxsplit=2) for line in outcome.lines("built.txt")]
    mine = [(partition, pid) for name, partition, pid in built if name == job.name]
    assert sorted(partition for partition, _ in mine) == ["0", "1"]


def test_what_a_device_raises_is_told_and_its_session_goes_on(outcome: Outcome) -> None:
    """The report names it; it is built again in the same process for round 2."""
    first, second = outcome.results["raises"]["reports"]
    assert first["lost"] == {"1": "ValueError: the battery is flat"}
    assert not second["lost"]
    built = [line.split() for line in outcome.lines("built.txt")]
    pids = [
        pid for name, partition, pid in built if (name, partition) == ("raises", "1")
    ]
    assert len(pids) == 2
    assert len(set(pids)) == 1


def test_no_byte_is_left_out(outcome: Outcome) -> None:
    """Frames cross as in messages; models and control are counted beside them."""
    rows = outcome.results["plain"]["traffic"]
    directions = {row["direction"] for row in rows if row["num_bytes"] > 0}
    assert directions == {"up", "down", "targets", "model-up", "model-down", "control"}
    local = train_in_process(JOBS[0], 2)[1].traffic
    for own in local.rows(directions=("up", "down", "targets")):
        (theirs,) = (
            row["num_bytes"]
            for row in rows
            if (row["server_round"], row["device"], row["phase"], row["direction"])
            == (own.server_round, own.device, own.phase, own.direction)
        )
        assert theirs == own.num_bytes
