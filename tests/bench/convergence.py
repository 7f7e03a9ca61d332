"""The convergence bound against measurement, and the trends on a small network.

Usage: python tests/bench/convergence.py

Writes convergence.md, convergence_bound.png and convergence_trends.png to
tests/bench/results. The bound is checked on linear models whose constants are
computed (`convergence_linear`); the trends are those of a perceptron on the digits of
scikit-learn (`convergence_digits`). Takes about five minutes on one core.
"""

import time
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import torch

from tests.bench import convergence_digits as digits
from tests.bench import convergence_linear as linear
from tests.bench.revision import head

RESULTS = Path(__file__).parent / "results"
LABELS = {
    "aggregate_every": "steps between aggregations I",
    "bits": "bits of gradients and updates",
    "rho": "pruned share rho",
    "p": "dropout at the cut p",
    "cut": "layers before the cut (I = 10)",
}


def main() -> None:
    """Run both parts and write the report."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    checked = {
        "least squares": linear.check(logistic=False),
        "logistic": linear.check(logistic=True),
    }
    trends = digits.trends()
    plot_bound(checked)
    plot_trends(trends)
    text = [*header(time.perf_counter() - start), *bound_text(checked)]
    text += trend_text(trends)
    (RESULTS / "convergence.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    broken = [p for points in checked.values() for p in points if p.measured > p.bound]
    assert not broken, f"the bound is broken at {broken}"


def header(seconds: float) -> list[str]:
    """Return what was run, where."""
    commit = head()
    return [
        "# Convergence of lightweight split training",
        "",
        f"`python tests/bench/convergence.py`, commit {commit} with the working tree, "
        f"2 cores, x86-64, CPU only, torch {torch.__version__}, {seconds:.0f} s.",
        "",
    ]


def bound_text(checked: dict[str, list[linear.Point]]) -> list[str]:
    """Return the table of the bound against measurement, by setting."""
    lines = [
        "## Measured mean squared gradient against the bound",
        "",
        f"Linear models of {linear.NUM_FEATURES} features split in two, "
        f"{linear.NUM_DEVICES} unlike devices, one example a step, step "
        f"{linear.STEP} / L, {linear.NUM_RUNS} runs of "
        f"{linear.NUM_STEPS} steps. Grid: features "
        "before the cut 8, 16, 24; I 1, 4, 16; bits (gradients and updates) 32, 8, 3; "
        "rho 0, 0.3 on all devices, 0.3 on every other; p 0, 0.25, around the centre "
        "0. The rows average over the rest of the grid.",
        "",
    ]
    for name, points in checked.items():
        under = sum(p.measured <= p.bound for p in points)
        tight = sorted(p.bound / p.measured for p in points)
        lines += [
            f"### {name}: under the bound at {under} of {len(points)} points",
            "",
            f"bound / measured: smallest {tight[0]:.1f}, median "
            f"{tight[len(tight) // 2]:.1f}, largest {tight[-1]:.1f}",
            "",
            "| setting | measured | bound |",
            "|---|---|---|",
        ]
        for axis in ("cut", "aggregate_every", "bits", "rho", "unlike", "p"):
            for value in sorted({getattr(p.setting, axis) for p in points}, key=order):
                some = [p for p in points if getattr(p.setting, axis) == value]
                measured = sum(p.measured for p in some) / len(some)
                bound = sum(p.bound for p in some) / len(some)
                lines.append(f"| {axis} = {value} | {measured:.4g} | {bound:.4g} |")
        lines.append("")
    return lines


def order(value: object) -> float:
    """Return a key that puts exact (None) last."""
    return 99.0 if value is None else float(value)  # type: ignore[arg-type]


def trend_text(trends: dict[str, list[tuple[object, digits.Outcome]]]) -> list[str]:
    """Return the table of trends."""
    lines = [
        "## Trends on a real network",
        "",
        f"Perceptron 64-{digits.WIDTH}-{digits.WIDTH}-{digits.WIDTH}-10 on the digits "
        f"of scikit-learn, {digits.NUM_DEVICES} devices of two classes each, parallel "
        f"scheme, SGD {digits.STEP_SIZE}, batch {digits.BATCH}, {digits.NUM_STEPS} "
        f"steps, {digits.NUM_SEEDS} seeds; cut after two layers. The gradient is that "
        "of the averaged, unpruned model over all training examples, its square "
        "averaged over the aggregations of the second half; it may be small because "
        "little was learned, so read it with the test error.",
        "",
        "| setting | mean squared gradient | test error |",
        "|---|---|---|",
    ]
    for axis, rows in trends.items():
        for value, outcome in rows:
            lines.append(
                f"| {axis} = {value} | {outcome.squared_gradient:.4g} | "
                f"{100 * outcome.test_error:.1f} % |"
            )
    return lines


def plot_bound(checked: dict[str, list[linear.Point]]) -> None:
    """Plot the bound against measurement, with the line where they are equal."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    for axis, (name, points) in zip(axes, checked.items(), strict=True):
        for every, marker in ((1, "o"), (4, "s"), (16, "^")):
            some = [p for p in points if p.setting.aggregate_every == every]
            measured, bounds = [p.measured for p in some], [p.bound for p in some]
            axis.loglog(measured, bounds, marker, ms=4, alpha=0.6, label=f"I = {every}")
        ends = [min(p.measured for p in points), max(p.measured for p in points)]
        axis.loglog(ends, ends, "k--", lw=1, label="equal")
        axis.set(title=name, xlabel="measured", ylabel="bound")
        axis.legend()
    figure.suptitle("mean squared gradient norm")
    figure.savefig(RESULTS / "convergence_bound.png", dpi=110)


def plot_trends(trends: dict[str, list[tuple[object, digits.Outcome]]]) -> None:
    """Plot gradient and test error along each setting."""
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.6), layout="constrained")
    for axis, (name, rows) in zip(axes, trends.items(), strict=True):
        places = range(len(rows))
        gradients = [outcome.squared_gradient for _, outcome in rows]
        errors = [100 * outcome.test_error for _, outcome in rows]
        axis.plot(places, gradients, "o-", color="tab:blue")
        axis.set_xticks(places, ["exact" if v is None else str(v) for v, _ in rows])
        axis.set(xlabel=LABELS[name], ylim=(0, 1.1 * max(gradients)))
        axis.set_ylabel("mean squared gradient", color="tab:blue")
        right = axis.twinx()
        right.plot(places, errors, "s--", color="tab:red")
        right.set_ylabel("test error, %", color="tab:red")
        right.set_ylim(0, 1.1 * max(errors))
    figure.savefig(RESULTS / "convergence_trends.png", dpi=110)


if __name__ == "__main__":
    main()
