"""How many rounds the quickstart takes to 95 %, by codec, over several seeds.

Usage: python -m tests.bench.rounds_to_95 [--seeds 8]

In one process, which ends in the bits of a deployment: with the seconds of a round over
a slow link (`tests.bench.throttled`) it tells the time to 95 % without waiting for it.
"""

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from flwr_slfac import Device, accuracy, cut
from flwr_slfac.codec import parse_codec
from flwr_slfac.cutting import Halves
from flwr_slfac.split import ServerHalf, train_locally

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "quickstart"))
from quickstart.task import (
    build_model,
    central_test_set,
    load_partition,
)

ROUNDS, NODES, ENOUGH = 8, 2, 0.95
# As examples/quickstart/pyproject.toml.
_RATE, _BATCH, _EPOCHS, _ALPHA, _AT = 0.1, 32, 2, 1.0, "layer1"
CODECS = {
    "identity": ("identity", "identity"),
    "float16": ("float16", "float16"),
    "default": ("waterfill(nrmse=0.1)", "waterfill(nrmse=0.4)"),
    "thin": ("waterfill(bits=0.52)", "waterfill(bits=0.24)"),
}


def quickstart(seed: int) -> tuple[list[Device], Halves, ServerHalf]:
    """Return the quickstart's devices, its halves, and its server."""
    scheduler = partial(CosineAnnealingLR, T_max=ROUNDS)
    optimizer = partial(SGD, lr=_RATE, momentum=0.9)
    devices = []
    for number in range(NODES):
        train, test = load_partition(number, NODES, _ALPHA, seed)
        devices.append(
            Device(
                cut(build_model(seed), at=_AT).front,
                optimizer=optimizer,
                train_set=train,
                test_set=test,
                batch_size=_BATCH,
                scheduler=scheduler,
                epochs=_EPOCHS,
                drop_last=len(train) > _BATCH,
            )
        )
    halves = cut(build_model(seed), at=_AT)
    server = ServerHalf(
        halves.back,
        CrossEntropyLoss(),
        optimizer,
        scheduler=scheduler,
        metrics={"accuracy": accuracy},
    )
    return devices, halves, server


def accuracy_of(halves: Halves, front: object, seed: int) -> float:
    """Return the accuracy of the joined model on images that no device has seen."""
    images, labels = central_test_set(seed).tensors
    model = halves.load(front, halves.back.state_dict()).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        return float(accuracy(model(images), labels))


def rounds_to_enough(codec: str, seed: int) -> int:
    """Return the first round after which the joined model is good enough."""
    up, down = map(parse_codec, CODECS[codec])
    for num_rounds in range(2, ROUNDS + 1):
        devices, halves, server = quickstart(seed)
        front = halves.front.state_dict()
        result = train_locally(
            *(devices, front, server),
            num_rounds=num_rounds,
            seed=seed,
            up=up,
            down=down,
            evaluate=False,
        )
        if accuracy_of(halves, result.front, seed) >= ENOUGH:
            return num_rounds
    return ROUNDS + 1


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--codecs", nargs="*", choices=CODECS, default=list(CODECS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| codec | rounds to 95 %, by seed | mean |\n|---|---|---|")
    for codec in options.codecs:
        found = [rounds_to_enough(codec, s) for s in range(1, 1 + options.seeds)]
        listed = " ".join(map(str, found))
        print(f"| {codec} | {listed} | {statistics.mean(found):.2f} |", flush=True)


if __name__ == "__main__":
    main()
