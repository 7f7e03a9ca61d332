"""The clock against timelines done by hand and closed forms."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flwr_slfac import SettingError

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.channel import (
    CellSettings,
    Channel,
    Packets,
    Pipe,
    PlainLinks,
    cell_channel,
)
from simulation.clock import (
    SERVER,
    Clock,
    Deadline,
    DeviceRound,
    DeviceStep,
    OnOff,
    RoundRecord,
    Server,
    StalledError,
    write_trace,
)

from tests.simulation.builders import links, profile, record, step

SCHEMES = ("sequential", "sflv1", "sflv2", "parallel")
LOCKSTEP = SCHEMES[1:]


def spans(clock: Clock, device: int) -> list[tuple[str, float, float]]:
    """Return kind, start and end of everything that a device did."""
    return [
        (span.kind, span.start_s, span.end_s)
        for span in clock.timeline.spans
        if span.device == device
    ]


def test_one_device_by_hand() -> None:
    """One device, one step: every span is where a hand puts it, whatever the scheme."""
    for scheme in SCHEMES:
        clock = Clock([profile()], links(1), Server(flop_per_s=4.0))
        times = clock.advance(record(scheme, [[step()]], model_bytes=3.0))
        assert spans(clock, 0) == [
            ("model-down", 0, 3),
            ("forward", 3, 4),
            ("up", 4, 6),
            ("down", 7, 8),
            ("backward", 8, 10),
            ("model-up", 10, 13),
        ]
        assert spans(clock, SERVER) == [("server", 6, 7)]
        assert (times.start_s, times.end_s, times.finished) == (0, 13, (0,))


@pytest.mark.parametrize("scheme", LOCKSTEP)
def test_two_unlike_devices_by_hand(scheme: str) -> None:
    """In lock-step the fast device waits for the slow one at every barrier."""
    fast, slow = profile(), profile(forward_flop_per_s=2.0)
    clock = Clock([fast, slow], links(2), Server(flop_per_s=8.0))
    times = clock.advance(record(scheme, [[step(), step()], [step()]]))
    # Forward 1 s and 4 s, up 2 s: arrivals at 3 and 6; the server takes 1 s for both.
    assert spans(clock, 0)[:4] == [
        ("forward", 0, 1),
        ("up", 1, 3),
        ("down", 7, 8),
        ("backward", 8, 10),
    ]
    assert spans(clock, 1) == [
        ("forward", 0, 4),
        ("up", 4, 6),
        ("down", 7, 8),
        ("backward", 8, 10),
    ]
    # Device 0 goes on alone: 1 s forward, 2 s up, 0.5 s of server, 1 s down, 2 s back.
    assert spans(clock, 0)[4:] == [
        ("forward", 10, 11),
        ("up", 11, 13),
        ("down", 13.5, 14.5),
        ("backward", 14.5, 16.5),
    ]
    server = spans(clock, SERVER)
    each = [("server", 6, 6.5), ("server", 6.5, 7)]
    assert server[:-1] == ([("server", 6, 7)] if scheme == "parallel" else each)
    assert times.end_s == 16.5
    barrier = [(w.device, w.awaited, w.start_s, w.end_s) for w in clock.timeline.waits]
    assert barrier[0] == (0, 1, 3, 6)
    assert clock.timeline.awaited_s()[1] == 3
    assert clock.timeline.awaited_s()[SERVER] == 1 + 1 + 0.5


def test_relay_by_hand() -> None:
    """In a relay a device begins when the one before has sent its front back."""
    clock = Clock([profile(), profile()], links(2), Server(flop_per_s=4.0))
    times = clock.advance(record("sequential", [[step()], [step()]], model_bytes=1.0))
    # One device: 1 + 1 + 2 + 1 + 1 + 2 + 1 = 9 s.
    assert spans(clock, 0)[-1] == ("model-up", 8, 9)
    assert spans(clock, 1)[0] == ("model-down", 9, 10)
    assert times.end_s == 18
    assert not [wait for wait in clock.timeline.waits if wait.awaited != SERVER]


def test_by_arrival_nobody_waits_for_the_slowest() -> None:
    """Under sflv1 and sflv2 by arrival a device waits for the server's queue only."""
    fast, slow = profile(), profile(forward_flop_per_s=2.0)
    for scheme in ("sflv1", "sflv2"):
        clock = Clock([fast, slow], links(2), Server(flop_per_s=1.0), waits="arrival")
        clock.advance(record(scheme, [[step()], [step()]]))
        # Device 0 arrives at 3 and is served to 7; device 1, there at 6, to 11.
        assert spans(clock, SERVER) == [("server", 3, 7), ("server", 7, 11)]
        assert spans(clock, 0)[2] == ("down", 7, 8)
        assert spans(clock, 1)[2] == ("down", 11, 12)
    parallel = Clock([fast, slow], links(2), Server(flop_per_s=1.0), waits="arrival")
    parallel.advance(record("parallel", [[step()], [step()]]))
    assert spans(parallel, SERVER) == [("server", 6, 14)]


