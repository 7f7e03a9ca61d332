"""A scenario trained by the app's own parts on a Flower grid in this process."""

from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

import torch
from flwr.app import ArrayRecord, Context, RecordDict
from simulation.client_app import device
from simulation.cut_choice import choose_cuts
from simulation.device_choices import DeviceChoices
from simulation.run_settings import RunSettings
from simulation.server_app import central_evaluation, make_strategy
from simulation.virtual import VirtualTime
from simulation.work import DeviceWork
from simulation.world import build_model, make_profiles

from flwr_slfac import SplitFed, client_app, cut
from tests.grid_in_process import GridInProcess, process_of_a_run

SCENARIO = """name = "small"
seed = 2

[training]
scheme = "{scheme}"
num_rounds = 2
num_steps = 2
batch_size = 8
cut = "stem"
codec_up = "{codec}"
codec_down = "{codec}"
{training}

[model]
build = "simulation.reference:digits_resnet"
input_shape = [1, 8, 8]

[data]
partition = "drawn"
per_device = 16

[devices]
count = {count}
{devices}

[server]
flop_per_s = 1e12

[channel]
kind = "plain"
up_bit_per_s = 1e6
down_bit_per_s = 2e6
spread = 0.8
latency_s = 0.01

{more}
"""


@dataclass
class Ran:
    """A run: what trained, what was told in virtual time, and the weights."""

    strategy: SplitFed
    virtual: VirtualTime
    weights: dict[str, torch.Tensor]


def train(
    folder: Path,
    *,
    scheme: str = "parallel",
    codec: str = "float16",
    count: int = 4,
    training: str = "",
    more: str = "",
    devices: str = "tiers = { phone = 1.0, raspberry-pi-5 = 1.0 }",
) -> Ran:
    """Train a scenario of this text, every device a node of this process."""
    path = folder / "small.toml"
    path.write_text(
        SCENARIO.format(
            scheme=scheme,
            codec=codec,
            count=count,
            training=training,
            devices=devices,
            more=more,
        )
    )
    config = {"scenario": str(path)}
    scenario = RunSettings.of(config).scenario
    profiles = make_profiles(scenario)
    halves = cut(build_model(scenario), at=scenario.training.cut)
    at, shape = choose_cuts(scenario, profiles), scenario.model.input_shape
    work = DeviceWork(halves.model, scenario.training.cut, at, shape)
    virtual = VirtualTime.of(scenario, profiles, work)
    choices = DeviceChoices(scenario, profiles, work, at)
    strategy = make_strategy(scenario, virtual, halves, at, choices)

    def own(context: Context) -> object:
        node = Context(0, 0, context.node_config, RecordDict(), config)
        return device(node)

    with process_of_a_run():
        result = strategy.start(
            GridInProcess(client_app(own), count),
            ArrayRecord(halves.front.state_dict()),
            num_rounds=scenario.training.num_rounds,
            evaluate_fn=central_evaluation(scenario, halves, strategy),
        )
    back = strategy.back_state()
    return Ran(strategy, virtual, {**result.arrays.to_torch_state_dict(), **back})
