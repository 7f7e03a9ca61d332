"""Tensors in files: what is mapped takes no memory that the system cannot free.

A file of `in_file` has no name any more from when it is mapped on: its room on the disk
is free again as soon as the last tensor that shares the mapping is, whatever ends the
process.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["in_file", "is_in_file", "mapped_file", "write_file"]


def in_file(tensor: torch.Tensor, folder: str | Path) -> torch.Tensor:
    """Return a tensor with the same values, in a file.

    Parameters
    ----------
    tensor : Tensor
        On the CPU.
    folder : str or Path
        Where the file is; on a disk, as one in memory frees nothing.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    if not tensor.numel():
        return tensor
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".samples") as file:
        write_file(tensor, Path(file.name))
        return mapped_file(Path(file.name), tensor.dtype, tensor.shape)


def write_file(tensor: torch.Tensor, path: Path) -> None:
    """Write a tensor's values to a file, which `mapped_file` reads.

    Raises
    ------
    OSError
        If it cannot be written. To write to a mapping on a full disk would be the end
        of the process.
    """
    with path.open("wb") as file:
        file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def mapped_file(path: Path, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """Return the tensor in a file, whose values must not be changed.

    Parameters
    ----------
    path : Path
        Of a file with as many bytes as dtype and shape say, above 0.
    dtype, shape
        Of the tensor.
    """
    size = math.prod(shape)
    flat = torch.from_file(str(path), shared=True, size=size, dtype=dtype)
    return flat.reshape(tuple(shape))


def is_in_file(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is in a file."""
    return tensor.untyped_storage().filename is not None
