"""Laws of the clock over drawn rounds, whoever is late, goes off or runs empty."""

import math
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.channel import Channel, Packets, Pipe, PlainLinks
from simulation.clock import (
    SERVER,
    Clock,
    Deadline,
    DeviceRound,
    DeviceStep,
    DrawnOnOff,
    RoundRecord,
    Server,
)

from tests.simulation.builders import profile

amounts = st.floats(0, 20) | st.just(0.0)
speeds = st.floats(0.5, 50) | st.just(math.inf)
steps = st.builds(
    DeviceStep, *[amounts] * 5, up_raw_bytes=amounts, down_raw_bytes=amounts
)
devices = st.lists(
    st.tuples(st.lists(steps, min_size=1, max_size=3), amounts, amounts),
    min_size=1,
    max_size=5,
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Clock, list[RoundRecord]]:
    """Draw devices, channel, deadlines, churn, batteries, and two rounds."""
    drawn = draw(devices)
    people = [
        profile(
            forward_flop_per_s=draw(speeds),
            backward_flop_per_s=draw(speeds),
            battery_j=draw(st.just(math.inf) | st.floats(5, 500)),
        )
        for _ in drawn
    ]
    rate = draw(speeds)
    own = PlainLinks((8 * rate,) * len(drawn))
    up, down = (draw(st.sampled_from([own, Pipe(8 * rate)])) for _ in range(2))
    clock = Clock(
        people,
        Channel(up, down, Packets(latency_s=draw(st.sampled_from([0.0, 0.1])))),
        Server(draw(speeds), draw(speeds), draw(speeds)),
        deadline=Deadline(
            draw(st.just(math.inf) | st.floats(1, 100)),
            draw(st.just(math.inf) | st.floats(1, 100)),
        ),
        availability=DrawnOnOff(
            20.0, [draw(st.sampled_from([1.0, 0.7])) for _ in drawn], seed=1
        ),
        waits=draw(st.sampled_from(["lockstep", "arrival"])),
        notice_s=draw(st.sampled_from([0.0, 3.0])),
    )
    scheme = draw(st.sampled_from(["sequential", "sflv1", "sflv2", "parallel"]))
    rounds = [
        RoundRecord(
            number,
            scheme,
            [DeviceRound(d, own, a, b) for d, (own, a, b) in enumerate(drawn)],
            draw(amounts),
        )
        for number in (1, 2)
    ]
    return clock, rounds


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_every_timeline_is_a_possible_one(
    world: tuple[Clock, list[RoundRecord]],
) -> None:
    """Nobody does two things at once, or goes back, or is neither done nor lost."""
    clock, rounds = world
    times = clock.run(rounds)
    for own, record in zip(times, rounds, strict=True):
        everyone = {device.device for device in record.devices}
        assert set(own.finished) | own.lost.keys() == everyone
        assert not set(own.finished) & own.lost.keys()
        spans = [s for s in clock.timeline.spans if s.server_round == own.server_round]
        for span in [*spans, *clock.timeline.waits]:
            if span.server_round == own.server_round:
                assert own.start_s <= span.start_s <= span.end_s <= own.end_s + 1e-9
        by_device = defaultdict(list)
        for span in spans:
            by_device[span.device].append(span)
        for mine in by_device.values():
            for first, second in pairwise(mine):
                assert second.start_s >= first.end_s
        for device in own.finished:
            assert all(span.complete for span in by_device[device])
            _require_all_bytes(record, device, by_device[device])
        # A deadline may find the server at work for one that has gone since.
        assert all(s.complete for s in by_device[SERVER]) or own.lost
    assert times[1].start_s == times[0].end_s


def _require_all_bytes(record: RoundRecord, device: int, spans: list) -> None:
    """Every byte that a finished device had to send and receive is in its spans."""
    own = next(d for d in record.devices if d.device == device)
    expected = own.model_down_bytes + own.model_up_bytes
    expected += sum(step.up_bytes + step.down_bytes for step in own.steps)
    assert sum(span.num_bytes for span in spans) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_batteries_bound_what_is_spent(world: tuple[Clock, list[RoundRecord]]) -> None:
    """No device goes on after the span in which its battery ran empty."""
    clock, rounds = world
    for times in clock.run(rounds):
        for device in times.finished:
            battery = clock.timeline.profiles[device].battery_j
            done = [
                s for s in clock.timeline.spans if s.server_round < times.server_round
            ]
            spent = sum(_joules(s) for s in done if s.device == device)
            assert spent < battery or not done


def _joules(span: object) -> float:
    """Return what a span of the drawn devices costs: 2 W to compute, 1 W on air."""
    watts = {"forward": 2, "backward": 2, "encode": 2, "decode": 2, "flight": 0}
    return watts.get(span.kind, 1) * span.seconds  # type: ignore[attr-defined]
