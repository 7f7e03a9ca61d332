"""The model and the data. Nothing here knows that the model will be cut."""

import io
import os
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset
from flwr.common.config import UserConfig
from flwr_datasets.partitioner import DirichletPartitioner
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

DEFAULT = "cifar10_jpeg75_bytes_10k_2k.npz"


class VGG19(nn.Module):
    """VGG-19 with batch normalization (Simonyan and Zisserman, 2014)."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for multiple, repeats in ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4)):
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
        """Map images (N, 3, H, W), 32x32 or larger, to class scores."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def build_model(run: UserConfig) -> nn.Module:
    """Build the whole model; the same seed gives the same weights everywhere."""
    num_classes = int(load_arrays(*_source(run))[0].tensors[1].max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(run["seed"])
        return VGG19(num_classes, run["width"])


def _source(run: UserConfig) -> tuple[str, int, int, int]:
    path = run["data"]
    if not path and "SLFAC_DATA_DIR" in os.environ:
        path = str(Path(os.environ["SLFAC_DATA_DIR"]) / DEFAULT)
    if not path or not Path(path).exists():
        raise FileNotFoundError(
            f"no images at {path!r}; set data='/path/to/folder' in the run "
            "configuration (one subfolder of images a class), or the variable "
            f"SLFAC_DATA_DIR to a folder that holds {DEFAULT}"
        )
    return path, run["num-images"], run["image-size"], run["seed"]


@cache
def load_arrays(
    path: str, num_images: int, size: int, seed: int
) -> tuple[TensorDataset, TensorDataset]:
    """Return all images as (for the devices, for the server)."""
    if Path(path).is_dir():
        images, labels = _from_folder(path)
        ours, central = train_test_split(
            range(len(labels)), test_size=0.2, stratify=labels, random_state=seed
        )
    else:
        images, labels, num_train = _from_npz(path)
        ours, central = range(num_train), range(num_train, len(labels))
    ours = np.random.default_rng(seed).permutation(ours)[: num_images or None]
    ready = [i.convert("RGB").resize((size, size)) for i in images]
    x = torch.from_numpy(np.stack([np.asarray(i) for i in ready]))
    x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
    y = torch.tensor(labels)
    parts = (torch.as_tensor(list(part)) for part in (ours, central))
    train, test = (TensorDataset(x[part], y[part]) for part in parts)
    return train, test


def _from_folder(path: str) -> tuple[list[Image.Image], list[int]]:
    rows = load_dataset("imagefolder", data_dir=path, split="train")
    return list(rows["image"]), list(rows["label"])


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
    run: UserConfig, partition: int, num_partitions: int
) -> tuple[TensorDataset, TensorDataset]:
    """Return one device's (train, test) images, 80 and 20 % of its own."""
    source = _source(run)
    dealt = partitioner(source, num_partitions, run["alpha"])
    mine = list(dealt.load_partition(partition)["index"])
    train, test = train_test_split(mine, test_size=0.2, random_state=run["seed"])
    x, y = load_arrays(*source)[0].tensors
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])


def central_test_set(run: UserConfig) -> TensorDataset:
    """Return the images that no device sees."""
    return load_arrays(*_source(run))[1]
