"""Capture smashed data from training on real images, for the codec benchmarks.

Usage: python -m tests.bench.capture FOLDER [--late 100] [--batch 64] [--threads 2]

Quarter-width ResNet-18 and VGG-19-BN and a small ViT, each trained on MNIST, HAM10000
(28 px) and a CIFAR-10 subset from SLFAC_DATA_DIR. Three consecutive steps are saved
early and late, so that what a codec remembers of its stream can be measured. FOLDER
gets ``smashed.npz``; names are ``model/data/phase/role/step``.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_slfac import cut
from tests.bench.datasets import Images, load_dataset
from tests.models import resnet18, vgg19_bn, vit

DATASETS = ("mnist", "ham10000", "cifar10")
MODELS = ("resnet18", "vgg19_bn", "vit")
EARLY = 5
CONSECUTIVE = 3
FILE = "smashed.npz"

Arrays = dict[str, npt.NDArray[np.float32]]


def main() -> None:
    """Train every model on every data set and save what crosses the cut."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--late", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    arrays: Arrays = {}
    for data in DATASETS:
        images = load_dataset(Path(os.environ["SLFAC_DATA_DIR"]), data)
        for model in MODELS:
            steps = capture(model, images, options.late, options.batch)
            for phase, step, activation, gradient in steps:
                place = f"{model}/{data}/{phase}"
                arrays[f"{place}/activation/{step}"] = activation.numpy()
                arrays[f"{place}/gradient/{step}"] = gradient.numpy()
            print(f"{model} on {data}: {tuple(activation.shape)}", flush=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    np.savez(options.folder / FILE, **arrays)


def load(folder: Path) -> dict[str, list[Tensor]]:
    """Return the consecutive steps of every stream, by ``model/data/phase/role``."""
    streams: dict[str, list[Tensor]] = {}
    with np.load(folder / FILE) as file:
        for name in file.files:
            stream = streams.setdefault(name.rpartition("/")[0], [])
            stream.append(torch.from_numpy(file[name]))
    return streams


def capture(
    name: str, images: Images, late: int, batch: int
) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """Train, and yield phase, step, activation and cut-layer gradient."""
    torch.manual_seed(0)
    size = 28 if name == "resnet18" else 32
    # CIFAR-10 is cropped for the ResNet, 28 px images are padded for the others.
    margin = (size - images.train_x.shape[-1]) // 2
    pixels = F.pad(images.train_x, (margin,) * 4)
    model, at = build(name, pixels.shape[1], images.num_classes)
    halves = cut(model, at=at)
    parameters = [*halves.front.parameters(), *halves.back.parameters()]
    rate = 0.02 if name == "vit" else 0.05
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    picks = torch.randperm(len(pixels))
    for step in range(1, late + CONSECUTIVE):
        index = picks[torch.arange(step * batch, (step + 1) * batch) % len(picks)]
        activation = halves.front(pixels[index])
        activation.retain_grad()
        loss = F.cross_entropy(halves.back(activation), images.train_y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for phase, first in (("early", EARLY), ("late", late)):
            if first <= step < first + CONSECUTIVE:
                gradient = activation.grad
                assert gradient is not None
                yield phase, step, activation.detach().clone(), gradient.clone()


def build(name: str, in_channels: int, num_classes: int) -> tuple[nn.Module, str]:
    """Return a model and the module after which it is cut."""
    if name == "resnet18":
        return resnet18(num_classes, in_channels, width=16), "layer1"
    if name == "vgg19_bn":
        # After the second convolution of the second stage: 32 channels of 16 x 16.
        return vgg19_bn(num_classes, in_channels, width=16), "features.12"
    model = vit(
        dim=64, depth=4, heads=2, in_channels=in_channels, num_classes=num_classes
    )
    return model, "blocks.1"


if __name__ == "__main__":
    main()
