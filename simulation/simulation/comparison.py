"""Several settings on one scenario, side by side: a table and a page."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr_slfac.report import Page, Plot, Table, write_page
from simulation.pictures import AGAINST
from simulation.row_files import write_rows

Rounds = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Compared:
    """What a setting came to.

    Parameters
    ----------
    name, settings : str
        Of the setting.
    accuracy : float
        Of its last test.
    target_round : float
        The first round that reached the target; NaN for none, as in what follows.
    target_s, target_bytes, target_j : float
        Virtual time, bytes and energy at the end of that round.
    times_first : float
        `target_s` over that of the first setting.
    """

    name: str
    settings: str
    accuracy: float
    target_round: float
    target_s: float
    target_bytes: float
    target_j: float
    times_first: float


def read_rounds(folder: Path) -> list[dict[str, float]]:
    """Return the rounds of a run's ``virtual-rounds.csv``."""
    path = folder / "virtual-rounds.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def compared(
    runs: Mapping[str, Rounds], settings: Mapping[str, str], target: float
) -> list[Compared]:
    """Return a row for each setting.

    Parameters
    ----------
    runs : mapping of str to rounds
        By name of the setting, as `read_rounds` returns them.
    settings : mapping of str to str
        What each was.
    target : float
        Accuracy that is to be reached.
    """
    rows: list[Compared] = []
    for name, rounds in runs.items():
        tested = [row for row in rounds if not math.isnan(row["accuracy"])]
        hit = next((row for row in tested if row["accuracy"] >= target), {})
        seconds = hit.get("end_s", math.nan)
        first_s = rows[0].target_s if rows else seconds
        rows.append(
            Compared(
                name,
                settings[name],
                tested[-1]["accuracy"] if tested else math.nan,
                hit.get("server_round", math.nan),
                seconds,
                hit.get("total_bytes", math.nan),
                hit.get("total_j", math.nan),
                seconds / first_s if first_s else math.nan,
            )
        )
    return rows


def write_comparison(
    folder: Path,
    scenario: str,
    runs: Mapping[str, Rounds],
    settings: Mapping[str, str],
    target: float,
) -> list[Compared]:
    """Write ``compare.csv`` and ``compare.html``; return the rows.

    Parameters
    ----------
    folder : Path
        Where to.
    scenario : str
        Name of the scenario.
    runs, settings, target
        As `compared`.
    """
    rows = compared(runs, settings, target)
    write_rows(folder / "compare", Compared, rows)
    curves = [
        Plot(
            f"accuracy-by-{name}",
            f"Accuracy on the server's test against {label}",
            [
                {
                    "x": [row[field] for row in rounds],
                    "y": [row["accuracy"] for row in rounds],
                    **{"mode": "lines+markers", "name": setting},
                }
                for setting, rounds in runs.items()
            ],
            label,
            "accuracy",
        )
        for name, (field, label) in AGAINST.items()
    ]
    head = list(Compared.__dataclass_fields__)
    table = Table(
        f"What it took to reach {target:g}",
        head,
        [[getattr(row, name) for name in head] for row in rows],
    )
    facts = {"settings": len(runs), "target accuracy": target}
    page = Page(f"Settings compared on {scenario}", facts, [table, *curves])
    write_page(folder / "compare.html", page)
    return rows
