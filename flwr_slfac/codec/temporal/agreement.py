"""How both sides know that they mean the same samples, and remember the same of them.

A frame names the version of the memory that it counts on, a digest of all frames
before. Where the receiver knows by itself which samples a frame is of, none is named,
and the frame counts on a digest of that version and of the samples: a receiver that
derives others refuses it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["VERSION_BYTES", "counted_on", "ids_of", "version_after"]

# Our choice: sides that are out of step go unnoticed once in 2**64 times.
VERSION_BYTES = 8

Ids = npt.NDArray[np.int64]


def ids_of(samples: Sequence[int], num_rows: int) -> Ids:
    """Return the numbers of samples, one a row.

    Raises
    ------
    ValueError
        If they are no such numbers; says what they are.
    """
    try:
        ids = np.array(samples, dtype=np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"samples are not whole numbers: {error}") from error
    if ids.shape != (num_rows,) or (ids < 0).any():
        raise ValueError(
            f"samples of shape {ids.shape}, the least of them "
            f"{ids.min(initial=0)}, for {num_rows} rows; give each row the number of "
            "its sample, 0 or more"
        )
    return ids


def counted_on(version: bytes, ids: Ids) -> bytes:
    """Return what a frame counts on that names no sample.

    Parameters
    ----------
    version : bytes
        Of all frames before; empty if there are none.
    ids : ndarray of int64 (n,)
        Of the samples.
    """
    return _digest(version, ids.astype("<i8").tobytes())


def version_after(
    before: bytes,
    dtype: torch.dtype,
    shape: Sequence[int],
    sections: Sequence[bytes | memoryview],
) -> bytes:
    """Return the version after a frame.

    Parameters
    ----------
    before : bytes
        What the frame counts on.
    dtype, shape, sections
        Of the frame.
    """
    return _digest(before, f"{dtype}{tuple(shape)}".encode(), *sections)


def _digest(before: bytes, *parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(before, digest_size=VERSION_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()
