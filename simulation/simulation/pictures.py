"""Learning curves as PNG, where matplotlib is at hand."""

from collections.abc import Sequence
from pathlib import Path

from simulation.results import RoundRow

AGAINST = {
    "time": ("end_s", "virtual time (s)"),
    "bytes": ("total_bytes", "bytes that crossed"),
    "energy": ("total_j", "energy of all devices (J)"),
}


def write_pictures(folder: Path, rounds: Sequence[RoundRow]) -> None:
    """Write ``accuracy-by-time.png``, ``-bytes`` and ``-energy``; nothing without it.

    Parameters
    ----------
    folder : Path
        Where to.
    rounds : sequence of RoundRow
        Of a run.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    for name, (field, label) in AGAINST.items():
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        x = [getattr(row, field) for row in rounds]
        axes.plot(x, [row.accuracy for row in rounds], marker="o")
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy")
        axes.grid(alpha=0.3)
        figure.savefig(folder / f"accuracy-by-{name}.png", dpi=120)
