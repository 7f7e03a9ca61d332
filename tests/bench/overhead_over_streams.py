"""How much longer one device's training takes over a stream than unsplit.

Usage: python -m tests.bench.overhead_over_streams [--pairs 9] [--threads 2] [--codec C]

The device is a process of its own, TLS on the loopback. A pair is a round of so many
steps over the stream, front there and back, and as many unsplit steps with the same
batches' sizes, in turn, so that other work hits both alike; each process has all
threads, as the two ends of one device's training compute one after the other.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flwr_slfac import cut
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import parse_codec
from flwr_slfac.split import (
    Begin,
    Device,
    DeviceHalf,
    Limits,
    Rounds,
    ServerHalf,
    TrainRequest,
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
from tests.bench.device_processes import ProcessOpener
from tests.models import resnet18

SGD_01 = partial(SGD, lr=0.01, momentum=0.9)


def small() -> nn.Module:
    """Return a network as small as tutorials train on 28x28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


# By name: the model, where it is cut, an image's shape, the batch, steps a round.
Case = tuple[Callable[[], nn.Module], str, tuple[int, ...], int, int]
CASES: dict[str, Case] = {
    "small CNN, 28x28, batch 64": (small, "3", (1, 28, 28), 64, 40),
    "ResNet-18, 32x32, batch 64, layer1": (resnet18, "layer1", (3, 32, 32), 64, 4),
    "ResNet-18, 32x32, batch 64, layer3": (resnet18, "layer3", (3, 32, 32), 64, 4),
}


def data_of(case: Case) -> TensorDataset:
    """Return a round's examples."""
    _, _, shape, batch, steps = case
    num = batch * steps
    return TensorDataset(torch.randn(num, *shape), torch.randint(0, 10, (num,)))


def be_device(opening: Opening, name: str, threads: int) -> None:
    """Train the front as requests ask."""
    torch.set_num_threads(threads)
    case = CASES[name]
    front = cut(case[0](), at=case[1]).front
    half = DeviceHalf(Device(front, SGD_01, data_of(case), batch_size=case[3]), 0)

    def answer(request: Request) -> Reply:
        if not isinstance(request, TrainRequest):
            raise TypeError(f"a {type(request).__name__} is not part of this")
        return half.train(request)

    DeviceEnd(opening, 0, answer).run()


def unsplit(case: Case) -> Callable[[], None]:
    """Return what trains the whole model for a round's steps."""
    model, data = case[0](), data_of(case)
    tuned, loss = SGD_01(model.parameters()), CrossEntropyLoss()

    def train() -> None:
        for rows in torch.randperm(len(data)).split(case[3]):
            x, y = (each[rows] for each in data.tensors)
            tuned.zero_grad()
            value: Tensor = loss(model(x), y)
            value.backward()
            tuned.step()

    return train


def ratios(name: str, pairs: int, threads: int, codec: str) -> tuple[list[float], ...]:
    """Return seconds a step unsplit and over the stream, in pairs."""
    case = CASES[name]
    steps = case[4]
    halves = cut(copy.deepcopy(case[0]()), at=case[1])
    server = ServerHalf(halves.back, CrossEntropyLoss(), SGD_01)
    up = parse_codec(codec)
    rounds = Rounds(server, up, Traffic(), Limits())
    service = StreamService(StreamTransport(listen="127.0.0.1:0"))
    opener = ProcessOpener(be_device, name, threads)
    link = StreamLink(service, opener, 300.0, Limits())
    whole = unsplit(case)
    state = halves.front.state_dict()
    times: tuple[list[float], list[float]] = ([], [])
    try:
        for pair in range(pairs + 1):
            begin = Begin(pair + 1, 0, state, up, RELEASE)
            work = [whole, partial(rounds.train, link, [0], begin)]
            for which in (0, 1) if pair % 2 else (1, 0):
                start = time.perf_counter()
                work[which]()
                if pair:  # the first one warms up
                    times[which].append((time.perf_counter() - start) / steps)
    finally:
        link.close()
        opener.join()
    return times


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--codec", default="identity")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| model and cut | unsplit ms | over a stream ms | ratio | quartiles |")
    print("|---|---|---|---|---|")
    for name in CASES:
        plain, split = ratios(name, options.pairs, options.threads, options.codec)
        each = [s / p for p, s in zip(plain, split, strict=True)]
        low, median, high = statistics.quantiles(each, n=4)
        print(
            f"| {name} | {1e3 * statistics.median(plain):.1f} | "
            f"{1e3 * statistics.median(split):.1f} | {median:.3f} | "
            f"{low:.3f}-{high:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
