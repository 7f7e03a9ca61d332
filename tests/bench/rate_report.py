"""Tables and plots of `tests.bench.rate_distortion`."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

from tests.bench.rate_curves import Curve

mpl.use("Agg")
from matplotlib import pyplot as plt

BARS = {"slfac": 0.40, "SZ3": 0.85, "zfp": 0.60}
_NOTES = (
    "A tensor below its Gaussian bound is no contradiction: within a band coefficients",
    "are not Gaussian, and of all densities of one variance the Gaussian costs most.",
    "SL-FAC and the peers count with the lower hull of all settings tried.",
)
GAP, HIT = 0.15, 0.02


@dataclass(frozen=True)
class Row:
    """One stream at one error; rates in bits per value.

    Parameters
    ----------
    name : str
        ``model/data/phase/role``.
    error, got : float
        Relative error asked for, and measured.
    alone, steady : float
        `Waterfill` without memory, and in the third step of a stream.
    rate_hit : float
        Size of a frame that was asked to be as large as that of `alone`, over it.
    bound : float
        Gaussian rate-distortion bound of the plan's bands.
    others : dict
        Other codecs; None where no setting reaches the error.
    """

    name: str
    error: float
    got: float
    alone: float
    steady: float
    rate_hit: float
    bound: float
    others: dict[str, float | None]


def report(rows: Sequence[Row], errors: Sequence[float]) -> str:
    """Return the bars, means and every row as Markdown."""
    parts = ["## Bars", *_bars(rows), "", *_NOTES, ""]
    parts += ["## Bits per value, geometric mean", *_means(rows, errors), ""]
    parts += ["## Every tensor", *_all(rows)]
    return "\n".join(parts) + "\n"


def _bars(rows: Sequence[Row]) -> list[str]:
    lines = ["| what | bar | measured | held |", "|---|---|---|---|"]

    def add(what: str, bar: float, measured: float) -> None:
        held = "yes" if measured <= bar else "**no**"
        lines.append(f"| {what} | {bar:g} | {measured:.3f} | {held} |")

    for other, bar in BARS.items():
        for kind in ("alone", "steady"):
            ratios = _ratios(rows, other, kind)
            name = f"Waterfill {kind} / {other}"
            add(f"{name}, geometric mean", bar, statistics.geometric_mean(ratios))
            add(f"{name}, worst tensor", 1.0, max(ratios))
    misses = sorted(abs(row.got / row.error - 1) for row in rows)
    add("relative error off target, worst", HIT, misses[-1])
    over = sum(miss > HIT for miss in misses)
    add(f"share of {len(rows)} with error off by more than 2 %", 0, over / len(rows))
    add("bits off target, worst", HIT, max(abs(row.rate_hit - 1) for row in rows))
    add("bits above the bound, mean", GAP, statistics.mean(map(_gap, rows)))
    add("bits above the bound, worst", GAP, max(map(_gap, rows)))
    return lines


def _gap(row: Row) -> float:
    return row.alone - row.bound


def _ratios(rows: Sequence[Row], other: str, kind: str) -> list[float]:
    pairs = [(getattr(row, kind), row.others[other]) for row in rows]
    return [ours / theirs for ours, theirs in pairs if theirs is not None]


def _means(rows: Sequence[Row], errors: Sequence[float]) -> list[str]:
    """Return a line for each codec; a count where not all tensors reach the error."""
    lines = [
        "In brackets: how many tensors reach the error, where not all do.",
        "",
        "| codec | " + " | ".join(f"{e:g}" for e in errors) + " |",
        "|---" * (len(errors) + 1) + "|",
    ]
    for kind in ("alone", "steady", "bound", *rows[0].others):
        cells = []
        for error in errors:
            here = [row for row in rows if row.error == error]
            bits = [row.others.get(kind, getattr(row, kind, None)) for row in here]
            some = [max(b, 1e-4) for b in bits if b is not None]
            cell = f"{statistics.geometric_mean(some):.3f}" if some else "-"
            cells.append(cell + (f" ({len(some)})" if len(some) < len(here) else ""))
        name = kind if kind in rows[0].others else f"waterfill, {kind}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _all(rows: Sequence[Row]) -> list[str]:
    others = tuple(BARS)
    head = ["tensor", "error", "got", "alone", "steady", "bound", *others]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        numbers = [row.alone, row.steady, row.bound]
        numbers += [row.others[o] or float("nan") for o in others]
        cells = [row.name, f"{row.error:g}", f"{row.got:.4f}"]
        lines.append("| " + " | ".join(cells + [f"{n:.3f}" for n in numbers]) + " |")
    return lines


def plot(rows: Sequence[Row], curves: dict[str, list[Curve]], path: Path) -> None:
    """Draw bits against error: geometric means, activations beside gradients."""
    errors = sorted({row.error for row in rows})
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True)
    for axis, role in zip(axes, ("activation", "gradient"), strict=True):
        axis.set_prop_cycle(color=mpl.colormaps["tab20"].colors)
        own = [row for row in rows if f"/{role}" in row.name]
        for kind in ("alone", "bound", *curves):
            line = [_mean(own, kind, error) for error in errors]
            style = "-" if kind == "alone" else ("k:" if kind == "bound" else "--")
            name = f"waterfill, {kind}" if kind in ("alone", "bound") else kind
            axis.plot(errors, line, style, marker=".", label=name)
        axis.set(title=role, xlabel="relative error", yscale="log", xscale="log")
        axis.set_xticks(errors, [f"{e:g}" for e in errors])
        axis.minorticks_off()
    axes[0].set_ylabel("bits per value, geometric mean")
    axes[1].legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _mean(rows: Sequence[Row], kind: str, error: float) -> float:
    """Return the geometric mean, or NaN where a tensor does not reach the error."""
    bits = [
        row.others.get(kind, getattr(row, kind, None))
        for row in rows
        if row.error == error
    ]
    some = [max(b, 1e-4) for b in bits if b is not None]
    complete = bool(some) and len(some) == len(bits)
    return statistics.geometric_mean(some) if complete else float("nan")
