"""Path loss, fading, rates and sharing against the formulas' own values."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation.channel import (
    CellSettings,
    Packets,
    Trace,
    TraceLinks,
    cell_channel,
    read_presets,
    read_trace,
    spread_rates,
)
from simulation.channel.cell import Cell
from simulation.channel.fading import fading_gain, shadowing_db
from simulation.channel.path_loss import (
    PATH_LOSSES,
    uma_los_db,
    uma_nlos_db,
    umi_los_db,
    umi_los_probability,
    umi_nlos_db,
)
from simulation.channel.rates import RATE_MODELS
from simulation.channel.sharing import max_min_power_hz
from simulation.errors import ScenarioError

from flwr_slfac import SettingError

RECORDED = Path(os.environ.get("SLFAC_DATA_DIR", "")) / "links"
PLAIN = {"shadowing_db": 0.0, "fading": "none"}
recorded = pytest.mark.skipif(
    not (RECORDED / "README.md").exists(),
    reason="SLFAC_DATA_DIR has no links/; recorded rates do not ship",
)


def cell(seed: int = 0, num_devices: int = 4, **changes: object) -> Cell:
    """Return the uplink of a cell."""
    own = CellSettings(**changes)  # type: ignore[arg-type]
    up = cell_channel(own, [10.0] * num_devices, seed).up
    assert isinstance(up, Cell)
    return up


def alone(up: Cell, device: int, server_round: int = 1) -> float:
    """Return the rate of a device that sends alone."""
    ids = np.array([device])
    return float(up.rates_bit_per_s(server_round, ids, np.ones(1), ids)[0])


def test_rates_of_the_literature() -> None:
    """At 2 MHz and 10 dBm: 28, 20, 10, 3.7 Mbit/s at 50, 100, 250, 500 m."""
    distances = (50.0, 100.0, 250.0, 500.0)
    up = cell(bandwidth_up_hz=2e6, distances_m=distances, **PLAIN)
    rates = [alone(up, device) / 1e6 for device in range(4)]
    assert rates == pytest.approx([28, 20, 10, 3.7], rel=0.05)


def test_signal_over_noise_by_hand() -> None:
    """At 100 m the base's SNR is 46 - 90.5 + 174 dB Hz; noise and overhead take off."""
    own = {"distances_m": (100.0,), "num_devices": 1, **PLAIN}
    down = cell_channel(CellSettings(distances_m=(100.0,), **PLAIN), [10.0], 0).down
    assert isinstance(down, Cell)
    assert 10 * math.log10(down.snr_hz(1)[0]) == pytest.approx(46 - 90.5 + 174)
    quiet = cell(**own).snr_hz(1)[0]
    assert 10 * math.log10(quiet) == pytest.approx(10 - 90.5 + 174)
    assert cell(noise_figure_db=10.0, **own).snr_hz(1)[0] == pytest.approx(quiet / 10)
    assert alone(cell(overhead=0.25, **own), 0) == 0.75 * alone(cell(**own), 0)


def test_path_losses_of_38901() -> None:
    """Losses are those that the tables of TR 38.901 give by hand, to 0.01 dB."""
    d = np.array([100.0])
    slant = math.hypot(100, 8.5)
    by_hand = 32.4 + 21 * math.log10(slant) + 20 * math.log10(3.5)
    assert umi_los_db(d, 3.5e9)[0] == pytest.approx(by_hand, abs=0.01)
    by_hand = 35.3 * math.log10(slant) + 22.4 + 21.3 * math.log10(3.5)
    assert umi_nlos_db(d, 3.5e9)[0] == pytest.approx(by_hand, abs=0.01)
    slant = math.hypot(100, 23.5)
    by_hand = 28 + 22 * math.log10(slant) + 20 * math.log10(3.5)
    assert uma_los_db(d, 3.5e9)[0] == pytest.approx(by_hand, abs=0.01)
    by_hand = 13.54 + 39.08 * math.log10(slant) + 20 * math.log10(3.5)
    assert uma_nlos_db(d, 3.5e9)[0] == pytest.approx(by_hand, abs=0.01)
    # 18 / 100 + exp(-100 / 36) (1 - 18 / 100).
    assert umi_los_probability(d)[0] == pytest.approx(0.2310, abs=1e-4)
    assert umi_los_probability(np.array([3.0]))[0] == 1


