"""Cuts of devices' own: chosen by cost, trained for real, told to the clock."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.cut_choice import CutCost, choose_cuts, fastest
from simulation.errors import ScenarioError
from simulation.scenario import SCENARIOS, read_scenario
from simulation.scenario_training import Training
from simulation.work import StepWork, require_memory
from simulation.world import build_model, make_cuts_of_model, make_profiles

from flwr_slfac import SettingError, cut
from tests.simulation import in_process
from tests.simulation.in_process import Ran, train

COUNT = 6
UNLIKE = "tiers = { microcontroller = 1.0, phone = 1.0, jetson-orin-nx = 1.0 }"


def deepest(costs: list[CutCost], memory_bytes: float) -> str:
    """Choose the cut of the training itself."""
    return costs[-1].name


def nowhere(costs: list[CutCost], memory_bytes: float) -> str:
    """Choose a cut that is none."""
    return "attic"


def run(folder: Path, choice: str, codec: str = "identity") -> Ran:
    """Train two rounds at layer1, or at devices' own cuts."""
    folder.mkdir()
    own = f'device_cuts = "{choice}"' if choice else ""
    return train(folder, count=COUNT, training=own, devices=UNLIKE, codec=codec)


@pytest.fixture(autouse=True)
def deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small scenario be cut deep, so that there is something to choose."""
    text = in_process.SCENARIO.replace('cut = "stem"', 'cut = "layer2"')
    monkeypatch.setattr(in_process, "SCENARIO", text)


def test_own_cuts_change_what_crosses_and_not_what_is_learned(tmp_path: Path) -> None:
    """With identity codecs the weights are the common cut's; time and bytes are not."""
    one, other = run(tmp_path / "a", ""), run(tmp_path / "b", "fastest")
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[n], other.weights[n]) for n in one.weights)
    assert other.virtual.rounds[-1].end_s < one.virtual.rounds[-1].end_s
    ups = [
        {
            r.device: r.raw_bytes
            for r in ran.strategy.traffic.rows(server_round=1)
            if r.direction == "up"
        }
        for ran in (one, other)
    ]
    assert len(set(ups[0].values())) == 1
    assert ups[0] != ups[1]


def test_a_choice_of_the_common_cut_is_no_choice(tmp_path: Path) -> None:
    """Where all choose the cut of the training, everything is as without a choice."""
    one = run(tmp_path / "a", "", "float16")
    other = run(tmp_path / "b", f"{__name__}:deepest", "float16")
    assert one.virtual.rounds == other.virtual.rounds
    assert all(torch.equal(one.weights[n], other.weights[n]) for n in one.weights)


def test_the_clock_is_told_what_each_device_computes(tmp_path: Path) -> None:
    """A device with a shorter front is charged fewer operations."""
    ran = run(tmp_path / "a", "fastest")
    at = choose_cuts(ran.virtual.scenario, ran.virtual.profiles)
    assert at
    model, shape = build_model(ran.virtual.scenario), (1, 8, 8)
    spans = ran.virtual.clock.timeline.spans
    for device, profile in enumerate(ran.virtual.profiles):
        halves = cut(model, at=at.get(device, "layer2"))
        forward, _, _ = StepWork(halves, shape).flops(8)
        own = [s for s in spans if (s.device, s.kind) == (device, "forward")]
        assert own
        for span in own:
            assert span.seconds == pytest.approx(forward / profile.forward_flop_per_s)


def test_the_fastest_cut_is_one_that_fits() -> None:
    """Memory comes first; where nothing fits, the least."""
    costs = [CutCost("a", 3.0, 0, 0, 10.0), CutCost("b", 1.0, 0, 0, 30.0)]
    assert fastest(costs, 100.0) == "b"
    assert fastest(costs, 20.0) == "a"
    assert fastest(costs, 1.0) == "a"


def test_choices_of_ones_own_are_checked(tmp_path: Path) -> None:
    """A choice that cannot be found, or names no candidate, is refused by name."""
    with pytest.raises(SettingError, match=r"no\.module:at_all.*cannot be found"):
        run(tmp_path / "a", "no.module:at_all")
    with pytest.raises(ScenarioError, match=r"chooses 'attic' for device 0"):
        run(tmp_path / "b", f"{__name__}:nowhere")
    with pytest.raises(SettingError, match="device_cuts is 'best'"):
        Training(device_cuts="best")
    with pytest.raises(SettingError, match="does not go together"):
        Training(device_cuts="fastest", lightweight="prune=0.3")


def test_unlike_devices_of_the_shipped_scenario_choose_unlike_cuts() -> None:
    """In heterogeneous-cuts every device can hold the front of the cut it chooses."""
    scenario = read_scenario(SCENARIOS / "heterogeneous-cuts.toml")
    profiles = make_profiles(scenario)
    at = choose_cuts(scenario, profiles)
    assert len({*at.values(), scenario.training.cut}) > 1
    require_memory(scenario, profiles, make_cuts_of_model(scenario), at)
