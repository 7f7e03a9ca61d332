"""What lightweight training costs in accuracy, one reduction at a time and together.

Usage: python -m tests.bench.lightweight_accuracy [--plan short|long]
       [--datasets cifar10 mnist] [--partitions iid dirichlet] [--seeds 0 1 2]
       [--arms plain together ...] [--against plain] [--out FILE] [--markdown FILE]

Quarter-width VGG-19-BN without its dropout, cut after its second pooling (CIFAR-10
subset), and ResNet-18 cut after `layer1` (MNIST), ten devices in one process, scheme
`parallel`, identity codec; images come from SLFAC_DATA_DIR. Every finished run is
appended to FILE as JSON, and runs that are there are not repeated.

The short plan has rounds of a few steps, with periods in rounds; the long one has
rounds of 50 steps, with periods in steps.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import TensorDataset

from flwr_slfac import Device, Lightweight, cut
from flwr_slfac.split import LocalLink, ServerHalf, TrainRequest, train_locally
from flwr_slfac.split.local_run import LocalResult
from flwr_slfac.split.protocol import TrainAnswer, TrainReply
from flwr_slfac.states import State
from tests.bench.datasets import load_dataset
from tests.models import resnet18, vgg19_bn

NUM_DEVICES, BATCH = 10, 8
LR = 0.02
TOGETHER = {
    "prune": 0.3,
    "criterion": "increase",
    "gradient_bits": 8,
    "activation_dropout": 0.1,
    "aggregate_every": 2,
    "period": "round",
}
STEPS_OF_5 = {"aggregate_every": 5, "period": "step"}
ARMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "together": TOGETHER,
    "together by weight": {**TOGETHER, "criterion": "weight"},
    **{
        f"rho {rho}": {"prune": rho, "criterion": "increase"}
        for rho in (0.1, 0.3, 0.5, 0.7)
    },
    "rho 0.3 by weight": {"prune": 0.3},
    **{f"{bits} bits": {"gradient_bits": bits} for bits in (8, 4)},
    **{f"p {p}": {"activation_dropout": p} for p in (0.1, 0.3)},
    **{f"I {every}": {"aggregate_every": every, "period": "round"} for every in (2, 5)},
    "I 5 steps": STEPS_OF_5,
    **{
        f"together, I {every} steps": {
            **TOGETHER,
            **STEPS_OF_5,
            "aggregate_every": every,
        }
        for every in (1, 5, 10, 30)
    },
    "together, I 1 round": {**TOGETHER, "aggregate_every": 1, "period": "round"},
    "together gradually, I 5 steps": {**TOGETHER, **STEPS_OF_5, "prune_rounds": 4},
}


@dataclass(frozen=True)
class Plan:
    """What is trained on a dataset."""

    num_images: int
    num_rounds: int
    max_steps: int
    cut: str


PLANS = {
    # In long rounds fronts drift apart, those of plain training too.
    "short": {
        "cifar10": Plan(10_000, 1000, 2, "features.13"),
        "mnist": Plan(4000, 6, 50, "layer1"),
    },
    "long": {
        "cifar10": Plan(10_000, 8, 50, "features.13"),
        "mnist": Plan(4000, 3, 50, "layer1"),
    },
}
DATASETS = ["cifar10", "mnist"]


class CountingLink(LocalLink):
    """Counts the bytes of whole fronts, which the ledger leaves to transports."""

    down = up = 0

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Count fronts both ways."""
        for request in requests.values():
            begun = request.begin.front if request.begin else None
            type(self).down += _num_bytes(begun) + _num_bytes(request.front)
        answers = super().train(requests)
        replies = [a for a in answers.values() if isinstance(a, TrainReply)]
        type(self).up += sum(_num_bytes(r.front) for r in replies)
        return answers


def _num_bytes(front: State | None) -> int:
    return sum(t.nbytes for t in front.values()) if front else 0


