"""What a memory of samples saves: bytes up by round, with `temporal` and without.

Usage: python -m tests.bench.temporal [--cases cifar10 mnist ...] [--seeds 0 1]
       [--arms plain temporal ...] [--out FILE] [--speed]

Quarter-width ResNet-18 cut after `layer1`, two IID devices in one process, scheme
`parallel`, a round an epoch; images come from SLFAC_DATA_DIR. Up is `waterfill` alone
or inside `temporal`, down `waterfill(nrmse=0.4)` always. Bytes are those of the
training frames of activations, samples' numbers included. Every finished run is
appended to FILE as JSON. With `--speed` a batch is coded instead, and times are told.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import Dataset, TensorDataset

from flwr_slfac import Device, cut
from flwr_slfac.codec import Memory, decode, encode, parse_codec
from flwr_slfac.split import ServerHalf, train_locally
from tests.bench.datasets import load_dataset
from tests.models import resnet18

NUM_DEVICES, BATCH, WIDTH, NUM_IMAGES, NUM_ROUNDS = 2, 32, 16, 600, 8
ARMS = {
    "plain": "waterfill(nrmse=0.1)",
    "temporal": "temporal(inner=waterfill(nrmse=0.1))",
    "temporal, 8 bits": "temporal(inner=waterfill(nrmse=0.1), bits=8)",
    **{
        f"similarity {t}": f"temporal(inner=waterfill(nrmse=0.1), threshold={t})"
        for t in (0.995, 0.98, 0.95, 0.9)
    },
}


@dataclass(frozen=True)
class Case:
    """What is trained.

    Parameters
    ----------
    dataset : str
        As `load_dataset` knows it.
    falls : bool
        Whether the learning rate falls to zero along a cosine.
    augments : bool
        Whether images are cropped and flipped at random.
    rests : bool
        Whether the front is not trained.
    groups : bool
        Whether GroupNorm takes the place of BatchNorm, whose mean and variance are
        another batch's in each epoch.
    """

    dataset: str
    falls: bool = True
    augments: bool = False
    rests: bool = False
    groups: bool = False


CASES = {
    "cifar10": Case("cifar10"),
    "mnist": Case("mnist"),
    "cifar10, constant rate": Case("cifar10", falls=False),
    "cifar10, augmented": Case("cifar10", augments=True),
    "cifar10, front at rest": Case("cifar10", rests=True),
    "the same with GroupNorm": Case("cifar10", rests=True, groups=True),
}


class Augmented(Dataset[Any]):
    """Images shifted by up to two pixels and flipped, another way in each epoch."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x, y

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        shift = torch.randint(-2, 3, (2,)).tolist()
        image = self._x[index].roll(shift, (1, 2))
        return (image.flip(2) if torch.rand(()) < 0.5 else image), self._y[index]


