"""Plans against closed forms, the clock, and exhaustive search."""

import math

import numpy as np
import pytest

from flwr_slfac import CutPoint, SettingError

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.__main__ import main
from simulation.channel import Channel, Packets, PlainLinks
from simulation.clock import Clock, DeviceRound, DeviceStep, RoundRecord, Server
from simulation.plan import plan
from simulation.plan_costs import Fleet, Question, round_costs
from simulation.plan_table import choice_table
from simulation.tiers import draw_profiles, shipped_tiers

from simulation.profiles import Profile
from tests.simulation.builders import links, profile

SHALLOW = CutPoint("shallow", (), (2, 100), 10, 90, 2000, 8000)
DEEP = CutPoint("deep", (), (2, 10), 80, 20, 9000, 1000)
CUTS = [SHALLOW, DEEP]


def fleet(num_devices: int) -> tuple[list[Profile], Channel]:
    """Return drawn devices on unlike links."""
    draws = np.random.default_rng(num_devices).uniform(1, 9, size=(num_devices, 3))
    people = [
        profile(
            forward_flop_per_s=1000 * a,
            backward_flop_per_s=900 * b,
            encode_byte_per_s=1e5,
            decode_byte_per_s=2e5,
        )
        for a, b, _ in draws
    ]
    plain = PlainLinks(tuple(1000 * draws[:, 2]))
    return people, Channel(plain, plain, Packets(latency_s=0.25, loss=0.5))


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_a_plan_tells_what_the_clock_tells(ratio: float) -> None:
    """A device alone takes in the clock, step by step, what its closed form says."""
    people, channel = fleet(1)
    server, question = Server(5e4, 3e3, 2e3), Question(batch_size=4, num_steps=3)
    costs = round_costs(Fleet.of(people, channel), CUTS, server, question, ratio, 0.0)
    for place, cut in enumerate(CUTS):
        raw = 4.0 * math.prod(cut.shape) / 2 * 4
        coded = raw if ratio > 1 else 0.0
        flops, back = cut.front_flops * 2.0, cut.back_flops * 2.0
        crossing, work = raw / ratio, (flops, 2 * flops, 3 * back)
        own = DeviceStep(crossing, crossing, *work, coded, coded)
        model = 4.0 * cut.front_params
        clock = Clock(people, channel, server)
        record = RoundRecord(1, "sflv1", [DeviceRound(0, [own] * 3, model, model)])
        assert clock.advance(record).seconds == pytest.approx(costs.round_s[0, place])
        energy = clock.timeline.energy[0].total_j
        assert energy == pytest.approx(costs.round_j[0, place])
        crossed = sum(span.num_bytes for span in clock.timeline.spans)
        assert crossed == pytest.approx(costs.round_bytes[0, place])


@pytest.mark.parametrize("budget_s", [30.0, 60.0, 200.0])
def test_a_plan_is_the_mildest_in_budget(budget_s: float) -> None:
    """Each device has the smallest ratio, then share, then time, that search finds."""
    people, channel = fleet(60)
    question = Question(8, 5, budget_s, (8.0, 1.0, 2.0), (0.5, 0.0))
    chosen = plan(CUTS, people, channel, Server(), question)
    all_devices = Fleet.of(people, channel)
    offers = {
        (ratio, share): round_costs(all_devices, CUTS, Server(), question, ratio, share)
        for ratio in (1.0, 2.0, 8.0)
        for share in (0.0, 0.5)
    }
    for device in range(60):
        found = [
            (setting, costs.round_s[device])
            for setting, costs in offers.items()
            if costs.round_s[device].min() <= budget_s
        ]
        assert chosen.in_budget[device] == bool(found)
        if found:
            setting, seconds = found[0]
            assert (chosen.ratios[device], chosen.shares[device]) == setting
        else:
            seconds = min((c.round_s[device] for c in offers.values()), key=min)
        assert chosen.round_s[device] == seconds.min()
        assert chosen.cuts[device] == seconds.argmin()
    settings = set(zip(chosen.ratios.tolist(), chosen.shares.tolist(), strict=True))
    assert len(settings) > 1


def test_memory_comes_before_time() -> None:
    """A device that holds one cut only gets it; one that holds none, the smallest."""
    # Shallow: 3 * 40 + 2 * 4 * 100 * 2 = 1720 bytes; deep: 3 * 320 + 2 * 4 * 10 * 2.
    sizes = (1e9, 1200.0, 10.0)
    people = [profile(memory_bytes=size) for size in sizes]
    question = Question(2, 1, compression_ratios=(1.0,), pruned_shares=(0.0,))
    chosen = plan(CUTS, people, links(3, 1000.0), Server(), question)
    assert chosen.cuts.tolist() == [0, 1, 1]
    assert chosen.fits.tolist() == [True, True, False]


def test_pruning_and_ratio_never_cost_time() -> None:
    """A larger share, or a larger ratio under an instant codec, is never slower."""
    people, channel = fleet(5)
    quick = [
        profile(encode_byte_per_s=math.inf, decode_byte_per_s=math.inf) for _ in people
    ]
    own = Fleet.of(quick, channel)
    question = Question(8, 5)

    def seconds(ratio: float, share: float) -> np.ndarray:
        return round_costs(own, CUTS, Server(1e5), question, ratio, share).round_s

    assert np.all(seconds(1.0, 0.5) < seconds(1.0, 0.0))
    near = Fleet.of(quick, links(5, math.inf))
    half = round_costs(near, CUTS, Server(), question, 1.0, 0.5).round_s
    whole = round_costs(near, CUTS, Server(), question, 1.0, 0.0).round_s
    assert np.allclose(half, whole / 4)
    assert np.all(seconds(8.0, 0.0) < seconds(1.0, 0.0))


def test_questions_and_plans_refuse_what_is_none() -> None:
    """Ratios below 1, shares of 1, no candidate, no cut, no device."""
    for changes, match in (
        ({"compression_ratios": (0.5,)}, ">= 1"),
        ({"compression_ratios": ()}, ">= 1"),
        ({"pruned_shares": (1.0,)}, r"\[0, 1\)"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"budget_s": math.nan}, "budget_s is nan"),
    ):
        with pytest.raises(SettingError, match=match):
            Question(**changes)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="0 cuts"):
        plan([], [profile()], links(1), Server(), Question())


def test_ten_thousand_devices_are_planned() -> None:
    """10,000 drawn devices and 20 cuts are planned, and their table adds up."""
    people = draw_profiles(
        [(tier, 1.0) for tier in shipped_tiers().values()], 10_000, 1
    )
    cuts = [
        CutPoint(f"c{n}", (), (1, 64 * (20 - n)), 1000 * n, 0, n * 10**6, 10**6)
        for n in range(20)
    ]
    chosen = plan(
        cuts, people, links(10_000, 1e6), Server(29e12), Question(budget_s=5.0)
    )
    rows = choice_table(chosen, cuts, people).splitlines()[1:]
    assert sum(int(row.split()[1]) for row in rows) == 10_000
    assert len(set(chosen.cuts)) > 1


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """The command plans a scenario that ships, and names what is wrong with another."""
    assert main(["plan", "quick"]) == 0
    shown = capsys.readouterr().out
    assert "quick: 10 devices, 3 cuts" in shown
    assert "layer2" in shown
    assert main(["plan", "no-such-scenario"]) == 1
    assert "ScenarioError: no-such-scenario" in capsys.readouterr().err
