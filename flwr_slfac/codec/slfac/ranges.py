"""The ranges of components, as a decoder needs them.

Ranges travel as float16 relative to one power of two per tensor, rounded outward, so a
coefficient is never outside its range and the error is half a step of the range that
the decoder sees: float16's overflow and underflow cannot reach it.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.slfac.fqc import Grid
from flwr_slfac.errors import DecodeError

Array = npt.NDArray[Any]


def range_exponent(ends: torch.Tensor) -> int:
    """Return the exponent e for which all ranges lie within +-2**e."""
    return math.frexp(float(ends.abs().max()))[1]


def round_outward(ends: torch.Tensor, exponent: int) -> torch.Tensor:
    """Return the tightest float16 range, times ``2**exponent``, around each range.

    Parameters
    ----------
    ends : Tensor (2 ends, 2, K)
        Lower end and negative of the upper one, within +-2**exponent.

    Returns
    -------
    Tensor (2 ends, 2, K)
        float16.
    """
    scaled = ends.to(torch.float64) * 2.0**-exponent
    half = scaled.to(torch.float16)
    bits = half.view(torch.int16)
    # One step down: towards zero for positive bits, away from it for negative ones. A
    # zero that is too large is -0, which negative values round to.
    below = torch.where(half > 0, bits - 1, bits + 1)
    down = torch.where(half > scaled, below.view(torch.float16), half)
    down[1].neg_()
    return down


def pack_ranges(ranges: Array, has_high: Array, symmetric: bool) -> memoryview:
    """Lay out float16 ranges (2 ends, 2 components, R), low components first.

    A symmetric range travels as its upper end; an empty component has none.
    """
    ends = ranges[1:] if symmetric else ranges
    high = ends[:, 1][:, has_high]
    return (
        np.concatenate([ends[:, 0].reshape(-1), high.reshape(-1)]).view(np.uint8).data
    )


def unpack_ranges(data: memoryview, has_high: Array, symmetric: bool) -> Array:
    """Undo `pack_ranges`, or raise DecodeError for ranges that cannot be."""
    num_rows, num_high = len(has_high), int(has_high.sum())
    num_ends = 1 if symmetric else 2
    if data.nbytes != 2 * num_ends * (num_rows + num_high):
        raise DecodeError(
            f"{data.nbytes} bytes of ranges for {num_rows + num_high} components"
        )
    flat = np.frombuffer(data, np.float16)
    ends = np.zeros((num_ends, 2, num_rows), np.float16)
    ends[:, 0] = flat[: num_ends * num_rows].reshape(num_ends, -1)
    ends[:, 1, has_high] = flat[num_ends * num_rows :].reshape(num_ends, -1)
    low = -ends[-1] if symmetric else ends[0]
    # Of infinities and NaN it is an infinity or NaN.
    with np.errstate(invalid="ignore"):
        span = ends[-1].astype(np.float32) - low.astype(np.float32)
    if not (span.min() >= 0 and span.max() < math.inf):
        raise DecodeError("a range is not finite, or its ends are swapped")
    return np.stack([low, ends[-1]])


def grid_from_ranges(
    ranges: torch.Tensor,
    exponent: int,
    widths: torch.Tensor,
    power: float,
    dtype: torch.dtype,
) -> Grid:
    """Return the grid of float16 ranges (2, 2, R) times ``2**exponent``."""
    low, high = (ranges.to(torch.float64) * 2.0**exponent).to(dtype)
    is_point = ranges[0] == ranges[1]
    return Grid(low, high, torch.where(is_point, 0, widths), power)
