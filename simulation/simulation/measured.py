"""Devices that somebody measured, from CSV files."""

import csv
from collections.abc import Mapping
from pathlib import Path

from flwr_slfac import SettingError
from simulation.errors import ScenarioError
from simulation.numbers import require_positive
from simulation.profiles import FIGURES, LINK_FIGURES, Profile
from simulation.tiers import Tier

_FEDSCALE = {"computation", "communication"}


def read_devices(path: Path, tiers: Mapping[str, Tier]) -> list[Profile]:
    """Read one device a row; columns are the fields of `Profile`, units in their names.

    Parameters
    ----------
    path : Path
        CSV with a header. A column ``tier`` names the kind of device; where it is one
        of `tiers`, figures without a column are the median of that tier.
    tiers : mapping of str to Tier
        Tiers by name.

    Raises
    ------
    ScenarioError
        If a column is unknown or missing, or a cell is no number or out of range.
    """
    rows, names = _read(path)
    if unknown := set(names) - {"tier", *FIGURES}:
        reason = f"is no column of devices; use tier, {', '.join(FIGURES)}"
        raise ScenarioError(path, 1, sorted(unknown)[0], reason)
    devices = []
    for line, row in enumerate(rows, start=2):
        tier = row.pop("tier", "measured")
        known = tiers[tier].figures if tier in tiers else {}
        own = {name: figure.value for name, figure in known.items()}
        own |= {name: _number(path, line, name, row[name]) for name in row}
        if missing := set(FIGURES) - set(LINK_FIGURES) - own.keys():
            reason = f"has no column, and tier {tier!r} is not one that has it"
            raise ScenarioError(path, line, sorted(missing)[0], reason)
        devices.append(_profile(path, line, tier, own))
    return devices


def read_fedscale(
    path: Path, tier: Tier, reference_forward_flops: float
) -> list[Profile]:
    """Read FedScale's device capacities, as CSV with its two names as columns.

    FedScale keeps them in a pickle, which is not read here: it runs what it holds. Its
    units, from `ClientMetadata.get_completion_time` and `Aggregator` of its source:
    ``computation`` is milliseconds of inference a sample, of which a training step is
    taken as three; ``communication`` is 1024 bits a second, in either direction. Three
    inferences are a forward and a backward of twice its operations at equal speed.

    Parameters
    ----------
    path : Path
        CSV with columns ``computation`` and ``communication``; others are left unread.
    tier : Tier
        Where all other figures are taken from, its median.
    reference_forward_flops : float
        Forward operations a sample of the model that was measured; FedScale does not
        record it.

    Raises
    ------
    ScenarioError
        If a column is missing, or a cell is no number above 0.
    """
    require_positive("reference_forward_flops", reference_forward_flops)
    rows, names = _read(path)
    if missing := _FEDSCALE - set(names):
        raise ScenarioError(path, 1, sorted(missing)[0], "has no column")
    medians = {name: figure.value for name, figure in tier.figures.items()}
    devices = []
    for line, row in enumerate(rows, start=2):
        milliseconds = _number(path, line, "computation", row["computation"])
        kbit_per_s = _number(path, line, "communication", row["communication"])
        for name, value in zip(
            _FEDSCALE_ORDER, (milliseconds, kbit_per_s), strict=True
        ):
            if not value > 0:
                reason = f"is {value}; give a number above 0"
                raise ScenarioError(path, line, name, reason)
        speed = reference_forward_flops / (milliseconds / 1000)
        rate = kbit_per_s * 1024
        own = medians | {
            "forward_flop_per_s": speed,
            "backward_flop_per_s": speed,
            "up_bit_per_s": rate,
            "down_bit_per_s": rate,
        }
        devices.append(_profile(path, line, "fedscale", own))
    return devices


_FEDSCALE_ORDER = ("computation", "communication")


def _read(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(path, None, "cannot be read:", str(error)) from error
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            reason = f"has other than the {len(reader.fieldnames or [])} of the header"
            raise ScenarioError(path, line, "number of cells", reason)
    if not rows:
        raise ScenarioError(path, None, "rows", "are none; give a device a row")
    return rows, list(reader.fieldnames or [])


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        reason = f"is {cell!r}; give a number"
        raise ScenarioError(path, line, name, reason) from None


def _profile(path: Path, line: int, tier: str, own: Mapping[str, float]) -> Profile:
    try:
        return Profile(tier, **own)
    except SettingError as error:
        raise ScenarioError(path, line, "holds", str(error)) from error
