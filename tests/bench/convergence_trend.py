"""The final loss of a small network along each setting, beside the bound's trend.

Usage: python -m tests.bench.convergence_trend

The perceptron of `convergence_digits` on the digits of scikit-learn, one factor at a
time around the centre of `lightweight_table`: I = 5 steps, rho 0.3 of weights, 8 bits,
p 0.1. The bound has constants that are measured along the run of the centre, but for
the smoothness: 1 / step, the largest that the theorem allows at this step. So what it
says of a network that is less smooth is a trend, not a bound.
"""

import statistics
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flwr_slfac.lightweight import DropMask, Objective, Training, convergence_bound
from tests.bench.convergence_digits import (
    BATCH,
    NUM_DEVICES,
    NUM_STEPS,
    STEP_SIZE,
    Run,
    Scheme,
    digits,
    weights_to_keep,
)
from tests.bench.revision import head

CENTRE = Scheme(aggregate_every=5, bits=8, rho=0.3, p=0.1)
AXES: dict[str, list[object]] = {
    "aggregate_every": [1, 5, 10, 30],
    "rho": [0.0, 0.1, 0.3, 0.5, 0.7],
    "bits": [2, 4, 8, None],
    "p": [0.0, 0.1, 0.3],
}
SEEDS = (0, 1, 2)
NUM_LAST = 50  # steps over which the training loss is a mean
NUM_DRAWS = 20  # batches for each variance


class Measured(Run):
    """A run that keeps its training loss, and constants of the bound on its way."""

    def __init__(self, scheme: Scheme, seed: int) -> None:
        super().__init__(scheme, seed)
        self.losses: list[float] = []
        self.error = 1.0
        self.constants: list[dict[str, float]] = []

    def step(self, step: int) -> None:
        """Measure before the step."""
        if step % 100 == 50:
            self.constants.append(self.measure())
        if step >= NUM_STEPS - NUM_LAST:
            devices, _, _ = digits()
            with torch.no_grad():
                losses = [
                    float(cross_entropy(self.back(front(x)), y))
                    for front, (x, y) in zip(self.fronts, devices, strict=True)
                ]
            self.losses.append(statistics.mean(losses))
        super().step(step)

    def measure(self) -> dict[str, float]:
        """Return squares that the bound is of, means over devices."""
        devices, _, _ = digits()
        found = []
        for front, (x, y) in zip(self.fronts, devices, strict=True):
            whole = gradient(front, self.back, x, y)
            plain, dropped = [], []
            for draw in range(NUM_DRAWS):
                batch = torch.randint(len(y), (BATCH,), generator=self.generator)
                own = gradient(front, self.back, x[batch], y[batch])
                plain.append([a - b for a, b in zip(own, whole, strict=True)])
                masked = gradient(front, self.back, x[batch], y[batch], draw)
                dropped.append([a - b for a, b in zip(masked, own, strict=True)])
            num_front = len(list(front.parameters()))
            ratio = 0.1 / 0.9
            found.append(
                {
                    "noise": statistics.mean(map(square, plain)),
                    "front_noise": statistics.mean(
                        square(d[:num_front]) for d in plain
                    ),
                    "front_gradient": square(whole[:num_front]),
                    "front_norm": square(w.detach() for w in front.parameters()),
                    "dropout": statistics.mean(map(square, dropped)) / ratio,
                }
            )
        return {k: statistics.mean(f[k] for f in found) for k in found[0]}


def gradient(
    front: nn.Module,
    back: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    seed: int | None = None,
) -> list[torch.Tensor]:
    """Return the gradient of both halves, with dropout of 0.1 if a seed is given."""
    out = front(x)
    if seed is not None:
        mask = DropMask(out.shape, 0.1, seed, per="example")
        out = mask.scatter(mask.gather(out))
    weights = [*front.parameters(), *back.parameters()]
    return list(torch.autograd.grad(cross_entropy(back(out), y), weights))


def square(tensors: Iterable[torch.Tensor]) -> float:
    """Return the squared norm of all."""
    return sum(float(t.detach().square().sum()) for t in tensors)


def pruning_error(rho: float) -> float:
    """Return delta: what pruning takes of a new front's norm, a mean over seeds."""
    shares = []
    for seed in SEEDS:
        front = Run(Scheme(), seed).mean
        masks = weights_to_keep(front, rho)
        gone = [w * (1 - masks[n]) for n, w in front.named_parameters() if n in masks]
        shares.append((square(gone) / square(front.parameters())) ** 0.5)
    return statistics.mean(shares)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    runs: dict[Scheme, list[Measured]] = {}
    for axis, values in AXES.items():
        for value in values:
            scheme = replace(CENTRE, **{axis: value})
            if scheme not in runs:
                runs[scheme] = [Measured(scheme, seed) for seed in SEEDS]
                for run in runs[scheme]:
                    run.error = run.outcome().test_error
    taken = [c for run in runs[CENTRE] for c in run.constants]
    mean = {k: statistics.mean(c[k] for c in taken) for k in taken[0]}
    objective = Objective(
        gap=2.303,  # log of ten classes; no loss is below 0
        smoothness=1 / STEP_SIZE,
        noise_variance=mean["noise"],
        front_gradient=mean["front_gradient"] ** 0.5,
        front_noise_variance=mean["front_noise"],
        front_norm=mean["front_norm"] ** 0.5,
        dropout_variance=mean["dropout"],
    )
    print(f"Commit {head()}, torch {torch.__version__}. Constants: {objective}\n")
    print("| setting | final loss | sd | test error | bound | start, noise, bias |")
    print("|---|---|---|---|---|---|")
    for axis, values in AXES.items():
        for value in values:
            scheme = replace(CENTRE, **{axis: value})
            losses = [statistics.mean(run.losses) for run in runs[scheme]]
            error = statistics.mean(run.error for run in runs[scheme])
            bound = convergence_bound(objective, training_of(scheme))
            print(
                f"| {axis} = {value} | {statistics.mean(losses):.4f} "
                f"| {statistics.stdev(losses):.4f} | {100 * error:.1f} % "
                f"| {bound.total:.4g} "
                f"| {bound.start:.3g}, {bound.noise:.3g}, {bound.bias:.3g} |"
            )


def training_of(scheme: Scheme) -> Training:
    """Return the bound's view of a run: devices share a mask."""
    return Training(
        num_steps=NUM_STEPS,
        step_size=STEP_SIZE,
        num_devices=NUM_DEVICES,
        aggregate_every=scheme.aggregate_every,
        gradient_bits=scheme.bits,
        update_bits=scheme.bits,
        pruning_error=pruning_error(scheme.rho),
        activation_dropout=scheme.p,
    )


if __name__ == "__main__":
    main()