@pytest.mark.parametrize("name", sorted(PATH_LOSSES))
def test_loss_rises_with_distance_without_a_jump(name: str) -> None:
    """Over 10 m to 5 km the loss of a state never falls, nor jumps."""
    model, distances = PATH_LOSSES[name], np.linspace(10, 5000, 20_000)
    for state in (model.los_db, model.nlos_db):
        steps = np.diff(state(distances, 2e9))
        assert steps.min() > 0
        assert steps.max() < 1


def test_nlos_is_never_better() -> None:
    """Without line of sight nothing is heard better than with it."""
    d = np.linspace(10, 5000, 1000)
    for name in ("umi", "uma"):
        model = PATH_LOSSES[name]
        assert np.all(model.nlos_db(d, 2e9) >= model.los_db(d, 2e9))


def test_macro_is_for_its_carrier_only() -> None:
    """The macro formula at another carrier is refused, not silently wrong."""
    with pytest.raises(SettingError, match=r"carrier_hz is 3\.5e"):
        cell(carrier_hz=3.5e9)


@pytest.mark.parametrize(("kind", "variance"), [("rayleigh", 1.0), ("rician", 0.36)])
def test_fading_has_mean_1_and_its_variance(kind: str, variance: float) -> None:
    """Power gains have mean 1; variance 1 (Rayleigh), (1 + 2K) / (1 + K)^2 (Rician)."""
    gains = [fading_gain(kind, 4.0, 3, device, 1, "up") for device in range(4000)]
    assert np.mean(gains) == pytest.approx(1, abs=0.06)
    assert np.var(gains) == pytest.approx(variance, rel=0.15)


def test_shadowing_is_normal_in_db() -> None:
    """Shadowing has mean 0 and its own deviation, and does not know the round."""
    draws = [shadowing_db(8.0, 5, device) for device in range(4000)]
    assert np.mean(draws) == pytest.approx(0, abs=0.5)
    assert np.std(draws) == pytest.approx(8, rel=0.05)


def test_draws_do_not_depend_on_order_or_number() -> None:
    """A device's channel is the same whoever is asked first, and in a larger cell."""
    one, other = cell(seed=7, num_devices=3), cell(seed=7, num_devices=9)
    late = other.snr_hz(5)[:3]
    other.snr_hz(4)
    assert np.array_equal(one.snr_hz(5), late)
    assert np.array_equal(other.snr_hz(5)[:3], late)
    assert not np.array_equal(one.snr_hz(4), late)
    assert not np.array_equal(cell(seed=8, num_devices=3).snr_hz(5), late)
    down = cell_channel(CellSettings(), [10.0] * 3, 7).down
    assert isinstance(down, Cell)
    ratio = down.snr_hz(5) / late
    assert ratio.std() > 0.01 * ratio.mean()


def test_devices_fill_the_ring_evenly() -> None:
    """Half of the devices are in half of the ring's area, none outside."""
    distances = cell(
        num_devices=4000, radius_m=500.0, min_distance_m=35.0
    ).distances_m()
    assert distances.min() >= 35
    assert distances.max() <= 500
    middle = math.sqrt((35**2 + 500**2) / 2)
    assert np.mean(distances < middle) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", ["lte-cqi", "nr-cqi-256qam"])
def test_tables_lie_below_shannon_and_are_capped(name: str) -> None:
    """A CQI table gives no more than Shannon, rises from 0 and ends in its cap."""
    snr = 10 ** (np.linspace(-30, 60, 500) / 10)
    given = RATE_MODELS[name].efficiency(snr)
    assert np.all(given <= np.log2(1 + snr))
    assert np.all(np.diff(given) >= 0)
    cap = {"lte-cqi": 5.5547, "nr-cqi-256qam": 7.4063}[name]
    assert (given[0], given[-1]) == (0, cap)
    assert len(set(given)) == 16


@given(st.lists(st.floats(1, 1e12), min_size=1, max_size=30), st.floats(1e3, 1e9))
def test_max_min_gives_all_the_same_rate(snr_hz: list[float], band_hz: float) -> None:
    """Max-min parts fill the band and carry equal rates, over 12 decades of signal."""
    strengths = np.array(snr_hz)
    parts = max_min_power_hz(band_hz, strengths)
    assert parts.sum() == pytest.approx(band_hz, rel=1e-9)
    assert np.all(parts > 0)
    rates = parts * np.log1p(strengths / parts)
    assert rates.max() / rates.min() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("up_power", ["part", "band"])
