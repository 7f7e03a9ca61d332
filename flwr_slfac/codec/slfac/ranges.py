"""The ranges of components, as a decoder needs them.

Ranges travel as float16 relative to one power of two per tensor, rounded outward, so a
coefficient is never outside its range and the error is half a step of the range that
the decoder sees: float16's overflow and underflow cannot reach it.
"""

import math

import torch

from flwr_slfac.codec.slfac.fqc import Grid
from flwr_slfac.codec.wire import as_bytes, from_bytes
from flwr_slfac.errors import DecodeError


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


def pack_ranges(
    ranges: torch.Tensor, has_high: torch.Tensor, symmetric: bool
) -> memoryview:
    """Lay out float16 ranges (2 ends, 2 components, R), low components first.

    A symmetric range travels as its upper end; an empty component has none.
    """
    ends = ranges[1:] if symmetric else ranges
    return as_bytes(
        torch.cat([ends[:, 0].reshape(-1), ends[:, 1][:, has_high].reshape(-1)])
    )


def unpack_ranges(
    data: memoryview, has_high: torch.Tensor, symmetric: bool
) -> torch.Tensor:
    """Undo `pack_ranges`, or raise DecodeError for ranges that cannot be."""
    num_rows, num_high = len(has_high), int(has_high.sum())
    num_ends = 1 if symmetric else 2
    cpu = torch.device("cpu")
    flat = from_bytes(data, torch.float16, (num_ends * (num_rows + num_high),), cpu)
    ends = torch.zeros(num_ends, 2, num_rows, dtype=torch.float16)
    ends[:, 0] = flat[: num_ends * num_rows].reshape(num_ends, -1)
    ends[:, 1, has_high] = flat[num_ends * num_rows :].reshape(num_ends, -1)
    low = -ends[-1] if symmetric else ends[0]
    span = torch.sub(ends[-1].float(), low.float())
    least, most = torch.aminmax(span)
    # Differences of finite halves are finite, those of others are not, or are NaN.
    if not (float(least) >= 0 and float(most) < math.inf):
        raise DecodeError("a range is not finite, or its ends are swapped")
    return torch.stack([low, ends[-1]])


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
