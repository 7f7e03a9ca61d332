"""What pipeline_depth=1 gains over a link with delay, and what it costs in accuracy.

Usage: python -m tests.bench.pipeline speed|accuracy [--steps 30] [--repeats 3]

`speed`: one device in a process of its own, over a real stream with TLS through a proxy
that holds bytes back (`slow_link`). Its front waits 8 ms in each forward and 16 ms in
each backward, as a device's own processor would take, so that other work on this
machine does not count as the device's compute. Rounds of either depth take turns.

`accuracy`: digits (8x8) and 4,000 images of MNIST, four devices, in one process; images
of MNIST come from SLFAC_DATA_DIR.
"""

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Identity
from flwr_slfac.split import (
    Begin,
    Device,
    DeviceHalf,
    EvaluateRequest,
    Limits,
    Lost,
    Rounds,
    ServerHalf,
    TrainRequest,
    accuracy,
    train_locally,
)
from flwr_slfac.traffic import Traffic
from flwr_slfac.transport import Reply, Request
from flwr_slfac.transport.stream import (
    DeviceEnd,
    Opening,
    StreamLink,
    StreamService,
    StreamTransport,
)
from tests.bench.datasets import load_dataset
from tests.bench.slow_link import SlowLink, constant

FORWARD_S, BACKWARD_S = 0.008, 0.016
ROUND_TRIPS_S = (0.001, 0.020, 0.100)
BITS_PER_S = 1e9
BATCH, NUM_DEVICES = 32, 4
WARM_UP = 4  # steps until both ends have allocated what they need


class Waits(torch.autograd.Function):
    """Waits as long as a device's processor would compute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Wait for the forward."""
        time.sleep(FORWARD_S)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Wait for the backward."""
        time.sleep(BACKWARD_S)
        return gradient


class SlowFront(nn.Module):
    """A convolution on a slow processor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of a quarter of the size."""
        return Waits.apply(self.conv(x)).relu()


def slow_half(num_steps: int) -> DeviceHalf:
    """Return a device with so many steps a round."""
    torch.set_num_threads(1)
    num = BATCH * num_steps
    data = TensorDataset(torch.randn(num, 1, 12, 12), torch.randint(0, 10, (num,)))
    sgd = partial(SGD, lr=0.01)
    return DeviceHalf(Device(SlowFront(), sgd, data, batch_size=BATCH), 0)


def be_device(opening: Opening, num_steps: int) -> None:
    """Answer requests until the server says Bye."""
    half = slow_half(num_steps)

    def answer(request: Request) -> Reply:
        if isinstance(request, TrainRequest):
            return half.train(request)
        if isinstance(request, EvaluateRequest):
            return half.evaluate(request)
        return half.describe(channels=request.channels)

    DeviceEnd(opening, 0, answer, half.run_ahead).run()


class ProcessOpener:
    """Runs the device in a process, behind the slow link."""

    def __init__(self, service: StreamService, num_steps: int) -> None:
        port = int(service.addresses[0].rpartition(":")[2])
        self.link = SlowLink(port, constant(BITS_PER_S), constant(BITS_PER_S), 0.0)
        self._num_steps = num_steps
        self.processes: list[multiprocessing.process.BaseProcess] = []

    def open(self, opening: Opening) -> int:
        """Start the device."""
        opening = replace(opening, addresses=(self.link.address,))
        spawn = multiprocessing.get_context("spawn")
        process = spawn.Process(target=be_device, args=(opening, self._num_steps))
        process.start()
        self.processes.append(process)
        return 0

    def ended(self, nodes: Iterable[int]) -> dict[int, Lost]:
        """Return nothing: it stays."""
        return {}


class Timed:
    """A link that notes when each step is asked for."""

    def __init__(self, link: StreamLink) -> None:
        self._link = link
        self.moments: list[float] = []

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Ask the link."""
        return self._link.devices(keys)

    def train_each(self, requests: Iterable[tuple[int, TrainRequest]]) -> Any:
        """Note the moment and go on."""
        self.moments.append(time.perf_counter())
        return self._link.train_each(requests)