def test_sharings_differ_as_they_say(up_power: str) -> None:
    """Max-min lifts the weakest above equal parts; proportional goes by the bytes."""
    ids, loads = np.arange(4), np.array([1.0, 2.0, 3.0, 4.0])

    def rates(sharing: str, **changes: str) -> np.ndarray:
        up = cell(seed=2, sharing=sharing, up_power=up_power, **changes)
        return up.rates_bit_per_s(1, ids, loads, ids)

    equal, fair = rates("equal"), rates("max-min")
    assert fair.min() > equal.min()
    assert np.allclose(fair, fair[0])
    wide = rates("proportional")
    assert wide[3] / equal[3] > 1 > wide[0] / equal[0]
    assert np.array_equal(rates("equal", among="round"), equal)


def test_fixed_parts_do_not_grow() -> None:
    """Among the round, who sends alone keeps the part that it has beside all others."""
    up = cell(seed=2, among="round", up_power="band")
    ids = np.arange(4)
    together = up.rates_bit_per_s(1, ids, np.ones(4), ids)
    one = np.array([2])
    assert up.rates_bit_per_s(1, one, np.ones(1), ids)[0] == together[2]
    moving = cell(seed=2, up_power="band")
    assert alone(moving, 2) == pytest.approx(4 * together[2])


def test_cells_refuse_what_does_not_go_together() -> None:
    """Unknown names, impossible numbers and clashing settings are named."""
    for changes, match in (
        ({"path_loss": "hata"}, "'hata' is not known"),
        ({"bandwidth_up_hz": -1.0}, "bandwidth_up_hz is -1"),
        ({"sharing": "proportional", "among": "round"}, "a round ahead"),
        ({"sharing": "max-min", "rate": "lte-cqi"}, "smooth rate"),
        ({"radius_m": 10.0}, "above radius_m"),
        ({"distances_m": (1.0,)}, "give each its distance"),
        ({"overhead": 1.0}, r"\[0, 1\)"),
        ({"base_dbm": 1e300}, "base_dbm is 1e"),
        ({"radius_m": math.inf}, "radius_m is inf"),
        ({"shadowing_db": math.nan}, "shadowing_db is nan"),
    ):
        with pytest.raises(SettingError, match=match):
            cell(**changes)


def test_loss_takes_its_mean_or_its_draw() -> None:
    """Lost packets cost n / (1 - p) on air: as the mean, or drawn about it."""
    mean = Packets(loss=0.2).air_bytes(15_000, 0, "up", 0)
    assert mean == pytest.approx(15_000 / 0.8)
    lossy = Packets(loss=0.2, drawn=True)
    drawn = [lossy.air_bytes(15_000, 0, "up", n) for n in range(2000)]
    assert min(drawn) >= 15_000
    assert all((x / 1500) == pytest.approx(round(x / 1500)) for x in drawn)
    assert np.mean(drawn) == pytest.approx(mean, rel=0.02)
    with pytest.raises(SettingError, match="packet_loss"):
        Packets(loss=1.0)


def test_jitter_is_drawn_by_message() -> None:
    """Delays are at least the latency, with the jitter on average."""
    packets = Packets(latency_s=0.1, jitter_s=0.05)
    delays = [packets.delay_s(1, "up", 0, 1, step) for step in range(2000)]
    assert min(delays) >= 0.1
    assert np.mean(delays) == pytest.approx(0.15, rel=0.05)
    assert packets.delay_s(1, "up", 0, 1, 5) == delays[5]


rates = st.lists(st.sampled_from([0.0, 1.0, 3.0, 1e6]), min_size=1, max_size=6)


@given(rates.filter(any), st.floats(0, 50), st.floats(0, 1e7), st.floats(0, 1e7))
def test_a_trace_carries_what_it_integrates(
    steps: list[float], start_s: float, first: float, second: float
) -> None:
    """Carrying a then b ends when a + b ends, and never before the start."""
    trace = Trace(np.arange(float(len(steps))), np.array(steps), float(len(steps)))
    middle = trace.finish_s(start_s, first)
    end = trace.finish_s(start_s, first + second)
    assert start_s <= middle <= end * (1 + 1e-9)
    after = trace.finish_s(middle, second)
    # Equal but where the first ends with the rate at 0: then the second starts later.
    assert after == pytest.approx(end, rel=1e-6, abs=1e-5) or second == 0


