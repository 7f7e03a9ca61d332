"""Counts of what a plan's trial would code, by NumPy."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NUM_CLASSES", "NUM_KEYS", "count_levels"]

Array = npt.NDArray[Any]
NUM_CLASSES = 60
# Levels of a class: their sign, and 0, 1, 2-3, 4-7, ... of their magnitude, of which
# larger ones than this are not told apart.
NUM_KEYS = 64
_LARGEST = np.float32(2**22)
# As solver.py has it.
_SHRINK = np.float32(0.1)


def count_levels(
    matrix: Array,
    first: int,
    last: int,
    rows: Array,
    columns: Array,
    offset: int,
    inverse: float,
    counts: Array,
) -> None:
    """Count levels by class and octave.

    Parameters
    ----------
    matrix : ndarray (S, R)
        float32, contiguous: coefficients.
    first, last : int
        Columns to count, from the first to before the last.
    rows, columns : ndarray (S,), (R,)
        int16: half units of energy.
    offset : int
        From half units to half classes.
    inverse : float
        Of the step, as float32 holds it.
    counts : ndarray (60, 64)
        int64: what is found is added.
    """
    scaled = matrix[:, first:last] * np.float32(inverse)
    sizes = np.clip(np.abs(scaled) - _SHRINK, np.float32(0), _LARGEST)
    exponents = np.frexp(np.rint(sizes))[1]
    classes = rows[:, None].astype(np.int64) + columns[first:last] + offset >> 1
    keys = np.clip(classes, 0, NUM_CLASSES - 1) * NUM_KEYS + NUM_KEYS // 2
    keys += np.where(scaled < 0, -exponents, exponents)
    found = np.bincount(keys.reshape(-1), minlength=NUM_CLASSES * NUM_KEYS)
    counts += found.reshape(counts.shape)