def speed(num_steps: int, repeats: int) -> None:
    """Print seconds a step at each round trip, of either depth."""
    torch.set_num_threads(1)
    service = StreamService(StreamTransport(listen="127.0.0.1:0"))
    opener = ProcessOpener(service, num_steps)
    link = StreamLink(service, opener, 120.0, Limits())
    back = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10))
    server = ServerHalf(back, CrossEntropyLoss(), partial(SGD, lr=0.01))
    rounds = Rounds(server, Identity(), Traffic(), Limits())
    front = SlowFront().state_dict()
    seconds: dict[tuple[float, int], list[float]] = {}
    try:
        for number, (trip_s, _, depth) in enumerate(
            itertools.product(ROUND_TRIPS_S, range(repeats), (0, 1)), start=1
        ):
            opener.link._one_way_s = trip_s / 2
            timed = Timed(link)
            begin = Begin(number, 0, front, Identity(), RELEASE, pipeline_depth=depth)
            rounds.train(timed, [0], begin)  # type: ignore[arg-type]
            # Two are under way at depth 1, so that steps come in pairs.
            moments = timed.moments[WARM_UP:-1]
            gaps = [(b - a) / 2 for a, b in zip(moments, moments[2:], strict=False)]
            seconds.setdefault((trip_s, depth), []).extend(gaps)
    finally:
        link.close()
        for process in opener.processes:
            process.join()
    print(
        "| round trip | depth 0 p50 | p5-p95 | depth 1 p50 | p5-p95 | steps a second |"
    )
    print("|---|---|---|---|---|---|")
    for trip_s in ROUND_TRIPS_S:
        cells, medians = [], []
        for depth in (0, 1):
            cuts = statistics.quantiles([1e3 * v for v in seconds[trip_s, depth]], n=20)
            cells += [f"{cuts[9]:.1f}", f"{cuts[0]:.1f}-{cuts[18]:.1f}"]
            medians.append(cuts[9])
        gain = f"x {medians[0] / medians[1]:.2f}"
        print(f"| {1e3 * trip_s:.0f} ms | {' | '.join(cells)} | {gain} |", flush=True)


def images(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and classes, then those of the test."""
    if name == "mnist":
        data = load_dataset(Path(os.environ["SLFAC_DATA_DIR"]), name)
        return data.train_x[:4000], data.train_y[:4000], data.test_x, data.test_y
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(
        len(digits.target), generator=torch.Generator().manual_seed(0)
    )
    x = torch.from_numpy(digits.images).float()[:, None][order] / 8 - 1
    y = torch.from_numpy(digits.target).long()[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def trained(name: str, lr: float, seed: int, depth: int, num_rounds: int) -> float:
    """Return the accuracy in percent after training."""
    train_x, train_y, test_x, test_y = images(name)
    torch.manual_seed(seed)
    front = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
    )  # fmt: skip
    back = nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    sgd = partial(SGD, lr=lr, momentum=0.9)
    device_sets = [
        (TensorDataset(train_x[i::NUM_DEVICES], train_y[i::NUM_DEVICES]),
         TensorDataset(test_x[i::NUM_DEVICES], test_y[i::NUM_DEVICES]))
        for i in range(NUM_DEVICES)
    ]  # fmt: skip
    devices = [
        Device(copy.deepcopy(front), sgd, own, test, batch_size=BATCH, drop_last=True)
        for own, test in device_sets
    ]
    server = ServerHalf(back, CrossEntropyLoss(), sgd, metrics={"accuracy": accuracy})
    first = {k: v.clone() for k, v in front.state_dict().items()}
    settings: dict[str, Any] = {"num_rounds": num_rounds, "seed": seed}
    result = train_locally(devices, first, server, pipeline_depth=depth, **settings)
    return 100 * result.evaluations[-1]["accuracy"]


def accuracies(seeds: list[int]) -> None:
    """Print the accuracy of either depth for each seed."""
    torch.set_num_threads(1)
    print("| data | learning rate | depth | accuracy by seed | mean |")
    print("|---|---|---|---|---|")
    for name, lr, num_rounds in (
        ("digits", 0.02, 6),
        ("digits", 0.1, 6),
        ("mnist", 0.02, 2),
    ):
        for depth in (0, 1):
            values = [trained(name, lr, seed, depth, num_rounds) for seed in seeds]
            each = ", ".join(f"{v:.2f}" for v in values)
            mean = statistics.mean(values)
            row = f"| {name} | {lr} | {depth} | {each} | {mean:.2f} |"
            print(row, flush=True)


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("speed", "accuracy"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=json.loads, default=[0, 1, 2])
    options = parser.parse_args()
    if options.part == "speed":
        speed(options.steps, options.repeats)
    else:
        accuracies(options.seeds)


if __name__ == "__main__":
    main()
