"""Where examples come from: digits, .npz and idx files, folders of images, the hub."""

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from flwr_slfac import SettingError

HUB = "hub:"
_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".webp")
)


@dataclass(frozen=True)
class Examples:
    """Inputs, classes and what else is known of each example.

    Parameters
    ----------
    x : Tensor, shape (N, C, H, W)
        Inputs, float32.
    y : Tensor, shape (N,)
        Classes, int64.
    columns : dict of str to ndarray
        Further columns by name, of N values each.
    """

    x: Tensor
    y: Tensor
    columns: dict[str, Any]

    def take(self, places: Any) -> "Examples":
        """Return the examples at these places."""
        index = torch.as_tensor(np.asarray(places, dtype=np.int64))
        columns = {name: own[np.asarray(places)] for name, own in self.columns.items()}
        return Examples(self.x[index], self.y[index], columns)

    def data_set(self) -> TensorDataset:
        """Return pairs of input and class."""
        return TensorDataset(self.x, self.y)


def read_examples(source: str, folder: Path) -> Examples:
    """Return all examples of a source.

    Parameters
    ----------
    source : str
        As `scenario_training.Data` has it.
    folder : Path
        What a relative path is relative to.

    Raises
    ------
    SettingError
        If it cannot be read, or holds no images with classes.
    """
    if source == "digits":
        return _digits()
    try:
        if source.startswith(HUB):
            return _hub(source.removeprefix(HUB), folder)
        path = folder / os.path.expandvars(source)
        if path.suffix == ".npz":
            return _npz(path)
        return _idx(path) if any(path.glob("*-idx3-ubyte*")) else _image_folder(path)
    except SettingError:
        raise
    # Readers of files fail in as many ways as there are damaged files.
    except Exception as error:
        raise SettingError(f"data.source {source} cannot be read: {error}") from error


def _digits() -> Examples:
    """Return the 1,797 digits of 8 x 8 pixels that scikit-learn brings."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # Pixels count from 0 to 16.
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return Examples(x, torch.tensor(labels, dtype=torch.int64), {})


def _examples(
    images: Any, labels: Any, columns: dict[str, Any], source: Any
) -> Examples:
    """Bring images to N x C x H x W; those of 8 bits become numbers from 0 to 1."""
    images, labels = np.asarray(images), np.asarray(labels)
    if not len(images) or len(images) != len(labels) or images.ndim not in (3, 4):
        raise SettingError(
            f"data.source {source} has images of shape {images.shape} and classes of "
            f"{labels.shape}; give N images of one size and N classes"
        )
    x = torch.from_numpy(np.ascontiguousarray(images))
    x = x.float() / 255 if images.dtype == np.uint8 else x.float()
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2).contiguous()
    rest = {name: own for name, own in columns.items() if len(own) == len(labels)}
    return Examples(x, torch.from_numpy(labels.astype(np.int64).reshape(-1)), rest)


def _npz(path: Path) -> Examples:
    """Return what ``x`` and ``y`` of an .npz hold, and further columns."""
    with np.load(path, allow_pickle=False) as held:
        columns = {name: held[name] for name in held.files}
    for name in ("x", "y"):
        if name not in columns:
            raise SettingError(
                f"data.source {path} has {', '.join(columns) or 'nothing'}, and no "
                f"{name!r}; give images as x and classes as y"
            )
    return _examples(columns.pop("x"), columns.pop("y"), columns, path)


def _idx(folder: Path) -> Examples:
    """Return all pairs of idx files of a folder, MNIST's form, packed or not."""
    images, labels = [], []
    for path in sorted(folder.glob("*-images-idx3-ubyte*")):
        twin = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
        if not twin.exists():
            raise SettingError(f"data.source has {path} and no {twin.name} beside it")
        images.append(_idx_values(path, 3))
        labels.append(_idx_values(twin, 1))
    return _examples(np.concatenate(images), np.concatenate(labels), {}, folder)


def _idx_values(path: Path, num_dimensions: int) -> Any:
    """Return the array of an idx file: magic number, sizes, bytes."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    sizes = np.frombuffer(content, ">u4", num_dimensions, 4)
    if content[:4] != bytes((0, 0, 8, num_dimensions)):
        raise SettingError(f"data.source: {path} is no idx file of unsigned bytes")
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions)
    return values.reshape(tuple(int(size) for size in sizes))


def _image_folder(folder: Path) -> Examples:
    """Return the images of a folder that has a folder for each class.

    Folders between class and image, if there are some, become the column ``folder``:
    sites or writers, for natural partitions.
    """
    from PIL import Image

    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    images, labels, folders = [], [], []
    for number, name in enumerate(classes):
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() in _SUFFIXES:
                with Image.open(path) as image:
                    images.append(image.copy())
                labels.append(number)
                folders.append(path.parent.relative_to(folder / name).as_posix())
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise SettingError(
            f"data.source {folder} has {len(images)} images of {len(sizes)} sizes in "
            f"{len(classes)} classes; give a folder for each class, images of one size"
        )
    columns = {"folder": np.array(folders)}
    return _examples(_pixels(images), labels, columns, folder)


def _pixels(images: Sequence[Any]) -> Any:
    """Return pictures as one array, grey if all are."""
    mode = "L" if {image.mode for image in images} <= {"L", "1"} else "RGB"
    return np.stack([np.asarray(image.convert(mode)) for image in images])


def _hub(name: str, folder: Path) -> Examples:
    """Return all splits of a data set of the hub, or of a folder in its form."""
    from datasets import ClassLabel, Image, concatenate_datasets, load_dataset

    local = folder / os.path.expandvars(name)
    splits = load_dataset(str(local) if local.is_dir() else name)
    whole = concatenate_datasets([splits[split] for split in splits])
    kinds = whole.features
    image = next((n for n, kind in kinds.items() if isinstance(kind, Image)), None)
    label = next((n for n, kind in kinds.items() if isinstance(kind, ClassLabel)), None)
    if image is None or label is None:
        raise SettingError(
            f"data.source {HUB}{name} has the columns {', '.join(kinds)}, none of "
            "images or none of class labels; convert it to .npz with x and y"
        )
    rest = {n: np.array(whole[n]) for n in kinds if n not in (image, label)}
    return _examples(_pixels(whole[image]), whole[label], rest, f"{HUB}{name}")
