"""Whether time and memory per round stay flat over a very long run.

Usage: python -m tests.bench.many_rounds [--rounds 10000] [--devices 4]

A tiny model, lightweight training on, the bookkeeping of `SplitFed` (traffic, reports,
costs), in process. Printed are the median time of this process per round of the first
hundred after a warm-up and of the last hundred, and the resident memory at ten points.
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
from flwr_slfac.split.local import merge_fronts
from tests.split import builders

WARM_UP = 100  # rounds: caches fill, the allocator settles
SAMPLE = 100


def main() -> None:
    """Print how time and memory went."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sgd = partial(SGD, lr=0.01)
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    back = nn.Sequential(nn.Flatten(), nn.Linear(144, builders.NUM_CLASSES))
    devices = [
        Device(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), sgd,
               builders.data(8, i), batch_size=8)
        for i in range(options.devices)
    ]  # fmt: skip
    setting = Lightweight(prune=0.5, gradient_bits=8, activation_dropout=0.1)
    codec = Identity()
    fronts = fronts_for(setting, "parallel", codec, codec)
    history = History()
    server = ServerHalf(back, nn.CrossEntropyLoss(), sgd)
    rounds = Rounds(server, codec, history.traffic, Limits(), fronts)
    link = LocalLink([DeviceHalf(d, i) for i, d in enumerate(devices)])
    served = dict(front.state_dict())
    times = []
    for server_round in range(1, options.rounds + 1):
        start = time.process_time()
        begin = Begin(server_round, 0, fronts.take(served), codec, RELEASE)
        result = rounds.train(link, range(options.devices), begin)
        served = dict(fronts.advance(merge_fronts(result)))
        history.trained(server_round, result)
        times.append(time.process_time() - start)
        if server_round % max(1, options.rounds // 10) == 0:
            print(f"round {server_round}: {resident():.1f} MB", flush=True)
    first = quartiles(times[WARM_UP : WARM_UP + SAMPLE])
    last = quartiles(times[-SAMPLE:])
    for name, (low, median, high) in (("first", first), ("last", last)):
        print(f"{name} hundred: {median:.2f} ms a round ({low:.2f} to {high:.2f})")
    print(f"{last[1] / first[1]:.3f} x")
    start = time.perf_counter()
    print(f"{history.traffic.num_bytes()} bytes crossed, {len(history.costs)} costs, "
          f"read back in {time.perf_counter() - start:.1f} s")  # fmt: skip


def quartiles(times: list[float]) -> list[float]:
    """Return the quartiles of times in milliseconds."""
    return [1e3 * t for t in statistics.quantiles(times, n=4)]


def resident() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
