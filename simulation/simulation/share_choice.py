"""Batches and pruned shares of devices' own, chosen before the run."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from flwr_slfac import legal_cuts
from simulation.adaptation import find_choice
from simulation.cut_choice import coded_ratio
from simulation.plan_costs import Fleet, Question, round_costs
from simulation.profiles import Profile
from simulation.scenario import Scenario
from simulation.world import build_model, make_channel

Floats = NDArray[np.float64]
# Our choice: what the paper's tables and ours have.
_SHARES = (0.0, 0.1, 0.3, 0.5, 0.7)
# Batch norm needs two examples.
_SMALLEST_BATCH, _HALVINGS = 2, 3


def choose_batches(
    scenario: Scenario, profiles: Sequence[Profile], at: Mapping[int, str]
) -> dict[int, int]:
    """Return the batch sizes of devices that have not the scenario's.

    Options are the scenario's batch size and its halves, down to 2.

    Raises
    ------
    SettingError
        If the choice cannot be found, or is none of the options.
    """
    own = scenario.training
    if own.device_batches == "none":
        return {}
    sizes = [own.batch_size >> k for k in range(_HALVINGS + 1)]
    sizes = [size for size in sizes if size >= _SMALLEST_BATCH] or [own.batch_size]
    seconds = _round_s(scenario, profiles, at, [(size, 0.0) for size in sizes])
    places = _chosen("device_batches", own.device_batches, seconds)
    return {d: sizes[place] for d, place in enumerate(places) if place}


def choose_shares(scenario: Scenario, profiles: Sequence[Profile]) -> dict[int, float]:
    """Return the share of channels that each device does without; not those of 0.

    Raises
    ------
    SettingError
        If the choice cannot be found, or is none of the options.
    """
    own = scenario.training
    if own.device_pruning == "none":
        return {}
    options = [(own.batch_size, share) for share in _SHARES]
    seconds = _round_s(scenario, profiles, {}, options)
    places = _chosen("device_pruning", own.device_pruning, seconds)
    return {d: _SHARES[place] for d, place in enumerate(places) if place}


def _chosen(setting: str, name: str, seconds: Floats) -> list[int]:
    """Return each device's choice among options; seconds are by device and option."""
    choose = find_choice(setting, name)
    typical_s = float(np.median(seconds[:, 0]))
    return [choose(row.tolist(), typical_s) for row in seconds]


def _round_s(
    scenario: Scenario,
    profiles: Sequence[Profile],
    at: Mapping[int, str],
    options: Sequence[tuple[int, float]],
) -> Floats:
    """Return what a round takes by device and option: batch size and pruned share."""
    own = scenario.training
    example = torch.zeros(2, *scenario.model.input_shape)
    points = legal_cuts(build_model(scenario), example)
    by_name = {name: p for p in points for name in (p.name, *p.aliases)}
    names = [at.get(device, own.cut) for device in range(len(profiles))]
    cuts = [by_name[name] for name in dict.fromkeys(names)]
    columns = [list(dict.fromkeys(names)).index(name) for name in names]
    fleet = Fleet.of(profiles, make_channel(scenario, profiles))
    ratio = max(1.0, coded_ratio(scenario, len(profiles)))
    rows = []
    for batch_size, share in options:
        question = Question(batch_size, own.num_steps)
        costs = round_costs(fleet, cuts, scenario.server, question, ratio, share)
        rows.append(costs.round_s[np.arange(len(profiles)), columns])
    return np.stack(rows, axis=1)
