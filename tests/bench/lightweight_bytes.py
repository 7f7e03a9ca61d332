"""What lightweight training saves on the wire: updates, dropout, rarer aggregation.

Usage: python -m tests.bench.lightweight_bytes [CAPTURED] [--rounds 20]

Trains over a link that turns every message into Flower's records and back, so that the
front's bytes are those that would cross. With CAPTURED (a folder that
`tests.bench.capture` wrote) smashed data of real training is also coded with and
without dropout, tensor by tensor.
"""

import argparse
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flwr_slfac import Device, Lightweight, cut
from flwr_slfac.codec import Codec, Identity, Waterfill, encode
from flwr_slfac.lightweight import DropMask
from flwr_slfac.split import LocalLink, ServerHalf, TrainRequest, train_locally
from flwr_slfac.split.protocol import TrainAnswer, TrainReply
from flwr_slfac.transport.records import (
    from_train_reply,
    from_train_request,
    to_train_reply,
    to_train_request,
)
from tests.bench.capture import load
from tests.models import vgg19_bn

NUM_DEVICES, BATCH = 4, 8


class RecordLink(LocalLink):
    """Carries requests as records; counts the arrays in them."""

    down = up = 0

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Write and read every request and reply."""
        contents = {k: from_train_request(r) for k, r in requests.items()}
        type(self).down += sum(_arrays(c) for c in contents.values())
        read = {k: to_train_request(c) for k, c in contents.items()}
        answers: dict[int, TrainAnswer] = {}
        for key, answer in super().train(read).items():
            assert isinstance(answer, TrainReply)
            content = from_train_reply(answer)
            type(self).up += _arrays(content)
            answers[key] = to_train_reply(content)
        return answers


def _arrays(content: object) -> int:
    return sum(r.count_bytes() for r in content.array_records.values())  # type: ignore[attr-defined]


def crossed(
    setting: Lightweight | None, num_rounds: int, codec: Codec, steps: int
) -> dict[str, int]:
    """Train a full-width VGG-19-BN front; return bytes by direction."""
    torch.manual_seed(0)
    halves = cut(vgg19_bn(), at="features.13")
    optimizer = partial(SGD, lr=0.01)
    devices = [
        Device(
            cut(vgg19_bn(), at="features.13").front,
            optimizer=optimizer,
            train_set=TensorDataset(
                torch.randn(BATCH * steps, 3, 32, 32), torch.arange(BATCH * steps) % 10
            ),
            batch_size=BATCH,
        )
        for _ in range(NUM_DEVICES)
    ]
    link = type("Link", (RecordLink,), {"down": 0, "up": 0})
    result = train_locally(
        devices,
        halves.front.state_dict(),
        ServerHalf(halves.back, CrossEntropyLoss(), optimizer),
        num_rounds=num_rounds,
        up=codec,
        down=codec,
        evaluate=False,
        lightweight=setting,
        make_link=link,
    )
    frames = {
        d: result.traffic.num_bytes(directions=[d])  # type: ignore[list-item]
        for d in ("up", "down", "model-up", "model-down")
    }
    frames["model-up"] += link.up
    frames["model-down"] += link.down
    return frames


def main() -> None:
    """Print every ratio to plain training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("captured", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| what | setting | ratio to plain |\n|---|---|---|")
    plain = crossed(None, 1, Identity(), 2)
    for bits in (8, 4, 2):
        light = crossed(Lightweight(update_bits=bits), 1, Identity(), 2)
        ratio = light["model-up"] / plain["model-up"]
        print(f"| front up | {bits} bits | {ratio:.3f} |", flush=True)
    for p in (0.1, 0.3, 0.5):
        light = crossed(Lightweight(activation_dropout=p), 1, Identity(), 2)
        ratio = (light["up"] + light["down"]) / (plain["up"] + plain["down"])
        print(f"| smashed, identity | p = {p} | {ratio:.3f} |", flush=True)
    every = crossed(None, options.rounds, Identity(), 1)
    for period in (2, 5):
        light = crossed(
            Lightweight(aggregate_every=period, period="round"),
            options.rounds,
            Identity(),
            1,
        )
        ratio = _front(light) / _front(every)
        setting = f"I = {period}, {options.rounds} rounds"
        print(f"| front both ways | {setting} | {ratio:.3f} |", flush=True)
    together = Lightweight(
        prune=0.3,
        gradient_bits=8,
        activation_dropout=0.1,
        aggregate_every=2,
        period="round",
    )
    light = crossed(together, options.rounds, Identity(), 1)
    setting = "rho 0.3, 8 bits, p 0.1, I 2"
    print(f"| front both ways | {setting} | {_front(light) / _front(every):.3f} |")
    if options.captured:
        for role, codec in (
            ("activation", Waterfill(nrmse=0.1)),
            ("gradient", Waterfill(nrmse=0.4)),
        ):
            _with_dropout(options.captured, role, codec)


def _front(crossed_bytes: Mapping[str, int]) -> int:
    return crossed_bytes["model-up"] + crossed_bytes["model-down"]


def _with_dropout(folder: Path, role: str, codec: Codec) -> None:
    """Print bytes of captured tensors with dropout over those without."""
    streams = load(folder)
    for p in (0.1, 0.3, 0.5):
        ratios = {}
        for name, steps in streams.items():
            if not name.endswith(role):
                continue
            tensor = steps[0]
            kept = DropMask(tensor.shape, p, seed=1).gather(tensor)
            sizes = [len(encode(x, codec, role=role)) for x in (kept, tensor)]  # type: ignore[arg-type]
            ratios[name] = sizes[0] / sizes[1]
        mean = statistics.geometric_mean(ratios.values())
        worst = max(ratios, key=lambda n: ratios[n])
        print(
            f"| {role}s, waterfill {codec.config()['nrmse']} | p = {p} | {mean:.3f}, "
            f"worst {ratios[worst]:.3f} ({worst}), of {len(ratios)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
