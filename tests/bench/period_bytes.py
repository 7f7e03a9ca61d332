"""What fronts take on the wire when they are averaged every few steps of a round.

Usage: python -m tests.bench.period_bytes [--steps 50] [--period 5]

One round over a link that turns every message into Flower's records and back; bytes of
fronts are those of the records' arrays and of the quantized updates. Two devices and
small batches: neither changes a ratio.
"""

import argparse
from functools import partial

import torch
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flwr_slfac import Device, Lightweight, cut
from flwr_slfac.split import ServerHalf, train_locally
from tests.bench.lightweight_bytes import RecordLink
from tests.models import resnet18, vgg19_bn

NUM_DEVICES, BATCH = 2, 2
MODELS = {
    "VGG-19-BN, quarter width": (partial(vgg19_bn, width=16), "features.13", 3, 32),
    "ResNet-18": (partial(resnet18, in_channels=1), "layer1", 1, 28),
}
SETTINGS = {
    "float32": Lightweight(),
    "8 bits": Lightweight(update_bits=8),
    "8 bits, error feedback": Lightweight(update_bits=8, error_feedback=True),
    "4 bits": Lightweight(update_bits=4),
    "8 bits, rho 0.3": Lightweight(update_bits=8, prune=0.3),
}


def crossed(name: str, setting: Lightweight, steps: int) -> dict[str, int]:
    """Train one round; return the bytes of fronts by direction."""
    build, at, colors, size = MODELS[name]
    torch.manual_seed(0)
    halves, optimizer = cut(build(), at=at), partial(SGD, lr=0.01)
    num = BATCH * steps
    devices = [
        Device(
            cut(build(), at=at).front,
            optimizer=optimizer,
            train_set=TensorDataset(
                torch.randn(num, colors, size, size), torch.arange(num) % 10
            ),
            batch_size=BATCH,
        )
        for _ in range(NUM_DEVICES)
    ]
    link = type("Link", (RecordLink,), {"down": 0, "up": 0})
    result = train_locally(
        devices,
        halves.front.state_dict(),
        ServerHalf(_small(halves.back), CrossEntropyLoss(), optimizer),
        num_rounds=1,
        evaluate=False,
        lightweight=setting,
        make_link=link,
    )
    traffic = result.traffic
    return {
        "up": link.up + traffic.num_bytes(directions=["model-up"]),
        "down": link.down + traffic.num_bytes(directions=["model-down"]),
    }


def _small(back: nn.Module) -> nn.Module:
    """Return something in place of a back, whose work changes no byte of a front."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))


def main() -> None:
    """Print bytes, and their ratio to float32 at the same period."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--period", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| front | setting | up | down | ratio | within the round |")
    print("|---|---|---|---|---|---|")
    for name in MODELS:
        once = crossed(name, Lightweight(), 1)["down"]
        first: dict[str, int] = {}
        for text, setting in SETTINGS.items():
            own = {**vars(setting), "aggregate_every": options.period, "period": "step"}
            now = crossed(name, Lightweight(**own), options.steps)
            first = first or now
            ratio = sum(now.values()) / sum(first.values())
            begun = crossed(name, setting, 1)["down"] if setting.prunes else once
            within = (sum(now.values()) - begun) / (sum(first.values()) - once)
            print(
                f"| {name} | {text} | {now['up']:,} | {now['down']:,} | {ratio:.3f} "
                f"| {within:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
