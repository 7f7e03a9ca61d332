"""Capture smashed data of many kinds of small networks, for the choice of plans.

Usage: python -m tests.bench.plan_captures FOLDER [--late 60]

Networks are trained for some steps on real images from SLFAC_DATA_DIR, and on the
text of this repository: ResNet, VGG, inverted bottlenecks with ReLU6 as in MobileNetV2,
group normalization, ViT, GPT, LSTM, and perceptrons with sparse vectors after a ReLU.
FOLDER gets ``plans.npz`` with activations and cut-layer gradients, early and late in
training; names are ``network/place/phase/role``.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.bench.datasets import load_dataset
from tests.models import gpt, resnet18, vgg19_bn, vit

FILE = "plans.npz"
EARLY = 4
_TEXT_LENGTH, _TEXT_BATCH, _BATCH = 64, 32, 64
Batches = Callable[[int], tuple[Tensor, Tensor]]


def main() -> None:
    """Train every network and save what crosses its cuts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--late", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    arrays = {}
    for name, model, places, batches in networks():
        for place, phase, role, x in steps(model, places, batches, options.late):
            arrays[f"{name}/{place}/{phase}/{role}"] = x.numpy()
            print(f"{name}/{place}/{phase}/{role}", tuple(x.shape), flush=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    np.savez(options.folder / FILE, **arrays)


def load(folder: Path) -> dict[str, Tensor]:
    """Return all that was captured, by ``network/place/phase/role``."""
    with np.load(folder / FILE) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def steps(
    model: nn.Module, places: list[str], batches: Batches, late: int
) -> Iterator[tuple[str, str, str, Tensor]]:
    """Train, and yield place, phase, role and tensor."""
    found: dict[str, Tensor] = {}

    def catch(place: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            x = output[0] if isinstance(output, tuple) else output
            assert isinstance(x, Tensor)
            x.retain_grad()
            found[place] = x

        return hook

    for place in places:
        model.get_submodule(place).register_forward_hook(catch(place))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for step in range(1, late + 1):
        x, y = batches(step)
        scores = model(x)
        loss = F.cross_entropy(scores.reshape(-1, scores.shape[-1]), y.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        phase = {EARLY: "early", late: "late"}.get(step)
        for place, value in found.items() if phase else ():
            assert phase is not None
            assert value.grad is not None
            yield place, phase, "activation", value.detach().clone()
            yield place, phase, "gradient", value.grad.clone()


def networks() -> Iterator[tuple[str, nn.Module, list[str], Batches]]:
    """Yield name, network, places to capture at, and its batches."""
    folder = Path(os.environ["SLFAC_DATA_DIR"])
    torch.manual_seed(0)
    cifar, mnist, ham = (
        images(folder, n, s)
        for n, s in (("cifar10", 32), ("mnist", 28), ("ham10000", 28))
    )
    places = ["layer1", "layer3", "avgpool"]
    yield "resnet18/cifar10", resnet18(10, 3, width=16), places, cifar
    vgg = vgg19_bn(7, 3, width=16)
    places = ["features.12", "classifier.1"]
    yield "vgg19_bn/ham10000", vgg, places, images(folder, "ham10000", 32)
    yield "mobile/cifar10", mobile(3, 10), ["2.expand", "2.depthwise", "3"], cifar
    yield "mobile/mnist", mobile(1, 10), ["2.depthwise"], mnist
    yield "groupnorm/ham10000", groupnorm(3, 7), ["5"], ham
    transformer = vit(dim=64, depth=4, heads=2, in_channels=3)
    yield "vit/cifar10", transformer, ["blocks.0", "blocks.2"], cifar
    characters = text(_TEXT_LENGTH)
    places = ["drop", "h.1"]
    yield "gpt/text", gpt(256, _TEXT_LENGTH, dim=64, heads=2), places, characters
    yield "lstm/text", Recurrent(), ["embedding", "lstm"], characters
    yield "mlp/mnist", perceptron(784, 512, 10), ["2", "4"], mnist
    yield "mlp/cifar10", perceptron(3072, 1024, 10), ["2"], cifar


def images(folder: Path, name: str, size: int) -> Batches:
    """Return batches of a data set, padded to a size."""
    data = load_dataset(folder, name)
    margin = (size - data.train_x.shape[-1]) // 2
    pixels = F.pad(data.train_x, (margin,) * 4)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(step * _BATCH, (step + 1) * _BATCH) * 7919 % len(pixels)
        return pixels[index], data.train_y[index]

    return batches


def text(length: int) -> Batches:
    """Return batches of bytes of this repository's texts, and the bytes after them."""
    root = Path(__file__).parents[2]
    paths = sorted([*root.glob("*.md"), *(root / "flwr_slfac").rglob("*.py")])
    data = np.concatenate([np.frombuffer(p.read_bytes(), np.uint8) for p in paths])
    stream = torch.from_numpy(data.astype(np.int64))

    def batches(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        most = len(stream) - length - 1
        starts = torch.randint(most, (_TEXT_BATCH,), generator=generator)
        index = starts[:, None] + torch.arange(length)
        return stream[index], stream[index + 1]

    return batches


class Inverted(nn.Module):
    """An inverted bottleneck (Sandler et al., 2018): six times as wide inside."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        wide = 6 * channels
        self.expand = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
        )
        self.project = nn.Sequential(
            nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.depthwise(self.expand(x)))


def mobile(in_channels: int, num_classes: int) -> nn.Module:
    """Build a small MobileNetV2."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, 2, 1, bias=False),
        nn.Sequential(nn.BatchNorm2d(8), nn.ReLU6()),
        Inverted(8, 12, 1),
        Inverted(12, 16, 2),
        Inverted(16, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, num_classes),
    )


def groupnorm(in_channels: int, num_classes: int) -> nn.Module:
    """Build convolutions with group normalization."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, 1, 1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def perceptron(num_in: int, hidden: int, num_classes: int) -> nn.Module:
    """Build a perceptron; its vectors after a ReLU are mostly zero."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(num_in, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


class Recurrent(nn.Module):
    """Bytes to the byte that follows, by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 64)
        self.lstm = nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, 256)

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(index))[0])


if __name__ == "__main__":
    main()
