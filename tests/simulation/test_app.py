"""The app's parts on a grid in this process: what the clock sees, and whom it loses."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.results import DeviceRow
from simulation.tiers import PROFILES

from flwr_slfac import AllDevicesLostError
from tests.simulation.in_process import Ran, train

SCHEMES = ("sequential", "sflv1", "sflv2", "parallel")


def late_of(ran: Ran) -> list[set[int]]:
    """Return who was lost in each round, as the training says."""
    return [set(report.lost) for report in ran.strategy.reports]


@pytest.mark.parametrize(
    ("scheme", "training"),
    [
        *((scheme, "") for scheme in SCHEMES),
        ("parallel", 'lightweight = "prune=0.3 gradient_bits=8"'),
    ],
)
def test_what_the_clock_is_told_is_what_crossed(
    scheme: str, training: str, tmp_path: Path
) -> None:
    """The bytes of the virtual rounds are those of `Traffic`, device by device."""
    ran = train(tmp_path, scheme=scheme, training=training)
    traffic = ran.strategy.traffic
    assert [row.server_round for row in ran.virtual.rounds] == [1, 2]
    for row in ran.virtual.rounds:
        parts = (row.up_bytes, row.down_bytes, row.model_up_bytes, row.model_down_bytes)
        counted = traffic.num_bytes(server_round=row.server_round, phase="train")
        # A front that a node is asked about before the first round crosses, too.
        asked = counted - sum(parts)
        assert asked == 0 or (training and row.server_round == 1 and asked > 0)
        for direction in ("up", "down"):
            own = traffic.num_bytes(
                server_round=row.server_round, directions=[direction]
            )
            assert own <= getattr(row, f"{direction}_bytes") <= own + 4000
    assert ran.virtual.rounds[-1].end_s == ran.virtual.clock.now_s > 0


def test_pruned_fronts_take_less_virtual_time(tmp_path: Path) -> None:
    """A device that told that it prunes is charged the operations that it told."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "light").mkdir()
    plain = train(tmp_path / "plain", codec="identity")
    light = train(
        tmp_path / "light", codec="identity", training='lightweight = "prune=0.5"'
    )

    def forward_s(ran: Ran) -> float:
        spans = ran.virtual.clock.timeline.spans
        return sum(span.seconds for span in spans if span.kind == "forward")

    assert forward_s(light) < 0.8 * forward_s(plain)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_deadline_reaches_the_training(scheme: str, tmp_path: Path) -> None:
    """Who is late in the clock is lost in the training, at the same step."""
    (tmp_path / "free").mkdir()
    free = train(tmp_path / "free", scheme=scheme)
    assert late_of(free) == [set(), set()]
    limit_s = _between_slowest(free)
    ran = train(tmp_path, scheme=scheme, more=f"[deadline]\nstep_s = {limit_s}")
    late = late_of(ran)
    assert all(0 < len(lost) < 4 for lost in late)
    for report, times in zip(ran.strategy.reports, ran.virtual.times, strict=True):
        assert set(times.lost) == set(report.lost)
        for device, reason in report.lost.items():
            assert reason == times.lost[device]
            assert reason.startswith("late: no answer in")
    assert not _equal(ran.weights, free.weights)


def _between_slowest(ran: Ran) -> float:
    """Return a time for a step that the slowest device does not keep, others do."""
    spans = ran.virtual.clock.timeline.spans
    took = [
        sum(s.seconds for s in spans if (s.device, s.server_round, s.step) == (d, 1, 0))
        for d in range(4)
    ]
    return sum(sorted(took)[-2:]) / 2


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_deadline_that_all_keep_changes_no_bit(tmp_path: Path) -> None:
    """With a deadline that nobody misses weights and times are those without one."""
    (tmp_path / "free").mkdir()
    free = train(tmp_path / "free")
    ran = train(tmp_path, more="[deadline]\nstep_s = 1000.0")
    assert _equal(ran.weights, free.weights)
    assert ran.virtual.rounds == free.virtual.rounds
    assert ran.virtual.clock.timeline.spans == free.virtual.clock.timeline.spans