def main() -> None:
    """Train every arm on every dataset and partition with every seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", choices=list(PLANS), default="short")
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--partitions", nargs="+", default=["iid", "dirichlet"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--against", choices=list(ARMS), default="plain")
    parser.add_argument("--out", type=Path, default=Path("lightweight.jsonl"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text = options.out.read_text() if options.out.exists() else ""
    done = [json.loads(line) for line in text.splitlines()]
    for seed in options.seeds:
        for partition in options.partitions:
            for dataset in options.datasets:
                for arm in options.arms:
                    names = "dataset", "partition", "arm", "seed"
                    key = dict(zip(names, (dataset, partition, arm, seed), strict=True))
                    if any(key.items() <= row.items() for row in done):
                        continue
                    plan = PLANS[options.plan][dataset]
                    row = {**key, **train(dataset, partition, arm, seed, plan)}
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
                    done.append(row)
    text = table(done, options.against)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


def build(dataset: str, num_classes: int, channels: int) -> nn.Module:
    """Build the quarter-width network of a dataset."""
    if dataset == "cifar10":
        network = vgg19_bn(num_classes=num_classes, in_channels=channels, width=16)
        for layer in network.modules():
            # So narrow a network learns nothing in so short a run with dropout.
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        return network
    return resnet18(num_classes=num_classes, in_channels=channels, width=16)


def train(
    dataset: str, partition: str, arm: str, seed: int, plan: Plan
) -> dict[str, float]:
    """Train once; return accuracy, seconds and what a step costs on a device."""
    setting = ARMS[arm]
    data = load_dataset(Path(os.environ["SLFAC_DATA_DIR"]), dataset)
    rng = np.random.default_rng(seed)
    images = rng.permutation(len(data.train_y))[: plan.num_images]
    torch.manual_seed(seed)
    model = build(dataset, data.num_classes, data.train_x.shape[1])
    halves = cut(model, at=plan.cut)
    optimizer = partial(SGD, lr=LR, momentum=0.9, weight_decay=5e-4)
    scheduler = partial(CosineAnnealingLR, T_max=plan.num_rounds)
    parts = split(images, data.train_y, partition, rng)
    devices = [
        Device(
            cut(model, at=plan.cut).front,
            optimizer=optimizer,
            scheduler=scheduler,
            train_set=TensorDataset(data.train_x[part], data.train_y[part]),
            batch_size=BATCH,
            max_steps=plan.max_steps,
            drop_last=True,
        )
        for part in parts
    ]
    server = ServerHalf(
        halves.back,
        CrossEntropyLoss(),
        optimizer,
        scheme="parallel",
        scheduler=scheduler,
    )
    link = type("Link", (CountingLink,), {"down": 0, "up": 0})
    start = time.perf_counter()
    result = train_locally(
        devices,
        halves.front.state_dict(),
        server,
        num_rounds=plan.num_rounds,
        seed=seed,
        evaluate=False,
        lightweight=None if setting is None else Lightweight(**setting),
        make_link=link,
    )
    seconds = time.perf_counter() - start
    whole = halves.load(result.front, server.snapshot()).eval()
    with torch.no_grad():
        scores = torch.cat([whole(x) for x in data.test_x.split(256)])
    moved = result.traffic.num_bytes
    return {
        "accuracy": 100 * float((scores.argmax(1) == data.test_y).double().mean()),
        "flops": _share_of_flops(result),
        "smashed": 1 / result.traffic.compression_ratio(phase="train"),
        "seconds": seconds,
        "loss": result.rounds[-1].loss,
        "front_up": link.up + moved(directions=["model-up"]),
        "front_down": link.down + moved(directions=["model-down"]),
        "smashed_up": moved(directions=["up", "targets"]),
        "smashed_down": moved(directions=["down"]),
    }


def _share_of_flops(result: LocalResult) -> float:
    """Return devices' FLOPs as a share of plain training's, a mean over rounds."""
    costs = [cost for r in result.rounds for cost in r.costs.values()]
    if not costs:
        return 1.0
    done = sum(c.forward_flops + c.backward_flops for c in costs)
    return done / sum(c.plain_forward_flops + c.plain_backward_flops for c in costs)


def split(
    images: np.ndarray[Any, Any], labels: Tensor, partition: str, rng: Any
) -> list[Tensor]:
    """Divide images among devices: alike, or each class by a Dirichlet(0.5) draw."""
    if partition == "iid":
        return [torch.from_numpy(p) for p in np.array_split(images, NUM_DEVICES)]
    own = labels.numpy()[images]
    while True:
        parts: list[list[int]] = [[] for _ in range(NUM_DEVICES)]
        for label in np.unique(own):
            mine = images[own == label]
            shares = rng.dirichlet(np.full(NUM_DEVICES, 0.5)).cumsum()[:-1]
            for part, some in zip(
                parts, np.split(mine, (shares * len(mine)).astype(int)), strict=True
            ):
                part.extend(some)
        if min(map(len, parts)) >= 2 * BATCH:
            return [torch.tensor(rng.permutation(part)) for part in parts]


def table(rows: list[dict[str, Any]], against: str) -> str:
    """Return means over seeds, and the difference to an arm with the same seeds."""
    lines = [
        f"| dataset | partition | setting | seeds | accuracy | minus {against} "
        "| standard error | FLOPs | front MB up, down | smashed MB up, down |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for dataset in DATASETS:
        for partition in ("iid", "dirichlet"):
            own = [
                r
                for r in rows
                if (r["dataset"], r["partition"]) == (dataset, partition)
            ]
            base = {r["seed"]: r["accuracy"] for r in own if r["arm"] == against}
            for arm in ARMS:
                mine = [r for r in own if r["arm"] == arm and r["seed"] in base]
                if not mine:
                    continue
                accuracy = [r["accuracy"] for r in mine]
                gaps = [r["accuracy"] - base[r["seed"]] for r in mine]
                error = "-"
                if gaps[1:]:
                    error = f"{statistics.stdev(gaps) / len(gaps) ** 0.5:.2f}"
                lines.append(
                    f"| {dataset} | {partition} | {arm} | {len(mine)} "
                    f"| {statistics.mean(accuracy):.2f} "
                    f"| {statistics.mean(gaps):+.2f} | {error} "
                    f"| {statistics.mean(r['flops'] for r in mine):.2f} "
                    f"| {_megabytes(mine, 'front')} | {_megabytes(mine, 'smashed')} |"
                )
    return "\n".join(lines)


def _megabytes(rows: list[dict[str, Any]], what: str) -> str:
    """Return mean bytes up and down, of all devices and rounds."""
    up, down = (
        statistics.mean(r[f"{what}_{direction}"] for r in rows) / 1e6
        for direction in ("up", "down")
    )
    return f"{up:.2f}, {down:.2f}"


if __name__ == "__main__":
    main()