def test_a_finished_device_holds_the_barrier_with_its_update() -> None:
    """As in `split.round`, others wait while the update of one arrives."""
    short = DeviceRound(0, [step()], 0.0, 40.0)
    long = DeviceRound(1, [step(), step()], 0.0, 0.0)
    clock = Clock([profile()] * 2, links(2))
    clock.advance(RoundRecord(1, "parallel", [short, long]))
    # Both: forward 1, up 2, down 1, back 2 = 6; update to 46, second smashed data at 9.
    assert spans(clock, 0)[-1] == ("model-up", 6, 46)
    assert spans(clock, 1)[4:6] == [("forward", 6, 7), ("up", 7, 9)]
    assert spans(clock, 1)[6] == ("down", 46, 47)
    waits = [(w.device, w.awaited, w.start_s, w.end_s) for w in clock.timeline.waits]
    assert (1, 0, 9, 46) in waits


def test_a_round_ends_with_aggregation() -> None:
    """The server averages once all have finished, and only if one has."""
    own = RoundRecord(1, "sflv1", [DeviceRound(0, [step()])], aggregate_flops=12.0)
    clock = Clock([profile()], links(1), Server(flop_per_s=4.0))
    assert clock.advance(own).end_s == 7 + 3
    assert spans(clock, SERVER)[-1] == ("aggregate", 7, 10)
    off = OnOff({0: [(5.0, 6.0)]})
    clock = Clock([profile()], links(1), Server(flop_per_s=4.0), availability=off)
    assert clock.advance(own).end_s == 0


def test_codecs_take_time_on_both_sides() -> None:
    """Device and server code by raw bytes, or as long as was measured."""
    coded = step(up_raw_bytes=32.0, down_raw_bytes=16.0)
    server = Server(encode_byte_per_s=8.0, decode_byte_per_s=16.0)
    clock = Clock([profile()], links(1), server)
    clock.advance(record("sflv1", [[coded]]))
    assert spans(clock, 0) == [
        ("forward", 0, 1),
        ("encode", 1, 3),
        ("up", 3, 5),
        ("down", 9, 10),
        ("decode", 10, 11),
        ("backward", 11, 13),
    ]
    assert spans(clock, SERVER) == [("server-decode", 5, 7), ("server-encode", 7, 9)]
    measured = step(up_raw_bytes=32.0, encode_s=0.5, decode_s=0.25)
    clock = Clock([profile()], links(1))
    clock.advance(record("sflv1", [[measured]]))
    assert ("encode", 1, 1.5) in spans(clock, 0)
    assert ("decode", 4.5, 4.75) in spans(clock, 0)


def test_a_shared_band_is_divided_while_several_send() -> None:
    """Two on one pipe get half each; when one is done the other gets all of it."""
    channel = Channel(Pipe(16.0), PlainLinks((math.inf,) * 2))
    clock = Clock([profile()] * 2, channel)
    steps = [[step(up_bytes=2.0)], [step(up_bytes=4.0)]]
    clock.advance(record("sflv1", steps))
    # 2 byte/s: both at 1 until device 0 has its 2 bytes, then device 1 at 2.
    assert spans(clock, 0)[1] == ("up", 1, 3)
    assert spans(clock, 1)[1] == ("up", 1, 4)


