"""The device: a front, its part of the scenario's data, and how it trains."""

import copy
from functools import cache, partial

import torch
from flwr.app import Context
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from flwr_slfac import Device, client_app, cut
from simulation.cut_choice import choose_cuts
from simulation.data import device_data, epochs_for
from simulation.device_choices import DeviceChoices
from simulation.run_settings import RunSettings
from simulation.scenario import Scenario
from simulation.work import DeviceWork
from simulation.world import build_model, make_profiles


@cache
def _scenario(config: tuple[tuple[str, object], ...]) -> Scenario:
    return RunSettings.of(dict(config)).scenario


@cache
def _cuts(config: tuple[tuple[str, object], ...]) -> dict[int, str]:
    """Return the cuts of devices' own."""
    scenario = _scenario(config)
    return choose_cuts(scenario, make_profiles(scenario))


@cache
def _batches(config: tuple[tuple[str, object], ...], count: int) -> dict[int, int]:
    """Return the batch sizes of devices' own, of those that have a node."""
    scenario, at = _scenario(config), _cuts(config)
    if scenario.training.device_batches == "none":
        return {}
    model, shape = build_model(scenario), scenario.model.input_shape
    work = DeviceWork(model, scenario.training.cut, at, shape)
    profiles = make_profiles(scenario)[:count]
    return DeviceChoices(scenario, profiles, work, at).batches


@cache
def _front(config: tuple[tuple[str, object], ...], at: str) -> nn.Module:
    """Return the front of a cut; every device is given a copy of it to change."""
    return cut(build_model(_scenario(config)), at=at).front


def device(context: Context) -> Device:
    """Build this node's device from the run's scenario."""
    torch.set_num_threads(1)  # equal threads, equal bits
    config = tuple(sorted(context.run_config.items()))
    scenario, node = _scenario(config), context.node_config
    own = scenario.training
    partition, count = int(node["partition-id"]), int(node["num-partitions"])
    train = device_data(scenario, partition, count)
    batch_size = _batches(config, count).get(partition, own.batch_size)
    return Device(
        front=copy.deepcopy(_front(config, _cuts(config).get(partition, own.cut))),
        optimizer=partial(SGD, lr=own.learning_rate, momentum=own.momentum),
        train_set=train,
        batch_size=batch_size,
        scheduler=partial(CosineAnnealingLR, T_max=own.num_rounds),
        epochs=epochs_for(len(train), batch_size, own.num_steps),
        max_steps=own.num_steps,
        drop_last=len(train) > batch_size,
        profile={"device": partition},
    )


app = client_app(device)
