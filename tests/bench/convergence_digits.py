"""The trends of lightweight split training on a small real network.

A perceptron of four layers on the 8x8 digits of scikit-learn, five devices of two
classes each; the first layers are the fronts, the rest is one back that takes one step
on the mean of the devices' gradients (the parallel scheme). Plain SGD.
"""

import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from flwr_slfac.lightweight import DropMask
from flwr_slfac.lightweight.quantization import (
    pack_update,
    quantize_gradients,
    unpack_update,
)

NUM_DEVICES, BATCH, WIDTH = 5, 16, 64
NUM_STEPS, STEP_SIZE, NUM_SEEDS = 400, 0.1, 2
Tensor = torch.Tensor
Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scheme:
    """What is varied, one at a time."""

    aggregate_every: int = 1
    bits: int | None = None
    rho: float = 0.0
    p: float = 0.0
    cut: int = 2


@dataclass(frozen=True)
class Outcome:
    """Mean squared gradient over the second half of training, and test error."""

    squared_gradient: float
    test_error: float


@cache
def digits() -> tuple[list[Examples], Examples, Examples]:
    """Return the devices' examples, all training examples and the test examples."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32)[order] / 16
    y = torch.tensor(labels)[order]
    train, test = (x[:1400], y[:1400]), (x[1400:], y[1400:])
    devices = []
    for k in range(NUM_DEVICES):
        own = (train[1] // 2) == k
        devices.append((train[0][own], train[1][own]))
    return devices, train, test


def build(seed: int) -> nn.Sequential:
    """Return the whole network; every layer but the last is linear and ReLU."""
    torch.manual_seed(seed)
    sizes = [64, WIDTH, WIDTH, WIDTH]
    hidden = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 10))


def mean_state(fronts: list[nn.Module]) -> dict[str, Tensor]:
    """Return the average of the fronts."""
    states = [front.state_dict() for front in fronts]
    return {k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]}


def weights_to_keep(front: nn.Module, rho: float) -> dict[str, Tensor]:
    """Return masks that keep each weight matrix's largest entries."""
    masks = {}
    for name, weight in front.named_parameters():
        if weight.ndim == 2 and rho:
            level = weight.detach().abs().flatten().quantile(rho)
            masks[name] = (weight.detach().abs() > level).float()
    return masks


def apply_masks(front: nn.Module, masks: dict[str, Tensor], gradients: bool) -> None:
    """Zero what is pruned, in the weights or in their gradients."""
    with torch.no_grad():
        for name, weight in front.named_parameters():
            if name in masks:
                (weight.grad if gradients else weight).mul_(masks[name])


def descend(module: nn.Module) -> None:
    """Take a step of plain SGD."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.sub_(STEP_SIZE * weight.grad)
            weight.grad = None


class Run:
    """One training run."""

    def __init__(self, scheme: Scheme, seed: int) -> None:
        self.scheme, self.seed = scheme, seed
        network = build(seed)
        self.mean, self.back = network[: scheme.cut], network[scheme.cut :]
        self.generator = torch.Generator().manual_seed(seed)
        self.fronts: list[nn.Module] = []
        self.received: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}

    def outcome(self) -> Outcome:
        """Train, and measure the joint gradient of the averaged model."""
        every, measured = self.scheme.aggregate_every, []
        for step in range(NUM_STEPS):
            if step % every == 0:
                self.hand_out()
            self.step(step)
            if (step + 1) % every == 0:
                self.collect()
                if step >= NUM_STEPS // 2:
                    measured.append(self.squared_gradient())
        _, _, (x, y) = digits()
        with torch.no_grad():
            wrong = self.back(self.mean(x)).argmax(1) != y
        mean = sum(measured) / len(measured)
        return Outcome(mean, float(wrong.float().mean()))

    def hand_out(self) -> None:
        """Prune the averaged front and give every device a copy."""
        pruned = copy.deepcopy(self.mean)
        self.masks = weights_to_keep(pruned, self.scheme.rho)
        apply_masks(pruned, self.masks, gradients=False)
        self.received = copy.deepcopy(pruned.state_dict())
        self.fronts = [copy.deepcopy(pruned) for _ in range(NUM_DEVICES)]

    def step(self, step: int) -> None:
        """Let every device take a step, and the back one on their mean gradient."""
        devices, _, _ = digits()
        for k, (front, (x, y)) in enumerate(zip(self.fronts, devices, strict=True)):
            batch = torch.randint(len(y), (BATCH,), generator=self.generator)
            out = front(x[batch])
            seed = step * NUM_DEVICES + k
            mask = DropMask(out.shape, self.scheme.p, seed, per="example")
            loss = cross_entropy(self.back(mask.scatter(mask.gather(out))), y[batch])
            loss.backward()
            apply_masks(front, self.masks, gradients=True)
            if self.scheme.bits is not None:
                quantize_gradients(front.parameters(), self.scheme.bits, self.generator)
            descend(front)
        for weight in self.back.parameters():
            weight.grad /= NUM_DEVICES
        descend(self.back)

    def collect(self) -> None:
        """Average the fronts as they arrive; what is pruned stays as it was."""
        if self.scheme.bits is not None:
            for front in self.fronts:
                data = pack_update(
                    front.state_dict(), self.received, self.scheme.bits, self.generator
                )
                front.load_state_dict(unpack_update(data, self.received))
        state = mean_state(self.fronts)
        for name, mask in self.masks.items():
            state[name] = torch.where(
                mask > 0, state[name], self.mean.state_dict()[name]
            )
        self.mean.load_state_dict(state)

    def squared_gradient(self) -> float:
        """Return |grad f|^2 of the whole averaged model over all training examples."""
        model = nn.Sequential(*copy.deepcopy(self.mean), *copy.deepcopy(self.back))
        _, (x, y), _ = digits()
        cross_entropy(model(x), y).backward()
        return sum(float(w.grad.square().sum()) for w in model.parameters())


AXES: dict[str, list[object]] = {
    "aggregate_every": [1, 2, 5, 10, 20],
    "bits": [2, 3, 4, 8, None],
    "rho": [0.0, 0.3, 0.5, 0.7, 0.9],
    "p": [0.0, 0.1, 0.3, 0.5],
    "cut": [1, 2, 3],
}


def trends() -> dict[str, list[tuple[object, Outcome]]]:
    """Vary one setting at a time; the cut at I = 10, where it matters."""
    found = {}
    for axis, values in AXES.items():
        base = Scheme(aggregate_every=10) if axis == "cut" else Scheme()
        found[axis] = [(v, mean_outcome(replace(base, **{axis: v}))) for v in values]
    return found


@cache
def mean_outcome(scheme: Scheme) -> Outcome:
    """Return the mean over seeds."""
    outcomes = [Run(scheme, seed).outcome() for seed in range(NUM_SEEDS)]
    return Outcome(
        sum(o.squared_gradient for o in outcomes) / NUM_SEEDS,
        sum(o.test_error for o in outcomes) / NUM_SEEDS,
    )
