"""A histogram of magnitudes, on which PowerQuant and EasyQuant search.

Counts are integers, so the search's answer does not depend on the order of sums: the
same on any number of threads. Bins are even in the square root of the magnitude, which
resolves small values where bell-shaped data has most of its mass.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

NUM_BINS = 8192
Array: TypeAlias = npt.NDArray[np.float64]

# Magnitude that stands for each bin, in (0, 1).
BIN_CENTERS: Array = np.square((np.arange(NUM_BINS) + 0.5) / NUM_BINS)


def magnitude_counts(unit: torch.Tensor) -> Array:
    """Count magnitudes in [0, 1] per bin."""
    bins = (unit.sqrt() * NUM_BINS).to(torch.int32).clamp_(max=NUM_BINS - 1)
    counts = torch.bincount(bins.reshape(-1), minlength=NUM_BINS)
    return counts.to("cpu").numpy().astype(np.float64)


def symmetric_last(bits: int, *, signed: bool) -> int:
    """Return the last code of magnitudes; a sign, where there is one, takes a bit."""
    return int(2 ** (bits - 1) - 1 if signed else 2**bits - 1)


def with_sign(codes: torch.Tensor, tensor: torch.Tensor, last: int) -> torch.Tensor:
    """Fold the sign of `tensor` into magnitude codes: 0 to ``2 * last``."""
    return torch.where(tensor < 0, last - codes, last + codes)
