"""A scenario: one TOML file that says who trains what, where, and how.

Tables: ``[training] [model] [data] [devices] [server] [channel] [deadline] [churn]
[plan]``; all but ``[devices]`` and ``[channel]`` may be left out. Keys carry their
units. Paths are relative to the file.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr_slfac import SettingError
from simulation.clock import Deadline, Server
from simulation.errors import ScenarioError
from simulation.numbers import require_at_least, require_positive
from simulation.plan_costs import Question
from simulation.scenario_channel import ChannelSettings, read_channel
from simulation.scenario_training import Data, Model, Training
from simulation.tables import read_table
from simulation.typed_tables import Source, read_dataclass

SCENARIOS = Path(__file__).parents[1] / "scenarios"


@dataclass(frozen=True)
class Devices:
    """Who trains.

    Parameters
    ----------
    count : int
        How many are drawn; 0 takes all rows of a file.
    tiers : dict of str to float
        Weights of shipped tiers to draw from.
    tier_files : tuple of str
        Tiers of one's own, as TOML like those in ``profiles/``; their names may stand
        in `tiers`.
    file : str
        Instead: CSV of measured devices, see `measured.read_devices`.
    fedscale_file : str
        Instead: FedScale's capacities, see `measured.read_fedscale`; all that they do
        not tell is of the one tier in `tiers`.
    reference_forward_flops : float
        Of the model that FedScale's times are of.

    Raises
    ------
    SettingError
        If it is not clear where devices are from.
    """

    count: int = 0
    tiers: dict[str, float] = field(default_factory=dict)
    tier_files: tuple[str, ...] = ()
    file: str = ""
    fedscale_file: str = ""
    reference_forward_flops: float = 0.0

    def __post_init__(self) -> None:
        require_at_least("count", self.count, 0)
        if self.file and self.fedscale_file:
            raise SettingError("file and fedscale_file are both given; give one")
        if self.fedscale_file:
            require_positive("reference_forward_flops", self.reference_forward_flops)
            if len(self.tiers) != 1:
                raise SettingError(
                    f"tiers has {len(self.tiers)} names beside fedscale_file; give the "
                    "one whose figures FedScale's times are completed with"
                )
        elif not self.file and not (self.count and self.tiers):
            raise SettingError(
                "count and tiers say how many devices to draw and of what, and one is "
                "missing; or give a file"
            )


@dataclass(frozen=True)
class Churn:
    """When devices are on.

    Parameters
    ----------
    on_s : float
        Mean time that a device stays on, its share on is its profile's availability;
        infinity for always on.
    file : str
        Instead: CSV of intervals, see `clock.read_on_off`.
    period_s : float
        After how long the intervals of the file begin anew.
    notice_s : float
        How long the server takes to know that a device is gone.

    Raises
    ------
    SettingError
        If a number is out of range, or both ways are given.
    """

    on_s: float = math.inf
    file: str = ""
    period_s: float = math.inf
    notice_s: float = 0.0

    def __post_init__(self) -> None:
        require_positive("on_s", self.on_s)
        require_positive("period_s", self.period_s)
        require_at_least("notice_s", self.notice_s, 0)
        if self.file and self.on_s < math.inf:
            raise SettingError("file and on_s are both given; give one")


@dataclass(frozen=True)
class Planning(Question):
    """What a plan may choose from; batch and steps are those of the training.

    Parameters
    ----------
    cuts : tuple of str
        Names of cuts to choose from; none for all legal ones.
    """

    cuts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """A whole scenario.

    Parameters
    ----------
    path : Path
        Its file.
    name, seed
        Of the scenario; every draw is a function of the seed.
    training, model, data, devices, server, channel, deadline, churn, plan
        Its tables.
    lines : dict of str to int
        Of each dotted key, for errors found later.
    """

    path: Path
    name: str
    seed: int
    training: Training
    model: Model
    data: Data
    devices: Devices
    server: Server
    channel: ChannelSettings
    deadline: Deadline
    churn: Churn
    plan: Planning
    lines: dict[str, int] = field(default_factory=dict, repr=False)

    def error(self, key: str, reason: str) -> ScenarioError:
        """Return an error at a dotted key, or at the table that should have it."""
        return Source(self.path, self.lines).error(key, reason)


@dataclass(frozen=True)
class _Head:
    """Keys before the first table."""

    name: str
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least("seed", self.seed, 0)


_TABLES = {
    "training": Training,
    "model": Model,
    "data": Data,
    "devices": Devices,
    "server": Server,
    "deadline": Deadline,
    "churn": Churn,
}


def read_scenario(path: Path, text: str | None = None) -> Scenario:
    """Read a scenario; nothing but its own file is opened.

    Parameters
    ----------
    path : Path
        The file.
    text : str, optional
        What is in it, where that was read elsewhere.

    Raises
    ------
    ScenarioError
        If the file is no TOML, a table or key is unknown or missing, lacks its unit,
        has the wrong type, or a value is refused: with file, line and key.

    Examples
    --------
    >>> read_scenario(SCENARIOS / "quick.toml").training.scheme
    'parallel'
    """
    content, lines = read_table(path, text)
    source = Source(path, lines)
    known = [*_TABLES, "channel", "plan"]
    for key, value in content.items():
        if isinstance(value, dict | list) and key not in known:
            raise source.error(key, f"is no table; known: {', '.join(known)}")
    for key in ("devices", "channel"):
        if key not in content:
            raise source.error(key, "is missing; give the table")
    head = {k: v for k, v in content.items() if k not in known}
    top = _read_head(head, source)
    tables: dict[str, Any] = {
        key: read_dataclass(kind, content.get(key, {}), key, source)
        for key, kind in _TABLES.items()
    }
    training = tables["training"]
    planned = content.get("plan", {})
    for key in ("batch_size", "num_steps"):
        if isinstance(planned, dict) and key in planned:
            raise source.error(f"plan.{key}", "belongs into [training]")
    sizes = {"batch_size": training.batch_size, "num_steps": training.num_steps}
    planned = {**planned, **sizes} if isinstance(planned, dict) else planned
    return Scenario(
        path,
        top.name,
        top.seed,
        channel=read_channel(content["channel"], source),
        plan=read_dataclass(Planning, planned, "plan", source),
        lines=lines,
        **tables,
    )


def _read_head(head: dict[str, Any], source: Source) -> _Head:
    """Read the keys before the first table, which have no prefix."""
    bare = Source(source.path, {f"scenario.{k}": v for k, v in source.lines.items()})
    return read_dataclass(_Head, head, "scenario", bare)