def test_a_late_sender_slows_the_first() -> None:
    """Who begins to send in the middle takes its part from then on, to the byte."""
    slow = profile(forward_flop_per_s=4.0)
    channel = Channel(Pipe(16.0), PlainLinks((math.inf,) * 2))
    clock = Clock([profile(), slow], channel)
    steps = [[step(up_bytes=4.0)], [step(up_bytes=4.0)]]
    clock.advance(record("sflv1", steps))
    # Device 0 alone from 1 to 2 (2 bytes), then 1 byte/s each: its last 2 end at 4;
    # device 1 has 2 bytes by then and 2 more at 2 byte/s.
    assert spans(clock, 0)[1] == ("up", 1, 4)
    assert spans(clock, 1)[1] == ("up", 2, 5)


def test_the_band_carries_no_more_than_it_can() -> None:
    """In a cell of 20 unlike devices no moment carries more than all rates together."""
    generator = np.random.default_rng(0)
    people = [profile(forward_flop_per_s=8 * 2**x) for x in generator.normal(size=20)]
    channel = Channel(Pipe(80.0), PlainLinks((math.inf,) * 20))
    clock = Clock(people, channel)
    amounts = generator.integers(1, 50, size=20)
    clock.advance(record("sflv1", [[step(up_bytes=float(n))] for n in amounts]))
    sent = [span for span in clock.timeline.spans if span.kind == "up"]
    busy = sorted((span.start_s, span.end_s) for span in sent)
    first, last = busy[0][0], max(end for _, end in busy)
    union, reach = 0.0, first
    for start, end in busy:
        union += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    assert union == pytest.approx(amounts.sum() / 10)
    assert last - first >= amounts.sum() / 10 - 1e-9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_infinite_speed_takes_no_time(scheme: str) -> None:
    """With infinite speeds and rates, and no latency, everything happens at once."""
    fast = profile(
        **dict.fromkeys(("forward_flop_per_s", "backward_flop_per_s"), math.inf),
        **dict.fromkeys(("encode_byte_per_s", "decode_byte_per_s"), math.inf),
    )
    for channel in (links(3, math.inf), Channel(Pipe(math.inf), Pipe(math.inf))):
        clock = Clock([fast] * 3, channel)
        steps = [[step(up_raw_bytes=8.0)] * 2] * 3
        assert clock.advance(record(scheme, steps, model_bytes=5.0)).seconds == 0
        assert all(e.total_j == 0 for e in clock.timeline.energy.values())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_devices", [1, 7])
def test_closed_forms(scheme: str, num_devices: int) -> None:
    """Unlike devices with links of their own take what a sum of maxima says."""
    generator = np.random.default_rng(num_devices)
    draw = generator.uniform(1, 2, size=(num_devices, 4))
    people = [
        profile(forward_flop_per_s=f, backward_flop_per_s=b) for f, b, _, _ in draw
    ]
    up, down = (PlainLinks(tuple(8 * rates)) for rates in draw[:, 2:].T)
    num_steps, packets = 5, Packets(latency_s=0.01)
    clock = Clock(people, Channel(up, down, packets), Server(flop_per_s=3.0))
    steps = [[step()] * num_steps] * num_devices
    seconds = clock.advance(record(scheme, steps, model_bytes=2.0)).seconds
    forward, back = 8 / draw[:, 0] + 2 / draw[:, 2], 1 / draw[:, 3] + 8 / draw[:, 1]
    begin, end = 2 / draw[:, 3], 2 / draw[:, 2]
    hop = 0.01
    if scheme == "sequential":
        each = begin + end + 2 * hop + num_steps * (forward + back + 2 * hop + 4 / 3)
        assert seconds == pytest.approx(each.sum())
        return
    barriers = (begin + forward).max() + (num_steps - 1) * (back + forward).max()
    barriers += (back + end).max() + 2 * hop * (num_steps + 1)
    assert seconds == pytest.approx(barriers + num_steps * 4 * num_devices / 3)


