"""Whether time and memory per round stay flat over a very long run.

Usage: python -m tests.bench.many_rounds [--rounds 10000] [--devices 4]

A tiny model, lightweight training on, the bookkeeping of `SplitFed` (traffic, reports,
costs), in process. At the end a second run, after as long a warm-up, takes turns
with the long one, so that whatever else the machine does falls on both. Printed are the
processor time per round of the long run's last hundred and of the young run beside it,
and the resident memory at ten points.
"""

import argparse
import resource
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD

from flwr_slfac import Device, Lightweight
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Identity
from flwr_slfac.history import History
from flwr_slfac.split import (
    Begin,
    DeviceHalf,
    Limits,
    LocalLink,
    Rounds,
    ServerHalf,
    fronts_for,
)
from flwr_slfac.split.local_run import merge_fronts
from tests.split import builders

WARM_UP = 600  # rounds: caches fill, and records begin to go to the disk
SAMPLE = 100


class Run:
    """A run that goes on round by round."""

    def __init__(self, num_devices: int) -> None:
        torch.manual_seed(0)
        sgd = partial(SGD, lr=0.01)
        back = nn.Sequential(nn.Flatten(), nn.Linear(144, builders.NUM_CLASSES))
        devices = [
            Device(front(), sgd, builders.data(8, i), batch_size=8)
            for i in range(num_devices)
        ]
        setting = Lightweight(prune=0.5, gradient_bits=8, activation_dropout=0.1)
        self.codec = Identity()
        server = ServerHalf(back, nn.CrossEntropyLoss(), sgd)
        self.fronts = fronts_for(setting, server, self.codec, self.codec)
        self.history = History()
        traffic = self.history.traffic
        self.rounds = Rounds(server, self.codec, traffic, Limits(), self.fronts)
        self.link = LocalLink([DeviceHalf(d, i) for i, d in enumerate(devices)])
        self.keys = range(num_devices)
        self.served = dict(front().state_dict())
        self.times: list[float] = []

    def step(self) -> None:
        """Train a round and note its processor time in ms."""
        start = time.process_time()
        server_round = len(self.times) + 1
        served = self.fronts.take(self.served)
        begin = Begin(server_round, 0, served, self.codec, RELEASE)
        result = self.rounds.train(self.link, self.keys, begin)
        self.served = dict(self.fronts.advance(merge_fronts(result)))
        self.history.trained(server_round, result)
        self.times.append(1e3 * (time.process_time() - start))


def front() -> nn.Module:
    """Return a front for 6x6 images."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())


def main() -> None:
    """Print how time and memory went."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    long = Run(options.devices)
    for server_round in range(1, options.rounds - SAMPLE + 1):
        long.step()
        if server_round % max(1, options.rounds // 10) == 0 or server_round in (
            100,
            WARM_UP,
        ):
            print(f"round {server_round}: {resident():.1f} MB", flush=True)
    young = Run(options.devices)
    for _ in range(WARM_UP):
        young.step()
    for _ in range(SAMPLE):
        young.step()
        long.step()
    print(f"round {len(long.times)}: {resident():.1f} MB, with the young run")
    names = ("young run", f"rounds to {len(long.times)}")
    for name, run in zip(names, (young, long), strict=True):
        low, median, high = statistics.quantiles(run.times[-SAMPLE:], n=4)
        print(f"{name}: {median:.2f} ms a round ({low:.2f} to {high:.2f})")
    pairs = zip(long.times[-SAMPLE:], young.times[-SAMPLE:], strict=True)
    print(f"{statistics.median(old / new for old, new in pairs):.3f} x")
    history = long.history
    print(f"{history.traffic.num_bytes()} bytes crossed, {len(history.costs)} costs")


def resident() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
