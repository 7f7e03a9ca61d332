"""Law 6: a device may vanish at any step; the round goes on with the rest."""

from collections.abc import Iterator, Mapping

import pytest

from tests.flower.app.splitapp.task import Fault, Job
from tests.flower.harness import Outcome, flower_in
from tests.flower.oracle import train_in_process

pytestmark = pytest.mark.flower

Losses = Mapping[tuple[int, int], int]

# Device 1 is lost at step 1 of round 1, and takes part in round 2 again.
ONE_LOST: Losses = {(1, 1): 1}
JOBS = {
    "raises": Job("raises", faults=[Fault(1, 1, 1, "raise")]),
    "raises in sflv1": Job(
        "raises in sflv1", scheme="sflv1", faults=[Fault(1, 1, 1, "raise")]
    ),
    "raises in a relay": Job(
        "raises in a relay", scheme="sequential", faults=[Fault(1, 1, 1, "raise")]
    ),
    "two raise": Job(
        "two raise", faults=[Fault(0, 2, 0, "raise"), Fault(3, 2, 2, "raise")]
    ),
    "dies": Job("dies", faults=[Fault(1, 1, 1, "die")]),
    "dies with company": Job("dies with company", faults=[Fault(1, 1, 1, "die late")]),
    "hangs": Job(
        "hangs", num_rounds=1, step_timeout_s=6.0, faults=[Fault(1, 1, 1, "hang")]
    ),
}
# What the device sends instead of an answer, and what is said of it.
WRONG = {
    "garbage": "cannot be decoded",
    "no number": "not an integer",
    "an impostor": "partition id 0",
    "no record": "no 'split' record",
}
WRONG_AT_LAST = {"NaN": "NaN or infinity", "noise": "cannot be read"}
JOBS |= {kind: Job(kind, faults=[Fault(1, 1, 1, kind)]) for kind in WRONG}
# Without moments, which a device that took its last step keeps, whatever it answers.
JOBS |= {
    kind: Job(kind, keep_optimizer=False, faults=[Fault(1, 1, 2, kind)])
    for kind in WRONG_AT_LAST
}
JOBS["no end"] = Job("no end", faults=[Fault(1, 1, 0, "no end")])
LOSSES: dict[str, Losses] = dict.fromkeys(JOBS, ONE_LOST)
LOSSES["two raise"] = {(0, 2): 0, (3, 2): 2}
LOSSES["no end"] = {(1, 1): 0}
LOSSES |= {name: {(1, 1): 2} for name in WRONG_AT_LAST}
REASONS = {
    "raise": "the battery is flat",
    "die": "its process",
    "hang": "no answer",
    "no end": "max_steps",
    **WRONG,
    **WRONG_AT_LAST,
}
ALL_LOST = Job("all lost", faults=[Fault(device, 2, 1, "raise") for device in range(4)])


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Run all jobs in one simulation; the one in which all are lost comes first."""
    with flower_in(tmp_path_factory.mktemp("faults")) as flower:
        yield flower.simulate([ALL_LOST, *JOBS.values()], num_actors=4)


@pytest.mark.parametrize("name", JOBS)
def test_the_round_ends_as_without_the_lost_device(outcome: Outcome, name: str) -> None:
    """The weights are those of a run in which the device was gone from that step on."""
    result = outcome.results[name]
    assert "error" not in result, result["traceback"]
    assert result["finite"]
    assert result["hash"] == train_in_process(JOBS[name], losses=LOSSES[name])[0]
    assert result["hash"] != train_in_process(JOBS[name])[0]


@pytest.mark.parametrize("name", JOBS)
def test_the_report_says_who_was_lost_and_why(outcome: Outcome, name: str) -> None:
    """Each round's report names its lost devices, with a reason, and no others."""
    reports = {r["server_round"]: r for r in outcome.results[name]["reports"]}
    for server_round in range(1, JOBS[name].num_rounds + 1):
        lost = reports[server_round]["lost"]
        faults = [f for f in JOBS[name].faults if f.server_round == server_round]
        assert sorted(lost) == sorted(str(f.device) for f in faults)
        for fault in faults:
            kind = fault.kind if fault.kind in REASONS else fault.kind.split()[0]
            assert REASONS[kind] in lost[str(fault.device)]
            told = f"round {server_round}, step {fault.step}: lost device"
            assert told in outcome.log


def test_with_all_devices_lost_the_last_good_state_is_kept(outcome: Outcome) -> None:
    """A round that nobody ends is a clear error; the models are those before it."""
    result = outcome.results[ALL_LOST.name]
    assert result["error"].startswith("AllDevicesLostError")
    assert "round 2" in result["error"]
    assert result["kept-hash"] == result["hash-by-round"][-1]
    one_round = Job("one", num_rounds=1)
    assert result["kept-hash"] == train_in_process(one_round)[0]


def test_a_run_that_raised_is_a_failed_run(outcome: Outcome) -> None:
    """Flower's status of a run in which training failed is not completed."""
    assert outcome.status == "finished:failed"
