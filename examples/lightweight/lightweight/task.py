"""The model and the data. Nothing here knows that the model will be cut."""

import io
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from flwr_datasets.partitioner import DirichletPartitioner
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

# Channels, in widths, and convolutions of VGG-19's stages; each halves the image.
STAGES = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))


class VGG19(nn.Module):
    """VGG-19 with batch normalization (Simonyan and Zisserman, 2014).

    Of images below 32x32 it has the first stages only: three for 8x8.
    """

    def __init__(self, colors: int, size: int, num_classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = colors
        for multiple, repeats in STAGES[: size.bit_length() - 1]:
            for _ in range(repeats):
                own = width * multiple
                layers += [nn.Conv2d(channels, own, 3, padding=1)]
                layers += [nn.BatchNorm2d(own), nn.ReLU(inplace=True)]
                channels = own
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to class scores."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def build_model(run: Mapping[str, Any]) -> nn.Module:
    """Build the whole model; the same seed gives the same weights everywhere."""
    images, labels = load_arrays(*_source(run))[0].tensors
    num_classes = int(labels.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(run["seed"])
        return VGG19(images.shape[1], images.shape[2], num_classes, run["width"])


def _source(run: Mapping[str, Any]) -> tuple[str, int, int, int]:
    data = run["data"]
    if data not in ("digits", "cifar10") and not Path(data).exists():
        raise FileNotFoundError(
            f"data is {data!r}, and there is no such file; set it to 'digits', to "
            "'cifar10' (which is downloaded), to a folder of images with one subfolder "
            "a class, or to a .npz as task.py reads it"
        )
    return data, run["num-images"], run["image-size"], run["seed"]


@cache
def load_arrays(
    data: str, num_images: int, size: int, seed: int
) -> tuple[TensorDataset, TensorDataset]:
    """Return all images as (for the devices, for the server)."""
    if data == "digits":
        pixels, labels = load_digits(return_X_y=True)
        x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
        num_train = 0
    else:
        images, labels, num_train = _read(data)
        ready = [i.convert("RGB").resize((size, size)) for i in images]
        x = torch.from_numpy(np.stack([np.asarray(i) for i in ready]))
        x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
    y = torch.tensor(labels)
    if num_train:
        ours, central = range(num_train), range(num_train, len(y))
    else:
        ours, central = train_test_split(
            range(len(y)), test_size=0.2, stratify=labels, random_state=seed
        )
    ours = np.random.default_rng(seed).permutation(ours)[: num_images or None]
    parts = (torch.as_tensor(list(part)) for part in (ours, central))
    train, test = (TensorDataset(x[part], y[part]) for part in parts)
    return train, test


def _read(data: str) -> tuple[list[Image.Image], list[int], int]:
    """Return images, classes, and how many are for training; 0 for some of all."""
    if data == "cifar10":
        rows = [load_dataset("uoft-cs/cifar10", split=s) for s in ("train", "test")]
        images = [image for part in rows for image in part["img"]]
        return images, [y for part in rows for y in part["label"]], len(rows[0])
    if Path(data).is_dir():
        rows = load_dataset("imagefolder", data_dir=data, split="train")
        return list(rows["image"]), list(rows["label"]), 0
    return _from_npz(data)


def _from_npz(path: str) -> tuple[list[Image.Image], list[int], int]:
    """Read arrays jpeg_, off_ and y_ of train and test: bytes, offsets, classes."""
    images: list[Image.Image] = []
    labels: list[int] = []
    num_train = 0
    with np.load(path) as file:
        for kind in ("train", "test"):
            data, offsets = file[f"jpeg_{kind}"], file[f"off_{kind}"]
            images += [
                Image.open(io.BytesIO(data[a:b].tobytes()))
                for a, b in pairwise(offsets)
            ]
            labels += file[f"y_{kind}"].tolist()
            num_train = num_train or len(labels)
    return images, labels, num_train


@cache
def partitioner(
    source: tuple[str, int, int, int], num_partitions: int, alpha: float
) -> DirichletPartitioner:
    """Deal the devices' images out by a Dirichlet distribution over classes."""
    dealt = DirichletPartitioner(
        num_partitions,
        partition_by="label",
        alpha=alpha,
        min_partition_size=40,
        seed=source[-1],
    )
    labels = load_arrays(*source)[0].tensors[1].tolist()
    dealt.dataset = Dataset.from_dict({"index": range(len(labels)), "label": labels})
    return dealt


def load_partition(
    run: Mapping[str, Any], partition: int, num_partitions: int
) -> tuple[TensorDataset, TensorDataset]:
    """Return one device's (train, test) images, 80 and 20 % of its own."""
    source = _source(run)
    dealt = partitioner(source, num_partitions, run["alpha"])
    mine = list(dealt.load_partition(partition)["index"])
    train, test = train_test_split(mine, test_size=0.2, random_state=run["seed"])
    x, y = load_arrays(*source)[0].tensors
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])


def central_test_set(run: Mapping[str, Any]) -> TensorDataset:
    """Return the images that no device sees."""
    return load_arrays(*_source(run))[1]
