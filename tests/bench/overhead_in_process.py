"""How much a split step costs over an unsplit one, in process, in paired runs.

Usage: python tests/bench/overhead_in_process.py [--pairs 15] [--threads 2]

Each pair trains the same batch unsplit and split (Identity both ways, one device) one
right after the other, in alternating order, so that the noise of a shared machine hits
both; the ratio's median and quartiles are printed.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flwr_slfac import cut
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Identity
from flwr_slfac.split import Begin, Device, DeviceHalf, LocalLink, Rounds, ServerHalf
from flwr_slfac.traffic import Traffic
from tests.models import resnet18

BATCH = 64


def main() -> None:
    """Print the ratio of split to unsplit step time at three cuts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"ResNet-18, 32x32, batch {BATCH}, {options.threads} threads, torch "
        f"{torch.__version__}, {options.pairs} pairs"
    )
    print(f"{'cut':8} {'unsplit s':>10} {'split s':>10} {'ratio':>7} {'quartiles':>15}")
    for at in ("bn1", "layer1", "layer3"):
        whole, split = pair(at)
        whole(), split()
        times: tuple[list[float], list[float]] = ([], [])
        for i in range(options.pairs):
            order = ((0, whole), (1, split)) if i % 2 else ((1, split), (0, whole))
            for which, work in order:
                start = time.perf_counter()
                work()
                times[which].append(time.perf_counter() - start)
        ratios = [s / w for w, s in zip(*times, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        print(
            f"{at:8} {statistics.median(times[0]):10.3f} "
            f"{statistics.median(times[1]):10.3f} {median:7.3f} "
            f"{f'{low:.3f}-{high:.3f}':>15}"
        )


def pair(at: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a function that takes an unsplit step, and one that takes a split step."""
    torch.manual_seed(0)
    model = resnet18()
    halves = cut(copy.deepcopy(model), at=at)
    data = TensorDataset(torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,)))
    sgd = partial(SGD, lr=0.01, momentum=0.9)
    tuned = sgd(model.parameters())
    loss = nn.CrossEntropyLoss()

    def whole() -> None:
        x, y = (t[torch.randperm(BATCH)] for t in data.tensors)
        tuned.zero_grad()
        loss(model(x), y).backward()
        tuned.step()

    device = Device(halves.front, sgd, data, batch_size=BATCH)
    link = LocalLink([DeviceHalf(device, 0)])
    rounds = Rounds(ServerHalf(halves.back, loss, sgd), Identity(), Traffic(), 2**28)
    begin = Begin(1, 0, halves.front.state_dict(), Identity(), RELEASE)

    def split() -> None:
        rounds.train(link, [0], begin)  # one round of one step

    return whole, split


if __name__ == "__main__":
    main()
