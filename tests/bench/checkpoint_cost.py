"""What a checkpoint costs: seconds to write and to read, bytes on the disk.

Usage: python -m tests.bench.checkpoint_cost [--folder FOLDER] [--repeats 7]
           [--rounds 1000] [--devices 10]

A ResNet-18 (11.7 million weights), cut after its first stage, with SGD's momentum or
Adam's two moments, saved after one step; then the books of a long run beside it.
Printed are the median and the spread of repeats, with fsync as in a run.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam

from flwr_slfac.checkpoint import SECTIONS, CheckpointFolder, Ledger, load_checkpoint
from flwr_slfac.history import History
from flwr_slfac.report import RoundReport
from flwr_slfac.split import OptimizerFactory, ServerHalf


class Block(nn.Module):
    """A basic block of a residual network."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.short = nn.Identity()
        if stride > 1:
            self.short = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm2(self.second(self.norm1(self.first(x)).relu()))
        return (out + self.short(x)).relu()


def resnet18() -> tuple[nn.Module, nn.Module]:
    """Return stem and first stage, and the rest."""
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64))
    front = nn.Sequential(stem, nn.ReLU(), nn.MaxPool2d(3, 2, 1), *stage(64, 64, 1))
    back = nn.Sequential(
        *(*stage(64, 128, 2), *stage(128, 256, 2), *stage(256, 512, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)),
    )
    return front, back


def stage(inside: int, outside: int, stride: int) -> Iterator[nn.Module]:
    """Yield the two blocks of a stage."""
    yield Block(inside, outside, stride)
    yield Block(outside, outside, 1)


def books(num_rounds: int, num_devices: int) -> bytes:
    """Return the entries of a run of many rounds."""
    history, ledger = History(), Ledger()
    for number in range(1, num_rounds + 1):
        for device in range(num_devices):
            for way in ("up", "down", "targets", "model-up", "model-down", "control"):
                history.traffic.add(
                    *(number, device, "train", way),  # type: ignore[arg-type]
                    num_bytes=1000 + device * number,
                    raw_bytes=9000,
                    seconds=0.1 / number,
                )
        report = RoundReport(number, num_devices, {}, 1 / number)
        report.count(history.traffic)
        history.reports.append(report)
        ledger.add(history.entry(number))
    return ledger.to_bytes()


def timed(work: Callable[[], Any], repeats: int) -> str:
    """Return the median and the spread of how long something takes."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    low, high = min(seconds), max(seconds)
    return f"{statistics.median(seconds):6.3f} s ({low:.3f} to {high:.3f})"


def measure(
    optimizer: OptimizerFactory, rounds: bytes, where: Path | None, repeats: int
) -> None:
    """Save and read one run, and print what that took."""
    front, back = resnet18()
    server = ServerHalf(back, nn.CrossEntropyLoss(), optimizer)
    back(torch.randn(2, 64, 16, 16)).sum().backward()
    server.replica.tuning.step()
    with tempfile.TemporaryDirectory(dir=where) as path:
        folder = CheckpointFolder(Path(path), keep=1)

        def save() -> None:
            sections = {
                "front": front.state_dict(),
                "back": server.snapshot(),
                "state": server.replica.state(),
            }
            facts = {"settings": {}, "metrics": {"$dict": []}}
            folder.save(1, sections, rounds, facts)

        print("  write    ", timed(save, repeats))
        print("  read     ", timed(lambda: next(folder.whole(SECTIONS)), repeats))
        print("  models   ", timed(partial(load_checkpoint, path), repeats))
        for file in sorted((folder.path / "round-000001").iterdir()):
            print(f"  {file.name:18s} {file.stat().st_size / 1e6:8.2f} MB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=10)
    args = parser.parse_args()
    long = books(args.rounds, args.devices)
    for name, optimizer in (
        ("SGD, momentum", partial(SGD, lr=0.01, momentum=0.9)),
        ("Adam", partial(Adam, lr=0.001)),
    ):
        for label, rounds in (
            (", a first round", b""),
            (f", {args.rounds} rounds", long),
        ):
            print(f"{name}{label}")
            measure(optimizer, rounds, args.folder, args.repeats)


if __name__ == "__main__":
    main()
