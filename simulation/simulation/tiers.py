"""Kinds of devices: figures with sources, from which devices are drawn by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_slfac import SettingError
from simulation.draws import generator
from simulation.errors import ScenarioError
from simulation.numbers import MOST_SPREAD
from simulation.profiles import FIGURES, LINK_FIGURES, Profile, dynamic_power_w
from simulation.tables import read_table

PROFILES = Path(__file__).parents[1] / "profiles"
# One draw for all four: a device with a slow processor is slow in all of them.
_SPEEDS = FIGURES[:4]


@dataclass(frozen=True)
class Figure:
    """A number of a tier: the median, how widely devices spread, where it is from.

    Parameters
    ----------
    value : float
        Median over the devices of the tier, in the unit of its name.
    spread : float
        Standard deviation of the natural logarithm; 0.3 puts two thirds of the devices
        between 0.74 and 1.35 of the median.
    source : str
        Where the number is from, or that it is our estimate.
    """

    value: float
    spread: float
    source: str


@dataclass(frozen=True)
class Tier:
    """A kind of device, from which devices are drawn.

    Parameters
    ----------
    name : str
        Name of the tier.
    figures : dict of str to Figure
        By name of the field of `Profile`.
    """

    name: str
    figures: dict[str, Figure]

    def draw(self, seed: int, device: int) -> Profile:
        """Draw one device: ``value * exp(spread * z)``, z standard normal.

        The four speeds share one z; every other figure has its own. The result is a
        function of the tier, the seed and the device alone.
        """
        z = generator(seed, "profile", device).standard_normal(len(FIGURES))
        shared = dict.fromkeys(_SPEEDS, z[0])
        own = {
            name: figure.value
            * math.exp(figure.spread * shared.get(name, z[FIGURES.index(name)]))
            for name, figure in self.figures.items()
        }
        return Profile(self.name, **own)

    def median(self) -> Profile:
        """Return the device in the middle of the tier."""
        return Profile(self.name, **{n: f.value for n, f in self.figures.items()})


def read_tier(path: Path) -> Tier:
    """Read a tier from TOML: a table per figure with value, spread and source.

    The power of computing may be given as ``compute_w``, or as both ``kappa_w_per_hz3``
    and ``clock_hz``, or as ``compute_j_per_flop``, which is multiplied by
    ``forward_flop_per_s``.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    ScenarioError
        If a figure is missing, unknown, has no source or is out of range.
    """
    content, lines = read_table(path)
    name = content.pop("name", None)
    if not isinstance(name, str):
        raise ScenarioError(path, lines.get("name"), "name", "must be a text")
    figures = {
        key: _figure(path, lines.get(key), key, table) for key, table in content.items()
    }
    power = _power(path, figures)
    if unknown := figures.keys() - set(FIGURES):
        key = sorted(unknown)[0]
        known = ", ".join(FIGURES)
        raise ScenarioError(path, lines.get(key), key, f"is not one of {known}")
    needed = set(FIGURES) - set(LINK_FIGURES)
    if missing := needed - figures.keys() - {"compute_w"}:
        raise ScenarioError(path, None, sorted(missing)[0], "is missing")
    tier = Tier(name, {**figures, "compute_w": power})
    try:
        tier.median()
    except SettingError as error:
        key = str(error).partition(" ")[0]
        raise ScenarioError(path, lines.get(key), "holds", str(error)) from error
    return tier


def _figure(path: Path, line: int | None, key: str, table: Any) -> Figure:
    wanted = {"value", "source"}
    if not isinstance(table, dict) or not wanted <= table.keys() <= wanted | {"spread"}:
        raise ScenarioError(
            path, line, key, "must be a table of value, source and perhaps spread"
        )
    value, spread = table["value"], table.get("spread", 0.0)
    for number in (value, spread):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ScenarioError(path, line, key, f"holds {number!r}; give a number")
    if not 0 <= spread <= MOST_SPREAD:
        reason = f"has spread {spread}; give a number from 0 to {MOST_SPREAD}"
        raise ScenarioError(path, line, key, reason)
    if spread and key in ("transmit_dbm", "availability"):
        reason = "takes no spread: decibels and shares have no log-normal median"
        raise ScenarioError(path, line, key, reason)
    if not isinstance(table["source"], str) or not table["source"].strip():
        raise ScenarioError(path, line, key, "has no source; say so if you estimate")
    return Figure(float(value), float(spread), table["source"])


def _power(path: Path, figures: dict[str, Figure]) -> Figure:
    """Take what tells the power of computing out of the figures."""
    ways = (("compute_w",), ("kappa_w_per_hz3", "clock_hz"), ("compute_j_per_flop",))
    given = [way for way in ways if figures.keys() & set(way)]
    if len(given) != 1 or not figures.keys() >= set(given[0]):
        found = sorted(figures.keys() & {name for way in ways for name in way})
        raise ScenarioError(
            path,
            None,
            "compute_w",
            "must be given once, or kappa_w_per_hz3 with clock_hz, or "
            f"compute_j_per_flop; found {', '.join(found) or 'none of them'}",
        )
    parts = [figures.pop(name) for name in given[0]]
    value = parts[0].value
    if len(parts) == 2:
        value = dynamic_power_w(parts[0].value, parts[1].value)
    elif given[0] == ("compute_j_per_flop",):
        value *= figures["forward_flop_per_s"].value
    source = "; ".join(part.source for part in parts)
    return Figure(value, parts[0].spread, source)


def shipped_tiers() -> dict[str, Tier]:
    """Return the tiers in `profiles/`, by name.

    Examples
    --------
    >>> sorted(shipped_tiers())[:3]
    ['jetson-nano', 'jetson-orin-nx', 'laptop']
    """
    tiers = [read_tier(path) for path in sorted(PROFILES.glob("*.toml"))]
    return {tier.name: tier for tier in tiers}


def draw_profiles(
    tiers: Sequence[tuple[Tier, float]], num_devices: int, seed: int
) -> list[Profile]:
    """Draw devices from a mix of tiers.

    Parameters
    ----------
    tiers : sequence of (Tier, float)
        Tiers and their weights, above 0; which tier a device is of is drawn with them.
    num_devices : int
        How many.
    seed : int
        Of the scenario. Device i is the same for every `num_devices` above i.

    Raises
    ------
    SettingError
        If no tier has a weight, or one is negative or infinite.
    """
    total = sum(weight for _, weight in tiers)
    if not 0 < total < math.inf or any(not weight >= 0 for _, weight in tiers):
        raise SettingError(
            f"weights of tiers are {[weight for _, weight in tiers]}; give numbers of "
            "at least 0 whose sum is above 0"
        )
    ends = [sum(w for _, w in tiers[: i + 1]) / total for i in range(len(tiers))]
    drawn = []
    for device in range(num_devices):
        u = generator(seed, "tier", device).random()
        place = next((i for i, end in enumerate(ends) if u < end), len(tiers) - 1)
        drawn.append(tiers[place][0].draw(seed, device))
    return drawn