def test_a_constant_trace_is_a_plain_link() -> None:
    """One rate throughout takes bytes over rate, from any time on."""
    trace = Trace(np.zeros(1), np.array([800.0]), 1.0)
    for start in (0.0, 0.3, 17.9):
        assert trace.finish_s(start, 250) == pytest.approx(start + 2.5)


def test_traces_that_are_none_are_refused(tmp_path: Path) -> None:
    """Empty, falling, negative and dead traces are refused, bad rows by line."""
    for text, match in (
        ("time_s,rate_bit_per_s\n0,1\nx,2\n", ":3: row"),
        ("time_s,rate\n0,1\n", ":1: header"),
        ("time_s,rate_bit_per_s\n", "0 times"),
        ("time_s,rate_bit_per_s\n1,1\n", "begin with 0"),
        ("time_s,rate_bit_per_s\n0,1\n0,1\n", "rise"),
        ("time_s,rate_bit_per_s\n0,-1\n", "at least 0"),
        ("time_s,rate_bit_per_s\n0,nan\n", "finite"),
        ("time_s,rate_bit_per_s\n0,0\n1,0\n", "not all 0"),
    ):
        path = tmp_path / "trace.csv"
        path.write_text(text)
        with pytest.raises(ScenarioError, match=match):
            read_trace(path)
    huge = "1\n" + "9" * 30
    for text, match in (
        (huge, ":2: line is above"),
        ("5\n4\n", ":2: line"),
        ("a\n", ":1: line"),
        ("", "above 0"),
    ):
        path = tmp_path / "trace.mahimahi"
        path.write_text(text)
        with pytest.raises(ScenarioError, match=match):
            read_trace(path)
    with pytest.raises(ScenarioError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")


@recorded
def test_recorded_traces_are_read_in_both_formats() -> None:
    """A recorded trace and its 20 s in Mahimahi's format carry the same."""
    by_second = read_trace(RECORDED / "verizon-lte-short-up.csv")
    by_packet = read_trace(RECORDED / "verizon-lte-short-up-20s.mahimahi")
    # Every packet lasts its millisecond, so that whole seconds add up.
    ends = np.append(by_packet.time_s[1:], by_packet.period_s)
    bits = by_packet.rate_bit_per_s * (ends - by_packet.time_s)
    counted = np.bincount(by_packet.time_s.astype(int), bits)
    assert np.allclose(counted[:19], by_second.rate_bit_per_s[:19])
    for path in RECORDED.glob("*.csv"):
        trace = read_trace(path)
        whole = trace.mean_bit_per_s * trace.period_s / 8
        assert trace.finish_s(0, 3 * whole) <= 3 * trace.period_s * (1 + 1e-9)


def test_devices_on_one_trace_are_not_in_step() -> None:
    """With a seed devices start at their own places of a trace; without, all at 0."""
    trace = Trace(np.arange(100.0), np.arange(100.0) + 1, 100.0)
    in_step = TraceLinks((trace,))
    assert len({in_step.finish_s(d, 0.0, 100) for d in range(9)}) == 1
    apart = TraceLinks((trace,), seed=1)
    assert len({apart.finish_s(d, 0.0, 100) for d in range(9)}) > 5


def test_presets_tell_their_sources() -> None:
    """Every number of every preset says where it is from, or that we estimate it."""
    presets = read_presets()
    assert {"wifi", "lte", "5g", "lora-sf7", "satellite-leo"} <= presets.keys()
    for preset in presets.values():
        assert all(len(source) > 5 for source in preset.sources.values())


def test_spread_rates_keep_their_median() -> None:
    """Drawn rates are log-normal about the median, however many are drawn."""
    many = spread_rates(1e6, 0.5, 4000, 1, "up")
    assert np.median(many) == pytest.approx(1e6, rel=0.06)
    assert np.std(np.log(many)) == pytest.approx(0.5, rel=0.05)
    assert spread_rates(1e6, 0.5, 5, 1, "up") == many[:5]
    assert spread_rates(1e6, 0.0, 5, 1, "up") == (1e6,) * 5
