"""How much codecs add to split training, in process, in paired runs.

Usage: python -m tests.bench.codec_step [--pairs 15] [--work ResNet-18]

Two kinds of work: a round of the quickstart (its network, ten devices with 128 images
each, batches of 32, two epochs, one thread) against `float16`, and steps of a
full-width ResNet-18 (32x32, batch 64, cut at layer1, two threads) against `identity`.
Streams begin anew with every round, as they do in a run. Each pair does the same work
with both codecs one right after the other, in alternating order, so that the noise of a
shared machine hits both. Printed are median and quartiles of the ratio of wall time,
and the median ratio of processor time.
"""

import argparse
import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flwr_slfac import cut
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Codec, parse_codec
from flwr_slfac.default_codecs import codecs_of
from flwr_slfac.split import Begin, Device, DeviceHalf, LocalLink, Rounds, ServerHalf
from flwr_slfac.traffic import Traffic
from tests.models import resnet18

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
STEPS = 4
Codecs = tuple[Codec, Codec]


def main() -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=15)
    names = ("quickstart", "ResNet-18")
    parser.add_argument("--work", nargs="+", default=names, choices=names)
    options = parser.parse_args()
    default = codecs_of(None, None)
    slfac = parse_codec("slfac")
    print(f"torch {torch.__version__}, {options.pairs} pairs")
    print("| work | codecs | against | wall | quartiles | processor |")
    print("|---|---|---|---|---|---|")
    for name, work, base, threads in (
        ("quickstart", quickstart, parse_codec("float16"), 1),
        ("ResNet-18", resnet, parse_codec("identity"), 2),
    ):
        if name not in options.work:
            continue
        torch.set_num_threads(threads)
        for label, codecs in (("default", default), ("slfac", (slfac, slfac))):
            both = work(codecs), work((base, base))
            cells = compared(*both, options.pairs)
            print(f"| {name} | {label} | {base.codec_id} | {cells}", flush=True)


def compared(ours: Callable[[], None], base: Callable[[], None], pairs: int) -> str:
    """Return the cells of a row."""
    ours(), base()
    wall, processor = [], []
    for i in range(pairs):
        times = {}
        for work in (ours, base) if i % 2 else (base, ours):
            start = time.perf_counter(), time.process_time()
            work()
            times[work] = (
                time.perf_counter() - start[0],
                time.process_time() - start[1],
            )
        wall.append(times[ours][0] / times[base][0])
        processor.append(times[ours][1] / times[base][1])
    low, median, high = statistics.quantiles(wall, n=4)
    cpu = statistics.median(processor)
    return f"{median:.3f} | {low:.3f} - {high:.3f} | {cpu:.3f} |"


def quickstart(codecs: Codecs) -> Callable[[], None]:
    """Return a round of the quickstart's network, on ten devices."""
    sys.path.insert(0, str(QUICKSTART))
    from quickstart.task import build_model, load_arrays  # type: ignore

    images, labels = load_arrays(1)[0].tensors
    sets = [TensorDataset(images[i::10][:128], labels[i::10][:128]) for i in range(10)]
    return rounds_of(build_model(1), sets, codecs, epochs=2, batch_size=32)


def resnet(codecs: Codecs) -> Callable[[], None]:
    """Return a few steps of one device."""
    torch.manual_seed(0)
    images, labels = torch.randn(64 * STEPS, 3, 32, 32), torch.arange(64 * STEPS) % 10
    sets = [TensorDataset(images, labels)]
    return rounds_of(resnet18(), sets, codecs, epochs=1, batch_size=64)


def rounds_of(
    model: nn.Module,
    sets: list[TensorDataset],
    codecs: Codecs,
    *,
    epochs: int,
    batch_size: int,
) -> Callable[[], None]:
    """Return a round of split training in process."""
    halves = cut(model, at="layer1")
    sgd = partial(SGD, lr=0.01, momentum=0.9)
    devices = [
        Device(
            copy.deepcopy(halves.front), sgd, data, batch_size=batch_size, epochs=epochs
        )
        for data in sets
    ]
    link = LocalLink([DeviceHalf(device, i) for i, device in enumerate(devices)])
    server = ServerHalf(halves.back, nn.CrossEntropyLoss(), sgd)
    rounds = Rounds(server, codecs[1], Traffic(), 2**28)
    begin = Begin(0, 0, halves.front.state_dict(), codecs[0], RELEASE)
    number = itertools.count(1)

    def train() -> None:
        now = replace(begin, server_round=next(number))
        rounds.train(link, list(range(len(sets))), now)

    return train


if __name__ == "__main__":
    main()
