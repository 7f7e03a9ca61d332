"""Scenario files: those that ship are read, others refused by file, line and key."""

import math
from pathlib import Path

import pytest

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.clock import DeviceRound, DrawnOnOff, OnOff, RoundRecord
from simulation.errors import ScenarioError
from simulation.scenario import SCENARIOS, Scenario, read_scenario
from simulation.world import (
    make_availability,
    make_channel,
    make_clock,
    make_cuts,
    make_profiles,
)

from tests.simulation.builders import step

SHIPPED = ["quick", "wireless-50", "lte", "churn", "thousand", "heterogeneous-cuts"]
LEAST = """name = "t"
seed = 3

[devices]
count = 2
tiers = { phone = 1.0 }

[channel]
kind = "plain"
up_bit_per_s = 1e6
down_bit_per_s = 2e6
"""


def read(folder: Path, text: str) -> Scenario:
    """Read a scenario of this text."""
    path = folder / "t.toml"
    path.write_text(text)
    return read_scenario(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scenarios_run_in_the_clock(name: str) -> None:
    """Each scenario that ships makes devices, channel, clock and a round of them."""
    scenario = read_scenario(SCENARIOS / f"{name}.toml")
    assert scenario.name == name
    profiles = make_profiles(scenario)
    clock = make_clock(scenario, profiles)
    sampled = range(scenario.training.devices_per_round or len(profiles))
    own = step(up_bytes=1e4, down_bytes=1e4, forward_flops=1e8, backward_flops=2e8)
    devices = [DeviceRound(d, [own], 1e3, 1e3) for d in sampled]
    times = clock.advance(RoundRecord(1, scenario.training.scheme, devices))
    assert times.seconds > 0
    assert len(times.finished) + len(times.lost) == len(devices)
    assert times.finished


def test_the_folder_holds_no_other() -> None:
    """Every scenario that ships is one that is tested."""
    assert {path.stem for path in SCENARIOS.glob("*.toml")} == set(SHIPPED)


def test_the_same_file_gives_the_same_world(tmp_path: Path) -> None:
    """A file read twice makes equal devices and links; another seed makes others."""
    first, again = (make_profiles(read(tmp_path, LEAST)) for _ in range(2))
    assert first == again
    assert make_profiles(read(tmp_path, LEAST.replace("= 3", "= 4"))) != first


def test_defaults_are_infinite_and_none(tmp_path: Path) -> None:
    """What is left out is the null form: no deadline, no churn, an instant server."""
    scenario = read(tmp_path, LEAST)
    assert scenario.deadline.step_s == scenario.churn.on_s == math.inf
    assert scenario.server.flop_per_s == math.inf
    assert scenario.plan.batch_size == scenario.training.batch_size


REFUSED = [
    ("seed = 3", "sed = 3", r"t.toml:2: scenario.sed is not known; close: seed"),
    ("seed = 3", "seed = -3", r"t.toml:2: scenario.seed is refused: seed is -3"),
    ("seed = 3", "seed = 1.5", r"t.toml:2: scenario.seed is 1.5; give a whole number"),
    (
        "seed = 3",
        "seed = true",
        r"t.toml:2: scenario.seed is True; give a whole number",
    ),
    ('name = "t"', "", r"t.toml: scenario.name is missing"),
    (
        "count = 2",
        'count = "2"',
        r"t.toml:5: devices.count is '2'; give a whole number",
    ),
    ("count = 2", "", r"t.toml:6: devices.tiers is refused: count and tiers"),
    ("count = 2", "number = 2", r"t.toml:5: devices.number is not known; known: count"),
    ("phone = 1.0", 'phone = "x"', r"t.toml:6: devices.tiers.phone is 'x'; give a num"),
    (
        "up_bit_per_s = 1e6",
        "up = 1e6",
        r"t.toml:10: channel.up has no unit; .*up_bit_per",
    ),
    (
        "up_bit_per_s = 1e6",
        "up_byte_per_s = 1e6",
        r"t.toml:10: channel.up_byte_per_s has another unit .*write up_bit_per_s",
    ),
    ("up_bit_per_s = 1e6", "up_bit_per_s = -1.0", r"t.toml:10: .*up_bit_per_s is -1.0"),
    ("up_bit_per_s = 1e6", "", r"t.toml:8: channel.up_bit_per_s is missing"),
    ("up_bit_per_s = 1e6", "up_bit_per_s = nan", r"t.toml:10: .*up_bit_per_s is nan"),
    ('"plain"', '"wire"', r"t.toml:9: channel.kind is 'wire'; use one of cell, plain"),
    ('"plain"', '"preset"', r"t.toml:10: channel.up_bit_per_s is not known"),
    ('"plain"', "[1]", r"t.toml:9: channel.kind is \[1\]; use one of cell"),
    (
        "up_bit_per_s = 1e6",
        "up_bit_per_s = 1e6\nspread = 1e300",
        r"t.toml:11: .*spread",
    ),
    ("[channel]", "[[channel]]", r"t.toml:8: channel is \[.*make it a table"),
    ("[channel]", "[chanel]", r"t.toml:8: chanel is no table; known: training"),
    ("[channel]", "[channel", r"t.toml:8: is no TOML"),
]
ADDED = [
    ("latency = 0.1", r"t.toml:12: channel.latency has no unit; write latency_s"),
    ("latency_s = -1", r"t.toml:12: channel.latency_s is refused: latency_s is -1"),
    ("packet_loss = 1.0", r"t.toml:12: channel.packet_loss is refused"),
    ("[deadline]\nstep_s = 0", r"t.toml:13: deadline.step_s is refused: step_s is 0"),
    ("[deadline]\nstep = 5", r"t.toml:13: deadline.step has no unit; write step_s"),
    ("[server]\nflop_per_s = -1", r"t.toml:13: server.flop_per_s is refused"),
    ('[training]\nscheme = "x"', r"t.toml:13: training.scheme is refused: scheme 'x'"),
    ("[plan]\nbatch_size = 3", r"t.toml:13: plan.batch_size belongs into \[training\]"),
    ("[plan]\ncompression_ratios = 3.0", r"t.toml:13: .*is 3.0; give a list"),
    ("[plan]\npruned_shares = [2.0]", r"t.toml:13: plan.pruned_shares is refused"),
    ('[model]\nbuild = "x"', r"t.toml:13: model.build is refused: build is 'x'"),
    ('[churn]\non_s = 1.0\nfile = "x"', r"t.toml:14: churn.file is refused"),
]


@pytest.mark.parametrize(("old", "new", "match"), REFUSED)
def test_a_wrong_line_is_named(tmp_path: Path, old: str, new: str, match: str) -> None:
    """Unknown keys, missing units, wrong types and values are told by line and key."""
    with pytest.raises(ScenarioError, match=match):
        read(tmp_path, LEAST.replace(old, new))


@pytest.mark.parametrize(("more", "match"), ADDED)
def test_a_wrong_table_is_named(tmp_path: Path, more: str, match: str) -> None:
    """The same for tables that may be left out."""
    with pytest.raises(ScenarioError, match=match):
        read(tmp_path, LEAST + more + "\n")


def test_what_a_scenario_names_is_found_or_refused(tmp_path: Path) -> None:
    """Unknown tiers, models and cuts, and missing links, are named."""
    with pytest.raises(ScenarioError, match=r"devices\.tiers\.watch is no tier"):
        make_profiles(read(tmp_path, LEAST.replace("phone", "watch")))
    with pytest.raises(ScenarioError, match=r"model\.build fails"):
        make_cuts(read(tmp_path, LEAST + '[model]\nbuild = "no.such:thing"\n'))
    with pytest.raises(
        ScenarioError, match=r"plan.cuts has 'layer9'; legal cuts: stem"
    ):
        make_cuts(read(tmp_path, LEAST + '[plan]\ncuts = ["layer9"]\n'))
    own = LEAST.partition("[channel]")[0] + '[channel]\nkind = "profiles"\n'
    with pytest.raises(ScenarioError, match=r"channel\.kind is 'profiles'"):
        make_clock(read(tmp_path, own))


def test_files_beside_a_scenario_are_read(tmp_path: Path) -> None:
    """Devices, traces and intervals are read from paths relative to the scenario."""
    (tmp_path / "d.csv").write_text(
        "tier,forward_flop_per_s,up_bit_per_s,down_bit_per_s\nphone,5e9,8e6,8e6\n"
    )
    (tmp_path / "r.csv").write_text("time_s,rate_bit_per_s\n0,8000\n1,16000\n")
    (tmp_path / "c.csv").write_text("device,on_s,off_s\n0,0,5\n")
    text = """name = "t"
[devices]
file = "d.csv"
[channel]
kind = "trace"
up_files = ["r.csv"]
down_files = ["r.csv"]
in_step = true
[churn]
file = "c.csv"
period_s = 10.0
"""
    scenario = read(tmp_path, text)
    profiles = make_profiles(scenario)
    assert [profile.forward_flop_per_s for profile in profiles] == [5e9]
    up = make_channel(scenario, profiles).up
    assert up.finish_s(0, 0.0, 2000) == 1.5  # type: ignore[union-attr]
    assert isinstance(make_availability(scenario, profiles), OnOff)
    drawn = read(tmp_path, LEAST + "[churn]\non_s = 60.0\n")
    profiles = make_profiles(drawn)
    assert isinstance(make_availability(drawn, profiles), DrawnOnOff)
    links = text.partition("[channel]")[0] + '[channel]\nkind = "profiles"\n'
    scenario = read(tmp_path, links)
    up = make_channel(scenario, make_profiles(scenario)).up
    assert up.finish_s(0, 0.0, 1e6) == 1.0  # type: ignore[union-attr]
