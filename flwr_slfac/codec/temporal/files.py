"""Remembered rows in files: what is mapped takes no memory that the system cannot free.

A file has no name any more from when it is mapped on: its room on the disk is free
again as soon as the last tensor that shares the mapping is, whatever ends the process.
"""

import tempfile
from pathlib import Path

import torch

from flwr_slfac.codec.wire import as_bytes

__all__ = ["in_file", "is_in_file"]


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
    # Written first and mapped then: a full disk would kill who writes to a mapping.
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".samples") as file:
        file.write(as_bytes(tensor))
        file.flush()
        flat = torch.from_file(
            file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype
        )
    return flat.reshape(tensor.shape)


def is_in_file(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is in a file."""
    return tensor.untyped_storage().filename is not None
