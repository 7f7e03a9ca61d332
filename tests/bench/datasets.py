"""Real images as tensors, for benchmarks, from the folder SLFAC_DATA_DIR."""

import gzip
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Training and test images (N, C, H, W), zero mean and unit deviation by channel.

    Parameters
    ----------
    train_x, train_y, test_x, test_y : Tensor
        Images in float32, classes in int64.
    num_classes : int
        Number of classes.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int


def load_dataset(folder: Path, name: str) -> Images:
    """Load `mnist`, `ham10000` or `cifar10` (a JPEG-75 subset of CIFAR-10)."""
    return {"mnist": _mnist, "ham10000": _ham10000, "cifar10": _cifar10}[name](folder)


def _mnist(folder: Path) -> Images:
    def read(name: str, offset: int) -> npt.NDArray[np.uint8]:
        data = gzip.decompress((folder / "mnist" / name).read_bytes())
        return np.frombuffer(data, np.uint8, offset=offset)

    parts = []
    for kind in ("train", "t10k"):
        x = read(f"{kind}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
        parts += [x, read(f"{kind}-labels-idx1-ubyte.gz", 8)]
    return _images(*parts, num_classes=10)


def _ham10000(folder: Path) -> Images:
    with np.load(folder / "ham10000_28.npz") as file:
        x = file["images"].transpose(0, 3, 1, 2)
        y, split = file["labels"], file["split"]
    train, test = split == 0, split == 2
    return _images(x[train], y[train], x[test], y[test], num_classes=7)


def _cifar10(folder: Path) -> Images:
    parts = []
    with np.load(folder / "cifar10_jpeg75_bytes_10k_2k.npz") as file:
        for kind in ("train", "test"):
            data, offsets = file[f"jpeg_{kind}"], file[f"off_{kind}"]
            images = [
                np.asarray(Image.open(io.BytesIO(data[a:b].tobytes())).convert("RGB"))
                for a, b in itertools.pairwise(offsets)
            ]
            parts += [np.stack(images).transpose(0, 3, 1, 2), file[f"y_{kind}"]]
    return _images(*parts, num_classes=10)


def _images(
    train_x: npt.NDArray[np.uint8],
    train_y: npt.NDArray[np.integer],
    test_x: npt.NDArray[np.uint8],
    test_y: npt.NDArray[np.integer],
    num_classes: int,
) -> Images:
    train, test = (torch.from_numpy(x.copy()).float() / 255 for x in (train_x, test_x))
    mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    return Images(
        (train - mean) / std,
        torch.from_numpy(train_y.astype(np.int64)),
        (test - mean) / std,
        torch.from_numpy(test_y.astype(np.int64)),
        num_classes,
    )
