"""Devices drawn by seed, read from files, refused by line."""

import math
from pathlib import Path

import numpy as np
import pytest
from simulation.errors import ScenarioError
from simulation.measured import read_devices, read_fedscale
from simulation.tiers import draw_profiles, read_tier, shipped_tiers

from flwr_slfac import SettingError

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.profiles import FIGURES, dynamic_power_w
from tests.simulation.builders import profile

TIERS = shipped_tiers()
FIGURE = '[{name}]\nvalue = 1.0\nsource = "a test"\n'


def write_tier(path: Path, without: str = "", extra: str = "") -> Path:
    """Write a whole tier, less one figure, more of something."""
    names = [n for n in FIGURES[:10] if n != without]
    text = 'name = "t"\n' + "".join(FIGURE.format(name=name) for name in names) + extra
    path.write_text(text)
    return path


def test_the_tiers_of_the_literature_ship() -> None:
    """Seven tiers ship; every figure has a source or says that it is an estimate."""
    names = "microcontroller phone raspberry-pi-4 raspberry-pi-5 jetson-nano"
    assert {*names.split(), "jetson-orin-nx", "laptop"} == TIERS.keys()
    for tier in TIERS.values():
        assert all(figure.source.strip() for figure in tier.figures.values())
    speeds = [TIERS[name].median().forward_flop_per_s for name in names.split()]
    assert speeds[0] < speeds[2] < speeds[3] < speeds[4]


def test_draws_are_log_normal_about_the_median() -> None:
    """Many phones have the median and the spread of the tier, and one speed for all."""
    phones = [TIERS["phone"].draw(1, device) for device in range(3000)]
    figure = TIERS["phone"].figures["forward_flop_per_s"]
    speeds = np.array([phone.forward_flop_per_s for phone in phones])
    assert np.median(speeds) == pytest.approx(figure.value, rel=0.07)
    assert np.std(np.log(speeds)) == pytest.approx(figure.spread, rel=0.05)
    ratios = {round(p.backward_flop_per_s / p.forward_flop_per_s, 9) for p in phones}
    assert len(ratios) == 1


def test_a_device_is_a_function_of_seed_and_number() -> None:
    """Device 3 is the same whether 4 or 400 are drawn, and another for another seed."""
    mix = [(TIERS["phone"], 3.0), (TIERS["laptop"], 1.0)]
    few, many = draw_profiles(mix, 4, 5), draw_profiles(mix, 400, 5)
    assert few == many[:4]
    assert draw_profiles(mix, 4, 6) != few
    share = sum(p.tier == "laptop" for p in many) / 400
    assert share == pytest.approx(0.25, abs=0.06)


def test_power_is_told_in_three_ways(tmp_path: Path) -> None:
    """Watts, kappa with clock, or joules per FLOP: exactly one of them."""
    path = tmp_path / "t.toml"
    assert read_tier(write_tier(path)).median().compute_w == 1
    kappa = FIGURE.format(name="kappa_w_per_hz3") + FIGURE.format(name="clock_hz")
    assert read_tier(write_tier(path, "compute_w", kappa)).median().compute_w == 1
    joules = FIGURE.format(name="compute_j_per_flop").replace("1.0", "0.5")
    assert read_tier(write_tier(path, "compute_w", joules)).median().compute_w == 0.5
    for without, extra in (
        ("", joules),
        ("compute_w", ""),
        ("compute_w", kappa.partition("[clock")[0]),
    ):
        with pytest.raises(ScenarioError, match="compute_w must be given once"):
            read_tier(write_tier(path, without, extra))
    huge = kappa.replace("1.0", "1e200")
    with pytest.raises(ScenarioError, match="compute_w is inf"):
        read_tier(write_tier(path, "compute_w", huge))
    assert dynamic_power_w(1e-28, 1e9) == pytest.approx(0.1)