def main() -> None:
    """Train every arm in every case with every seed; print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("temporal.jsonl"))
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.speed:
        print(speed())
        return
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = [json.loads(line) for line in lines]
    for case in options.cases:
        for seed in options.seeds:
            for arm in options.arms:
                key = {"case": case, "arm": arm, "seed": seed}
                if any(key.items() <= row.items() for row in done):
                    continue
                row = {**key, **train(CASES[case], ARMS[arm], seed)}
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                done.append(row)
    print(table(done))


def train(case: Case, up: str, seed: int) -> dict[str, Any]:
    """Train once; return accuracy, bytes up by round, and seconds."""
    data = load_dataset(Path(os.environ["SLFAC_DATA_DIR"]), case.dataset)
    order = torch.randperm(
        len(data.train_y), generator=torch.Generator().manual_seed(seed)
    )[:NUM_IMAGES]
    torch.manual_seed(seed)
    model = resnet18(
        num_classes=data.num_classes, in_channels=data.train_x.shape[1], width=WIDTH
    )
    if case.groups:
        _use_group_norm(model)
    halves = cut(model, at="layer1")
    optimizer = partial(SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = partial(CosineAnnealingLR, T_max=NUM_ROUNDS) if case.falls else None
    of_front = partial(SGD, lr=0.0) if case.rests else optimizer
    make_set = Augmented if case.augments else TensorDataset
    devices = [
        Device(
            cut(model, at="layer1").front,
            optimizer=of_front,
            scheduler=scheduler,
            train_set=make_set(data.train_x[part], data.train_y[part]),
            batch_size=BATCH,
        )
        for part in order.chunk(NUM_DEVICES)
    ]
    server = ServerHalf(
        halves.back,
        CrossEntropyLoss(),
        optimizer,
        scheme="parallel",
        scheduler=scheduler,
    )
    start = time.perf_counter()
    result = train_locally(
        devices,
        halves.front.state_dict(),
        server,
        num_rounds=NUM_ROUNDS,
        seed=seed,
        up=parse_codec(up),
        down=parse_codec("waterfill(nrmse=0.4)"),
        evaluate=False,
    )
    seconds = time.perf_counter() - start
    whole = halves.load(result.front, server.snapshot()).eval()
    with torch.no_grad():
        scores = torch.cat([whole(x) for x in data.test_x.split(256)])
    rounds = range(1, NUM_ROUNDS + 1)
    rows = [result.traffic.rows(server_round=n, directions=("up",)) for n in rounds]
    return {
        "accuracy": 100 * float((scores.argmax(1) == data.test_y).double().mean()),
        "up": [sum(row.num_bytes for row in each) for each in rows],
        "raw": sum(row.raw_bytes for each in rows for row in each),
        "seconds": seconds,
    }


def _use_group_norm(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(4, child.num_features))


def table(rows: list[dict[str, Any]]) -> str:
    """Return means over seeds as Markdown."""
    numbers = " | ".join(str(n) for n in range(1, NUM_ROUNDS + 1))
    lines = [
        f"| case | codec up | seeds | accuracy (each) | saved | ratio | {numbers} |",
        "|---" * (6 + NUM_ROUNDS) + "|",
    ]
    for case in CASES:
        base = [r for r in rows if (r["case"], r["arm"]) == (case, "plain")]
        for arm in ARMS:
            mine = [r for r in rows if (r["case"], r["arm"]) == (case, arm)]
            if not mine:
                continue
            shown = " ".join(f"{r['accuracy']:.1f}" for r in mine)
            total = statistics.mean(sum(r["up"]) for r in mine)
            saved = "-"
            if base and arm != "plain":
                whole = statistics.mean(sum(r["up"]) for r in base)
                saved = f"{100 * (1 - total / whole):.0f} %"
            ratio = statistics.mean(r["raw"] for r in mine) / total
            by_round = [
                statistics.mean(r["up"][n] for r in mine) / 1000
                for n in range(NUM_ROUNDS)
            ]
            kilobytes = " | ".join(f"{b:.0f}" for b in by_round)
            lines.append(
                f"| {case} | {arm} | {len(mine)} | {shown} | {saved} | {ratio:.0f}x "
                f"| {kilobytes} |"
            )
    return "\n".join(lines)


def speed() -> str:
    """Return milliseconds to code a batch that changed more or less."""
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(32, 16, 32, 32, generator=draw).cumsum(2).cumsum(3).relu()
    lines = ["| batch of 2 MiB | encode | decode | bytes |", "|---|---|---|---|"]
    plain = "waterfill(nrmse=0.1)"
    cases = [
        (f"{name}, changed by {change:g}", text, change)
        for change in (0.0, 0.1, 0.5, 1.5)
        for name, text in (("alone", plain), ("temporal", f"temporal(inner={plain})"))
    ]
    for name, text, change in cases:
        codec, here, there = parse_codec(text), Memory(), Memory()
        times: list[tuple[float, float]] = []
        for step in range(18):
            noise = torch.randn(first.shape, generator=draw) * first.std()
            x = first + change * (step % 2) * noise
            start = time.perf_counter()
            frame = encode(x, codec, memory=here, samples=range(32))
            middle = time.perf_counter()
            decode(frame, memory=there)
            times.append((middle - start, time.perf_counter() - middle))
        both = [
            statistics.quantiles(each, n=4) for each in zip(*times[2:], strict=True)
        ]
        shown = [f"{1e3 * q[1]:.1f} ({1e3 * q[0]:.1f}-{1e3 * q[2]:.1f})" for q in both]
        lines.append(f"| {name} | {shown[0]} | {shown[1]} | {len(frame)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