def test_energy_is_power_times_time() -> None:
    """Each device's joules are its spans' seconds times the power of their kind."""
    channel = cell_channel(CellSettings(), [23.0, 20.0], seed=1)
    people = [profile(transmit_dbm=23.0), profile(transmit_dbm=20.0)]
    clock = Clock(people, channel)
    coded = step(up_bytes=1e5, up_raw_bytes=32.0, down_raw_bytes=8.0)
    clock.run(record("sflv2", [[coded] * 3] * 2, 1e4, n) for n in (1, 2))
    for device, own in enumerate(people):
        seconds = clock.timeline.seconds_by_kind(device)
        compute = sum(seconds[k] for k in ("forward", "backward", "encode", "decode"))
        energy = clock.timeline.energy[device]
        assert energy.compute_j == pytest.approx(2.0 * compute)
        assert energy.compute_j == pytest.approx(2.0 * 6 * (1 + 2 + 2 + 0.5))
        radio = own.transmit_w * (seconds["up"] + seconds["model-up"])
        assert energy.transmit_j == pytest.approx(radio)
        radio = 1.0 * (seconds["down"] + seconds["model-down"])
        assert energy.receive_j == pytest.approx(radio)
        parts = energy.compute_j + energy.transmit_j + energy.receive_j
        assert energy.total_j == parts


def test_an_empty_battery_ends_a_device() -> None:
    """A device whose battery is empty is gone, in that round and in the next."""
    # Forward 2 J, up 2 J, down 1 J, backward 4 J: the 5th joule is spent on the way.
    clock = Clock([profile(battery_j=5.0), profile()], links(2))
    first, second = clock.run(record("sflv1", [[step()]] * 2, 0.0, n) for n in (1, 2))
    assert first.finished == second.finished == (1,)
    assert first.lost == {0: "gone: its battery is empty"}
    assert clock.timeline.battery_left_j(0) == 0
    assert second.lost == first.lost


def test_a_deadline_names_the_late() -> None:
    """Who is late at a step is lost for the round, and named; others go on."""
    slow = profile(forward_flop_per_s=1.0)
    clock = Clock([profile(), slow], links(2), deadline=Deadline(step_s=7.0))
    times = clock.advance(record("parallel", [[step()] * 2] * 2))
    assert times.finished == (0,)
    assert times.late == (1,)
    assert times.lost[1] == "late: no answer in 7.0 s at step 0"
    broken = [span for span in clock.timeline.spans if not span.complete]
    assert [(s.device, s.kind, s.end_s) for s in broken] == [(1, "forward", 7)]
    assert spans(clock, 0)[2] == ("down", 7, 8)
    assert (0, 1, 3, 7) in [
        (w.device, w.awaited, w.start_s, w.end_s) for w in clock.timeline.waits
    ]


def test_a_rounds_deadline_ends_it() -> None:
    """At a round's deadline the unfinished are late and the round is over."""
    for scheme in SCHEMES:
        clock = Clock([profile()] * 3, links(3), deadline=Deadline(round_s=7.0))
        times = clock.advance(record(scheme, [[step()], [step()] * 3, [step()]]))
        assert times.end_s == 7
        done = (0,) if scheme == "sequential" else (0, 2)
        assert times.finished == done
        assert set(times.late) == {0, 1, 2} - set(done)
        assert all(span.end_s <= 7 for span in clock.timeline.spans)


def test_who_goes_off_is_gone() -> None:
    """A device off at the start, or going off, is lost; the server notices later."""
    on = OnOff({0: [(5.0, 9.0)], 1: [(0.0, 2.0)]})
    clock = Clock([profile()] * 3, links(3), availability=on, notice_s=4.0)
    times = clock.advance(record("sflv1", [[step()]] * 3))
    assert times.lost == {0: "gone: it was off at the start", 1: "gone: it went off"}
    assert times.finished == (2,)
    # Device 1 leaves at 2, is missed at 6; device 2 was there at 3.
    assert spans(clock, 2)[2] == ("down", 6, 7)
    assert (2, 1, 3, 6) in [
        (w.device, w.awaited, w.start_s, w.end_s) for w in clock.timeline.waits
    ]


