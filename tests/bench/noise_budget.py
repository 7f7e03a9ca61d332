"""What coding adds to the noise of a mini-batch, in the gradients of weights.

Usage: python -m tests.bench.noise_budget [--datasets mnist ham10000 cifar10]
       [--cuts layer1] [--steps 50 300] [--batches 24] [--up CODEC ...]
       [--down CODEC ...]

A quarter-width ResNet-18 learns unsplit, with batches of 16. After some steps, each of
some batches gives the gradients of front and back once as they are, and once with a
codec at the cut: activations coded, or their gradient. A share is the mean squared
difference over the variance of the gradient between batches. Images are those that
`training_parity` trains on; none is of a test set.
"""

import argparse
import copy
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD

from flwr_slfac import cut
from flwr_slfac.codec import Codec, decode, encode, parse_codec
from tests.bench.datasets import load_dataset
from tests.bench.training_parity import BATCH, PLAN, WIDTH
from tests.models import resnet18

UP = (
    "waterfill(nrmse=0.1)",
    "waterfill(nrmse=0.2)",
    "waterfill(noise=0.05)",
    "waterfill(noise=0.1)",
    "waterfill(noise=0.2)",
)
DOWN = (
    "waterfill(nrmse=0.2)",
    "waterfill(nrmse=0.4)",
    "waterfill(nrmse=0.6)",
    "waterfill(noise=0.05)",
    "waterfill(noise=0.1)",
    "waterfill(noise=0.2)",
    "waterfill(noise=0.4)",
)
# The way of each, and its text.
Codecs = list[tuple[str, str]]


@dataclass
class Gradients:
    """Of one batch: of the weights of both halves, and what crossed.

    Parameters
    ----------
    front, back : Tensor (P,)
        Gradients of all weights, flat.
    activations, gradient : Tensor (N, C, H, W)
        At the cut, before coding.
    num_bytes : int
        Of the coded frame.
    """

    front: Tensor
    back: Tensor
    activations: Tensor
    gradient: Tensor
    num_bytes: int


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--datasets", nargs="+", default=list(PLAN))
    parser.add_argument("--cuts", nargs="+", default=["layer1"])
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 300])
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--up", nargs="*", default=UP)
    parser.add_argument("--down", nargs="*", default=DOWN)
    options = parser.parse_args()
    codecs = [("up", c) for c in options.up] + [("down", c) for c in options.down]
    torch.set_num_threads(1)
    print("| images | cut | step | way | codec | front | back | times fewer bytes |")
    print("|---|---|---|---|---|---|---|---|")
    for dataset in options.datasets:
        for at in options.cuts:
            steps, batches = options.steps, options.batches
            for step, cells in measure(dataset, at, steps, batches, codecs):
                print(f"| {dataset} | {at} | {step} | {cells} |", flush=True)


def measure(
    dataset: str, at: str, steps: list[int], num_batches: int, codecs: Codecs
) -> Iterator[tuple[int, str]]:
    """Learn, and after some steps yield the cells of each codec's row."""
    data = load_dataset(Path(os.environ["SLFAC_DATA_DIR"]), dataset)
    generator = torch.Generator().manual_seed(0)
    num_images = PLAN[dataset][0]
    order = torch.randperm(len(data.train_y), generator=generator)[:num_images]
    torch.manual_seed(0)
    model = resnet18(
        num_classes=data.num_classes, in_channels=data.train_x.shape[1], width=WIDTH
    )
    halves = cut(model, at=at, example=data.train_x[:2])
    front, back = halves.front, halves.back
    weights = [*front.parameters(), *back.parameters()]
    optimizer = SGD(weights, lr=0.05, momentum=0.9, weight_decay=5e-4)

    def draw() -> tuple[Tensor, Tensor]:
        picked = order[torch.randint(num_images, (BATCH,), generator=generator)]
        return data.train_x[picked], data.train_y[picked]

    for step in range(max(steps) + 1):
        if step in steps:
            batches = [draw() for _ in range(num_batches)]
            kept = copy.deepcopy((front.state_dict(), back.state_dict()))
            for cells in shares(front, back, batches, codecs):
                yield step, cells
            front.load_state_dict(kept[0])
            back.load_state_dict(kept[1])
        x, y = draw()
        optimizer.zero_grad()
        CrossEntropyLoss()(back(front(x)), y).backward()
        optimizer.step()


def shares(
    front: nn.Module,
    back: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    codecs: Codecs,
) -> Iterator[str]:
    """Yield each codec's cells."""
    plain = [gradients(front, back, *batch) for batch in batches]
    for way, text in codecs:
        codec = parse_codec(text)
        up, down = (codec, None) if way == "up" else (None, codec)
        # Each way remembers its stream, as in training.
        memories: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        coded = [gradients(front, back, *b, up, down, memories) for b in batches]
        cells = [
            _share([getattr(g, half) for g in plain], [getattr(g, half) for g in coded])
            for half in ("front", "back")
        ]
        raw = 4 * plain[0].activations.numel()
        ratio = statistics.mean(raw / g.num_bytes for g in coded)
        told = [f"{cell:.3f}" if cell else "-" for cell in cells]
        yield f"{way} | `{text}` | {told[0]} | {told[1]} | {ratio:.0f}"


def gradients(
    front: nn.Module,
    back: nn.Module,
    x: Tensor,
    y: Tensor,
    up: Codec | None = None,
    down: Codec | None = None,
    memories: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None,
) -> Gradients:
    """Return one batch's gradients, with codecs at the cut or without."""
    here, there = memories or ({}, {})
    smashed = front(x)
    frame = b""
    arrived = smashed.detach()
    if up is not None:
        frame = encode(arrived, up, memory=here)
        arrived = decode(frame, memory=there)
    arrived = arrived.clone().requires_grad_()
    loss = CrossEntropyLoss()(back(arrived), y)
    gradient, *of_back = torch.autograd.grad(loss, [arrived, *back.parameters()])
    sent = gradient
    if down is not None:
        frame = encode(
            gradient,
            down,
            role="gradient",
            activations=arrived.detach(),
            memory=here,
        )
        sent = decode(frame, memory=there)
    of_front = torch.autograd.grad(smashed, list(front.parameters()), sent)
    return Gradients(
        torch.cat([g.flatten() for g in of_front]),
        torch.cat([g.flatten() for g in of_back]),
        smashed.detach(),
        gradient,
        len(frame),
    )


def _share(plain: list[Tensor], coded: list[Tensor]) -> float:
    before, after = torch.stack(plain), torch.stack(coded)
    added = (after - before).square().sum(1).mean()
    return float(added / before.var(0).sum())


if __name__ == "__main__":
    main()
