"""A scenario made into devices, a channel and a clock."""

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from flwr_slfac import CutPoint, SettingError, legal_cuts
from simulation.channel import (
    CellSettings,
    Channel,
    Pipe,
    PlainLinks,
    Trace,
    TraceLinks,
    cell_channel,
    read_presets,
    read_trace,
    spread_rates,
)
from simulation.clock import AlwaysOn, Availability, Clock, DrawnOnOff, read_on_off
from simulation.errors import ScenarioError
from simulation.measured import read_devices, read_fedscale
from simulation.profiles import Profile
from simulation.scenario import Scenario
from simulation.scenario_channel import (
    PipeSettings,
    PlainSettings,
    PresetSettings,
    TraceSettings,
)
from simulation.tiers import Tier, draw_profiles, read_tier, shipped_tiers


def make_profiles(scenario: Scenario) -> list[Profile]:
    """Return the devices of a scenario.

    Raises
    ------
    ScenarioError
        If a tier is not known, or a file is refused.
    """
    own, folder = scenario.devices, scenario.path.parent
    tiers = shipped_tiers()
    for file in own.tier_files:
        tier = read_tier(folder / file)
        tiers[tier.name] = tier
    for name in own.tiers:
        if name not in tiers:
            reason = f"is no tier; use {', '.join(sorted(tiers))}, or tier_files"
            raise ScenarioError(scenario.path, None, f"devices.tiers.{name}", reason)
    if own.file:
        return _first(read_devices(folder / own.file, tiers), own.count, scenario)
    if own.fedscale_file:
        flops, path = own.reference_forward_flops, folder / own.fedscale_file
        devices = read_fedscale(path, _only(tiers, own.tiers), flops)
        return _first(devices, own.count, scenario)
    mix = [(tiers[name], weight) for name, weight in own.tiers.items()]
    return draw_profiles(mix, own.count, scenario.seed)


def _only(tiers: Mapping[str, Tier], names: Mapping[str, float]) -> Tier:
    return tiers[next(iter(names))]


def _first(devices: list[Profile], count: int, scenario: Scenario) -> list[Profile]:
    """Return as many devices as are asked for, or all."""
    if count > len(devices):
        reason = f"is {count}, and the file has {len(devices)} devices"
        raise ScenarioError(scenario.path, None, "devices.count", reason)
    return devices[: count or None]


def make_channel(scenario: Scenario, profiles: Sequence[Profile]) -> Channel:
    """Return the channel of a scenario.

    Raises
    ------
    ScenarioError
        If a trace is refused, a cell does not fit its devices, or devices have no links
        of their own to take.
    """
    kind, seed, count = scenario.channel.kind, scenario.seed, len(profiles)
    packets = scenario.channel.delivery.packets()
    if isinstance(kind, CellSettings):
        powers = [profile.transmit_dbm for profile in profiles]
        try:
            return cell_channel(kind, powers, seed, packets)
        except SettingError as error:
            raise ScenarioError(scenario.path, None, "channel", str(error)) from error
    if isinstance(kind, PipeSettings):
        return Channel(Pipe(kind.up_bit_per_s), Pipe(kind.down_bit_per_s), packets)
    if isinstance(kind, TraceSettings):
        folder, start = scenario.path.parent, None if kind.in_step else seed
        ups, downs = _traces(folder, kind.up_files), _traces(folder, kind.down_files)
        return Channel(TraceLinks(ups, start), TraceLinks(downs, start), packets)
    if isinstance(kind, PlainSettings | PresetSettings):
        if isinstance(kind, PresetSettings):
            preset = read_presets()[kind.preset]
            packets, medians = (
                preset.packets,
                (preset.up_bit_per_s, preset.down_bit_per_s),
            )
        else:
            medians = kind.up_bit_per_s, kind.down_bit_per_s
        up, down = (
            PlainLinks(spread_rates(median, kind.spread, count, seed, direction))
            for median, direction in zip(medians, ("up", "down"), strict=True)
        )
        return Channel(up, down, packets)
    return _own_links(scenario, profiles)


def _traces(folder: Path, files: Sequence[str]) -> tuple[Trace, ...]:
    return tuple(read_trace(folder / file) for file in files)


def _own_links(scenario: Scenario, profiles: Sequence[Profile]) -> Channel:
    """Return the links that devices were measured with."""
    ups = tuple(profile.up_bit_per_s for profile in profiles)
    downs = tuple(profile.down_bit_per_s for profile in profiles)
    if math.inf in (*ups, *downs):
        reason = (
            "is 'profiles', and not every device has up_bit_per_s and down_bit_per_s"
        )
        raise ScenarioError(scenario.path, None, "channel.kind", reason)
    packets = scenario.channel.delivery.packets()
    return Channel(PlainLinks(ups), PlainLinks(downs), packets)


def make_availability(scenario: Scenario, profiles: Sequence[Profile]) -> Availability:
    """Return when the devices of a scenario are on.

    Raises
    ------
    ScenarioError
        If the file of intervals is refused.
    """
    own = scenario.churn
    if own.file:
        return read_on_off(scenario.path.parent / own.file, own.period_s)
    if own.on_s == math.inf:
        return AlwaysOn()
    shares = [profile.availability for profile in profiles]
    return DrawnOnOff(own.on_s, shares, scenario.seed)


def make_clock(scenario: Scenario, profiles: Sequence[Profile] | None = None) -> Clock:
    """Return the clock of a scenario.

    Parameters
    ----------
    scenario : Scenario
        The scenario.
    profiles : sequence of Profile, optional
        Its devices, where they are made already.

    Raises
    ------
    ScenarioError
        As `make_profiles` and `make_channel`.
    """
    profiles = make_profiles(scenario) if profiles is None else profiles
    return Clock(
        profiles,
        make_channel(scenario, profiles),
        scenario.server,
        seed=scenario.seed,
        deadline=scenario.deadline,
        availability=make_availability(scenario, profiles),
        waits="arrival" if scenario.training.waits == "arrival" else "lockstep",
        notice_s=scenario.churn.notice_s,
    )


def build_model(scenario: Scenario) -> nn.Module:
    """Return the scenario's model; the same seed gives the same weights everywhere.

    Raises
    ------
    ScenarioError
        If it cannot be built.
    """
    module, _, function = scenario.model.build.partition(":")
    with torch.random.fork_rng():
        torch.manual_seed(scenario.seed)
        try:
            built = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError, TypeError) as error:
            raise scenario.error("model.build", f"fails: {error}") from error
    if not isinstance(built, nn.Module):
        reason = f"returns a {type(built).__name__}; return an nn.Module"
        raise scenario.error("model.build", reason)
    return built


def make_cuts_of_model(scenario: Scenario) -> list[CutPoint]:
    """Return all legal cuts of the scenario's model.

    Raises
    ------
    ScenarioError
        If the model cannot be built.
    """
    example = torch.zeros(2, *scenario.model.input_shape)
    return legal_cuts(build_model(scenario), example)


def make_cuts(scenario: Scenario) -> list[CutPoint]:
    """Return the cuts of the scenario's model that its plan may choose from.

    Raises
    ------
    ScenarioError
        If the model cannot be built, or a cut is not one of its own.
    """
    path, cuts = scenario.path, make_cuts_of_model(scenario)
    wanted = scenario.plan.cuts
    found = {name: cut for cut in cuts for name in (cut.name, *cut.aliases)}
    for name in wanted:
        if name not in found:
            reason = f"has {name!r}; legal cuts: {', '.join(cut.name for cut in cuts)}"
            raise ScenarioError(path, None, "plan.cuts", reason)
    return [found[name] for name in wanted] if wanted else cuts