def test_a_round_without_devices_ends_at_once() -> None:
    """If every device is off the round takes no time and has finished nobody."""
    clock = Clock([profile()], links(1), availability=OnOff({0: [(5.0, 6.0)]}))
    times = clock.advance(record("parallel", [[step()]]))
    assert (times.seconds, times.finished) == (0, ())


def test_a_dead_link_is_named_or_cut_off() -> None:
    """A device that can never send stalls with its name, unless a deadline ends it."""
    far = CellSettings(
        distances_m=(50.0, 1e7), radius_m=1e8, rate="lte-cqi", fading="none"
    )
    channel = cell_channel(far, [10.0, 10.0], seed=0)
    people = [profile(transmit_dbm=10.0)] * 2
    clock = Clock(people, Channel(channel.up, PlainLinks((8.0, 8.0))))
    with pytest.raises(StalledError, match=r"round 1: devices \[1\]"):
        clock.advance(record("parallel", [[step()]] * 2))
    patient = Clock(
        people,
        Channel(channel.up, PlainLinks((8.0, 8.0))),
        deadline=Deadline(step_s=60.0),
    )
    assert patient.advance(record("parallel", [[step()]] * 2)).late == (1,)


def test_latency_and_loss_are_counted() -> None:
    """A message takes its latency; lost packets take time on air, not bytes."""
    packets = Packets(latency_s=0.5, loss=0.5)
    clock = Clock([profile()], links(1, packets=packets))
    times = clock.advance(record("sflv1", [[step()]]))
    # Model down and up are empty messages; up 2 bytes and down 1 byte are sent twice.
    assert times.seconds == 4 * 0.5 + 1 + 4 + 2 + 2
    crossed = sum(span.num_bytes for span in clock.timeline.spans)
    assert crossed == 3


def test_the_same_seed_gives_the_same_timeline() -> None:
    """With jitter, drawn loss and fading, equal seeds agree and others do not."""
    packets = Packets(jitter_s=0.1, loss=0.1, drawn=True)

    def seconds(seed: int) -> list[float]:
        channel = cell_channel(CellSettings(), [23.0] * 3, seed, packets)
        clock = Clock([profile(transmit_dbm=23.0)] * 3, channel, seed=seed)
        steps = [[step(up_bytes=1e6)] * 2] * 3
        rounds = (record("parallel", steps, 0.0, n) for n in (1, 2))
        return [times.seconds for times in clock.run(rounds)]

    assert seconds(1) == seconds(1)
    assert seconds(1) != seconds(2)
    assert len(set(seconds(1))) == 2


def test_perfetto_reads_the_trace(tmp_path: Path) -> None:
    """The JSON has every span and wait in microseconds on its device's thread."""
    clock = Clock([profile()] * 2, links(2), Server(flop_per_s=4.0))
    clock.advance(record("parallel", [[step()], [step(forward_flops=16.0)]]))
    write_trace(clock.timeline, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    full = [event for event in events if event["ph"] == "X"]
    assert len(full) == len(clock.timeline.spans) + len(clock.timeline.waits)
    assert [e["ts"] for e in full] == sorted(e["ts"] for e in full)
    up = next(e for e in full if e["name"] == "up" and e["tid"] == 0)
    assert (up["ts"], up["dur"], up["args"]["bytes"]) == (1e6, 2e6, 2.0)
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names == {SERVER: "server", 0: "0 test", 1: "1 test"}


def test_records_refuse_what_cannot_be() -> None:
    """Negative, infinite and missing amounts, doubled devices, unknown schemes."""
    with pytest.raises(SettingError, match="up_bytes is -1"):
        DeviceStep(-1.0, 0, 0, 0, 0)
    with pytest.raises(SettingError, match="server_flops is inf"):
        step(server_flops=math.inf)
    with pytest.raises(SettingError, match="no step"):
        DeviceRound(0, [])
    with pytest.raises(SettingError, match="each once"):
        RoundRecord(1, "sflv1", [DeviceRound(0, [step()])] * 2)
    with pytest.raises(SettingError, match="'splitfed' is not known"):
        record("splitfed", [[step()]])
    with pytest.raises(SettingError, match="device 1 has no profile"):
        Clock([profile()], links(1)).advance(record("sflv1", [[step()]] * 2))