def test_tiers_are_refused_by_line(tmp_path: Path) -> None:
    """Missing, unknown, sourceless and impossible figures are named by line."""
    path = tmp_path / "t.toml"
    for without, extra, match in (
        ("battery_j", "", "battery_j is missing"),
        ("", FIGURE.format(name="colour"), r"t.toml:32: colour is not one of"),
        ("battery_j", "[battery_j]\nvalue = 1.0\n", ":29: battery_j must be a table"),
        ("battery_j", '[battery_j]\nvalue = -1.0\nsource = "x"\n', "battery_j is -1.0"),
        ("battery_j", '[battery_j]\nvalue = "1"\nsource = "x"\n', "give a number"),
        ("battery_j", '[battery_j]\nvalue = 1.0\nsource = " "\n', "has no source"),
        (
            "availability",
            '[availability]\nvalue = 0.5\nspread = 0.1\nsource = "x"\n',
            "takes no spread",
        ),
        ("", "[broken\n", "is no TOML"),
    ):
        with pytest.raises(ScenarioError, match=match):
            read_tier(write_tier(path, without, extra))


def test_profiles_refuse_impossible_devices() -> None:
    """NaN, 0 and negative speeds, shares beyond 1, infinite power."""
    for changes in (
        {"forward_flop_per_s": math.nan},
        {"backward_flop_per_s": 0.0},
        {"availability": 1.5},
        {"availability": 0.0},
        {"compute_w": math.inf},
        {"transmit_dbm": math.nan},
        {"receive_w": -1.0},
    ):
        with pytest.raises(SettingError, match=next(iter(changes))):
            profile(**changes)
    assert profile(transmit_dbm=20.0).transmit_w == pytest.approx(0.1)


def test_measured_devices_are_read(tmp_path: Path) -> None:
    """A row gives a device; what has no column is its tier's median."""
    path = tmp_path / "devices.csv"
    path.write_text(
        "tier,forward_flop_per_s,up_bit_per_s\nphone,5e9,1e6\nphone,6e9,2e6\n"
    )
    first, second = read_devices(path, TIERS)
    assert (first.forward_flop_per_s, second.up_bit_per_s) == (5e9, 2e6)
    assert first.battery_j == TIERS["phone"].median().battery_j


def test_measured_devices_are_refused_by_line(tmp_path: Path) -> None:
    """Unknown columns, words for numbers, short rows and unknown tiers are named."""
    path = tmp_path / "devices.csv"
    for text, match in (
        ("tier,speed\nphone,1\n", ":1: speed is no column"),
        ("tier,forward_flop_per_s\nphone,fast\n", ":2: forward_flop_per_s is 'fast'"),
        ("tier,forward_flop_per_s\nphone,1\nphone,-1\n", ":3: .*-1"),
        ("tier,forward_flop_per_s\nphone\n", ":2: number of cells"),
        ("tier,forward_flop_per_s\nwatch,1\n", ":2: .*'watch'"),
        ("tier\n", "rows are none"),
    ):
        path.write_text(text)
        with pytest.raises(ScenarioError, match=match):
            read_devices(path, TIERS)


def test_fedscale_capacities_keep_their_times(tmp_path: Path) -> None:
    """A device takes 3 inferences a sample and kbit over bandwidth, as in FedScale."""
    path = tmp_path / "capacity.csv"
    path.write_text("id,computation,communication\n1,10,2000\n")
    (device,) = read_fedscale(path, TIERS["phone"], reference_forward_flops=6e8)
    forward, backward = device.forward_flop_per_s, device.backward_flop_per_s
    assert 6e8 / forward + 2 * 6e8 / backward == pytest.approx(3 * 10 / 1000)
    kbit = 1e6 * 8 / 1024
    assert 8e6 / device.up_bit_per_s == pytest.approx(kbit / 2000)
    path.write_text("id,computation\n1,10\n")
    with pytest.raises(ScenarioError, match="communication has no column"):
        read_fedscale(path, TIERS["phone"], 6e8)
    path.write_text("computation,communication\n0,1\n")
    with pytest.raises(ScenarioError, match=":2: computation is 0"):
        read_fedscale(path, TIERS["phone"], 6e8)