def test_a_round_that_nobody_ends_in_time_ends_the_run(tmp_path: Path) -> None:
    """If all are late there is nothing to go on with, and the error says so."""
    with pytest.raises(AllDevicesLostError, match=r"late: after 0\.001 s"):
        train(tmp_path, more="[deadline]\nround_s = 0.001")


def test_churn_reaches_the_training(tmp_path: Path) -> None:
    """A device that goes off within a round is lost in it, and comes back."""
    on_off = tmp_path / "on.csv"
    (tmp_path / "free").mkdir()
    free = train(tmp_path / "free")
    first, second = free.virtual.rounds
    off_s, on_s = first.end_s / 2, first.end_s + 1e-9
    lines = ["device,on_s,off_s", f"1,0,{off_s}", f"1,{on_s},{10 * second.end_s}"]
    on_off.write_text("\n".join(lines) + "\n")
    ran = train(tmp_path, more='[churn]\nfile = "on.csv"\nnotice_s = 5.0')
    assert late_of(ran) == [{1}, set()]
    assert ran.strategy.reports[0].lost[1] == "gone: it went off"


def test_devices_that_are_off_are_not_sampled(tmp_path: Path) -> None:
    """A device that is off when a round begins takes no part, and nobody waits."""
    (tmp_path / "on.csv").write_text("device,on_s,off_s\n2,1000000,2000000\n")
    ran = train(tmp_path, more='[churn]\nfile = "on.csv"')
    assert late_of(ran) == [set(), set()]
    rows: list[DeviceRow] = ran.virtual.devices()
    assert [row.num_rounds for row in rows] == [2, 2, 0, 2]


def test_an_empty_battery_ends_a_devices_run(tmp_path: Path) -> None:
    """A device whose battery runs out is lost in that round, and not sampled again."""
    (tmp_path / "free").mkdir()
    free = train(tmp_path / "free")
    spent = min(own.total_j for own in free.virtual.clock.timeline.energy.values())
    phone = (PROFILES / "phone.toml").read_text()
    own = phone.replace("55440.0", str(spent / 4)).replace('"phone"', '"old"')
    (tmp_path / "old.toml").write_text(own)
    tiers = "tiers = { old = 1.0, raspberry-pi-5 = 1.0 }"
    ran = train(tmp_path, devices=f'tier_files = ["old.toml"]\n{tiers}')
    old = {d for d, profile in enumerate(ran.virtual.profiles) if profile.tier == "old"}
    assert 0 < len(old) < 4
    assert late_of(ran) == [old, set()]
    reasons = set(ran.strategy.reports[0].lost.values())
    assert reasons == {"gone: its battery is empty"}
    rows = ran.virtual.devices()
    assert all(row.num_rounds == 1 for row in rows if row.device in old)


def test_the_fastest_are_sampled(tmp_path: Path) -> None:
    """Sampling by speed trains those whose links are fastest, all else being near."""
    ran = train(tmp_path, training='sampling = "speed"\ndevices_per_round = 2')
    rows = ran.virtual.devices()
    assert sorted(row.num_rounds for row in rows) == [0, 0, 2, 2]
    slow = [row.up_bit_per_s for row in rows if not row.num_rounds]
    fast = [row.up_bit_per_s for row in rows if row.num_rounds]
    assert max(slow) < min(fast)


def test_oort_is_told_losses_and_examples(tmp_path: Path) -> None:
    """What devices tell of their training is known when the next round is sampled."""
    ran = train(tmp_path, training='sampling = "oort"\ndevices_per_round = 3')
    known = ran.virtual.candidates
    seen = [c for c in known.values() if c.last_round]
    assert len(seen) >= 3
    for candidate in seen:
        assert candidate.num_examples == 16
        assert 0 < candidate.loss < 10
        assert candidate.round_s > 0
