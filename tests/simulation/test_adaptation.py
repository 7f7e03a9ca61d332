"""Codecs, batches and pruned shares of devices' own: chosen, trained and charged."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.device_choices import DeviceChoices
from simulation.errors import ScenarioError
from simulation.scenario_training import Training
from simulation.work import DeviceWork
from simulation.world import build_model

from flwr_slfac import SettingError
from tests.simulation.in_process import Ran, train

COUNT = 6
SETTINGS = ("device_codecs", "device_batches", "device_pruning")


def first(seconds: Sequence[float], in_time_s: float) -> int:
    """Choose what all devices do."""
    return 0


def last(seconds: Sequence[float], in_time_s: float) -> int:
    """Choose what asks least of a device."""
    return len(seconds) - 1


def none_of_them(seconds: Sequence[float], in_time_s: float) -> int:
    """Choose no option."""
    return -1


def run(folder: Path, *settings: str, codec: str = "waterfill(nrmse=0.1)") -> Ran:
    """Train two rounds with settings such as ``device_codecs=alike``."""
    folder.mkdir()
    pairs = (setting.split("=") for setting in settings)
    own = "\n".join(f'{name} = "{value}"' for name, value in pairs)
    return train(folder, count=COUNT, training=own, codec=codec)


def choices_of(ran: Ran) -> DeviceChoices:
    """Return the choices of a run, made again."""
    scenario = ran.virtual.scenario
    shape = scenario.model.input_shape
    work = DeviceWork(build_model(scenario), scenario.training.cut, {}, shape)
    return DeviceChoices(scenario, ran.virtual.profiles, work, {})


def sent_up(ran: Ran, server_round: int = 1) -> dict[int, int]:
    """Return the bytes of activations by device."""
    rows = ran.strategy.traffic.rows(server_round=server_round, directions=("up",))
    return {row.device: row.num_bytes for row in rows}


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_all_do_is_no_choice(tmp_path: Path, setting: str) -> None:
    """A choice of the first option for all changes nothing, to the bit."""
    one = run(tmp_path / "a")
    other = run(tmp_path / "b", f"{setting}={__name__}:first")
    assert all(torch.equal(one.weights[n], t) for n, t in other.weights.items())
    assert sent_up(one) == sent_up(other)


@pytest.mark.parametrize("setting", SETTINGS)
def test_slow_devices_do_less_and_rounds_are_shorter(
    tmp_path: Path, setting: str
) -> None:
    """By `alike` the slowest device sends less, the others the same."""
    plain, ran = run(tmp_path / "a"), run(tmp_path / "b", f"{setting}=alike")
    before, now = sent_up(plain), sent_up(ran)
    took_s = {d: own.round_s for d, own in plain.virtual.candidates.items()}
    # From the second step on everyone's gradient depends on everyone's batch.
    same = {device for device in before if abs(now[device] / before[device] - 1) < 0.02}
    less = {device for device in before if now[device] < 0.9 * before[device]}
    assert same | less == before.keys()
    assert less == {max(took_s, key=lambda d: took_s[d])}
    assert ran.virtual.times[0].seconds < plain.virtual.times[0].seconds


def test_choices_go_together(tmp_path: Path) -> None:
    """Codecs, batches and shares of devices' own train together, and cuts with two."""
    all_three = [f"{setting}={__name__}:last" for setting in SETTINGS]
    small = sent_up(run(tmp_path / "a", *all_three))
    plain = sent_up(run(tmp_path / "b"))
    assert all(small[device] < plain[device] / 4 for device in plain)
    with_cuts = run(tmp_path / "c", "device_cuts=fastest", *all_three[:2])
    assert len(with_cuts.virtual.rounds) == 2


def test_the_clock_sees_smaller_batches(tmp_path: Path) -> None:
    """A device that takes half the examples is charged for half of them."""
    ran = run(tmp_path / "a", "device_batches=alike")
    scenario = ran.virtual.scenario
    batches = choices_of(ran).batches
    assert batches
    assert set(batches.values()) <= {2, 4}
    for device, own in ran.virtual.candidates.items():
        assert own.num_examples == batches.get(device, 8) * scenario.training.num_steps


def test_shares_are_what_devices_say_they_left_out(tmp_path: Path) -> None:
    """A chosen share of channels reaches the device, which then computes less."""
    ran = run(tmp_path / "a", "device_pruning=alike")
    choices = choices_of(ran)
    costs = {cost.device: cost for cost in ran.strategy.costs if cost.server_round == 1}
    assert any(choices.share(1, device) for device in costs)
    for device, cost in costs.items():
        pruned = cost.step.forward_flops < cost.step.plain_forward_flops
        assert pruned == (choices.share(1, device) > 0)


def test_the_period_follows_the_cost_of_fronts(tmp_path: Path) -> None:
    """Fronts are averaged within a round as often as that costs little, for real."""
    often = run(tmp_path / "a", f"period={__name__}:first")
    assert choices_of(often).period() == 1
    seldom = run(tmp_path / "b", f"period={__name__}:last")
    assert choices_of(seldom).period() is None
    plain = run(tmp_path / "c")
    assert all(torch.equal(plain.weights[n], t) for n, t in seldom.weights.items())
    fronts = [
        ran.strategy.traffic.num_bytes(directions=("model-up",))
        for ran in (often, plain)
    ]
    assert fronts[0] > 1.5 * fronts[1]


def test_what_cannot_be_is_named(tmp_path: Path) -> None:
    """Wrong names, no option, a codec without an aim, cuts beside pruning: by name."""
    with pytest.raises(SettingError, match=r"no\.module:at_all.*cannot be found"):
        run(tmp_path / "a", "device_codecs=no.module:at_all")
    with pytest.raises(SettingError, match="chooses -1; there are options 0 to 2"):
        run(tmp_path / "b", f"device_batches={__name__}:none_of_them")
    with pytest.raises(ScenarioError, match=r"codec_up.*float16.*no relative error"):
        run(tmp_path / "c", "device_codecs=alike", codec="float16")
    with pytest.raises(SettingError, match="device_pruning is 'best'"):
        Training(device_pruning="best")
    with pytest.raises(SettingError, match="which lightweight says, too"):
        Training(period="alike", lightweight="aggregate_every=5")
    with pytest.raises(SettingError, match="device_cuts does not go together"):
        Training(device_cuts="fastest", device_pruning="alike")
