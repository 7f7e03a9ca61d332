"""What lightweight training costs in accuracy, one reduction at a time and together.

Usage: python -m tests.bench.lightweight_accuracy [--plan short|long|table|target]
       [--datasets cifar10 mnist] [--partitions iid dirichlet] [--seeds 0 1 2]
       [--arms plain together ...] [--against plain] [--out FILE] [--markdown FILE]

Quarter-width VGG-19-BN without its dropout, cut after its second pooling (CIFAR-10
subset), and ResNet-18 cut after `layer1` (MNIST), ten devices in one process, scheme
`parallel`, identity codec unless an arm says otherwise (`lightweight_arms`); images
come from SLFAC_DATA_DIR. Every finished run is appended to FILE as JSON, and runs that
are there are not repeated.

The short plan has rounds of a few steps, with periods in rounds; the long one has
rounds of 50 steps, with periods in steps. The plan "table" varies one factor at a time
around a centre, keeps what was reached after each round (`lightweight_curve`), and
prints what devices did and what crossed (`lightweight_table`); "target" is longer.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
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
from flwr_slfac.default_codecs import DEFAULT_DOWN, DEFAULT_UP
from flwr_slfac.split import ServerHalf, train_locally
from flwr_slfac.split.local_run import LocalResult
from tests.bench.datasets import Images, load_dataset
from tests.bench.lightweight_arms import ARMS, PLANS, TABLE, Arm, Plan
from tests.bench.lightweight_curve import CountingLink, accuracy, curve, whole_curve
from tests.bench.lightweight_table import accuracy_table, target_table
from tests.models import resnet18, vgg19_bn

NUM_DEVICES, BATCH = 10, 8
LR = 0.02
OPTIMIZER = partial(SGD, lr=LR, momentum=0.9, weight_decay=5e-4)
PLAIN_SGD = partial(SGD, lr=10 * LR, weight_decay=5e-4)
DATASETS = ["cifar10", "mnist"]


def main() -> None:
    """Train every arm on every dataset and partition with every seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", choices=list(PLANS), default="short")
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--partitions", nargs="+", default=["iid", "dirichlet"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--against", choices=list(ARMS), default="plain")
    parser.add_argument("--out", type=Path, default=Path("lightweight.jsonl"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    is_table = options.plan in ("table", "target")
    text = options.out.read_text() if options.out.exists() else ""
    done = [json.loads(line) for line in text.splitlines()]
    for seed in options.seeds:
        for partition in options.partitions:
            for dataset in options.datasets:
                for arm in options.arms or (TABLE if is_table else ARMS):
                    names = "dataset", "partition", "arm", "seed"
                    key = dict(zip(names, (dataset, partition, arm, seed), strict=True))
                    if any(key.items() <= row.items() for row in done):
                        continue
                    plan = PLANS[options.plan][dataset]
                    row = {
                        **key,
                        **train(dataset, partition, arm, seed, plan, is_table),
                    }
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
                    done.append(row)
    if is_table:
        text = accuracy_table(done) + "\n\n" + target_table(done)
    else:
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
    dataset: str, partition: str, name: str, seed: int, plan: Plan, rounds: bool = False
) -> dict[str, Any]:
    """Train once; return accuracy, seconds and what a step costs on a device.

    With `rounds`, what each round came to, too.
    """
    arm = ARMS[name]
    data = load_dataset(Path(os.environ["SLFAC_DATA_DIR"]), dataset)
    rng = np.random.default_rng(seed)
    images = rng.permutation(len(data.train_y))[: plan.num_images]
    torch.manual_seed(seed)
    model = build(dataset, data.num_classes, data.train_x.shape[1])
    parts = [
        TensorDataset(data.train_x[part], data.train_y[part])
        for part in split(images, data.train_y, partition, rng)
    ]
    start = time.perf_counter()
    if arm.scheme == "whole":
        row = whole_curve(
            model,
            parts,
            data,
            optimizer=OPTIMIZER,
            scheduler=partial(CosineAnnealingLR, T_max=plan.num_rounds),
            batch_size=BATCH,
            max_steps=plan.max_steps,
            num_rounds=plan.num_rounds,
            seed=seed,
        )
        return {**row, "seconds": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) if rounds else None
        return _train_split(model, parts, data, arm, seed, plan, saved)


def _train_split(
    model: nn.Module,
    parts: list[TensorDataset],
    data: Images,
    arm: Arm,
    seed: int,
    plan: Plan,
    saved: Path | None,
) -> dict[str, Any]:
    """Train a split model; keep what each round came to if it may be saved."""
    halves = cut(model, at=plan.cut)
    optimizer = PLAIN_SGD if arm.plain_sgd else OPTIMIZER
    scheduler = partial(CosineAnnealingLR, T_max=plan.num_rounds)
    devices = [
        Device(
            cut(model, at=plan.cut).front,
            optimizer=optimizer,
            scheduler=scheduler,
            train_set=part,
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
        scheme=arm.scheme,  # type: ignore[arg-type]
        scheduler=scheduler,
    )
    link = type("Link", (CountingLink,), {"crossed": {}})
    start = time.perf_counter()
    result = train_locally(
        devices,
        halves.front.state_dict(),
        server,
        num_rounds=plan.num_rounds,
        seed=seed,
        up=DEFAULT_UP if arm.default_codecs else None,
        down=DEFAULT_DOWN if arm.default_codecs else None,
        evaluate=False,
        lightweight=None if arm.setting is None else Lightweight(**arm.setting),
        checkpoint=saved,
        keep=plan.num_rounds + 1,
        make_link=link,
    )
    seconds = time.perf_counter() - start
    whole = halves.load(result.front, server.snapshot())
    by_round = curve(result, link, BATCH, halves, data, saved)
    total = {name: sum(r[name] for r in by_round) for name in by_round[0]}
    return {
        "accuracy": accuracy(whole, data),
        "flops": _share_of_flops(result),
        "smashed": 1 / result.traffic.compression_ratio(phase="train"),
        "seconds": seconds,
        "loss": result.rounds[-1].loss,
        "front_up": total["front_up"],
        "front_down": total["front_down"],
        "smashed_up": total["smashed_up"],
        "smashed_down": total["smashed_down"],
        **({"rounds": by_round} if saved else {}),
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
