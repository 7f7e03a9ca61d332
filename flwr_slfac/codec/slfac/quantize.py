"""Quantization within components, and the ranges that a decoder needs for it.

Everything here is per component: pairs (2, K) hold the low and the high component of K
rows. Ranges travel as float16 relative to one power of two per tensor, rounded outward,
so a coefficient is never outside its range and the error is half a step of the range
that the decoder sees: float16's overflow and underflow cannot reach it.
"""

import math
from dataclasses import dataclass

import torch

from flwr_slfac.codec.base import as_bytes, from_bytes
from flwr_slfac.codec.packing import (
    merge_codes,
    merge_uneven,
    spread_codes,
    spread_uneven,
)
from flwr_slfac.codec.slfac.bands import (
    first_mask,
    low_mask,
    pick,
    put_group,
    take_group,
)
from flwr_slfac.errors import DecodeError


@dataclass(frozen=True)
class Grid:
    """The quantization levels of K rows.

    Parameters
    ----------
    low, high : Tensor (2, K)
        Range of each component, in the dtype of the coefficients.
    widths : Tensor (2, K)
        int32: bits of a code; 0 where the range is a point, which needs no code.
    power : float
        0: min-max linear quantization, ``2**width`` levels from low to high. Else the
        levels are symmetric, ``2**width - 1`` of them within +-high, and uniform in
        ``sign(x) |x|**power``: PowerQuant (Yvinec et al., 2023).
    """

    low: torch.Tensor
    high: torch.Tensor
    widths: torch.Tensor
    power: float = 0.0

    def lanes(self, lanes: slice, device: torch.device) -> "Grid":
        """Return the grid of some rows, on a device."""
        low, high = self.low[:, lanes].to(device), self.high[:, lanes].to(device)
        return Grid(low, high, self.widths[:, lanes].to(device), self.power)

    def encoder(self) -> torch.Tensor:
        """Return what `to_codes` needs of each component, and its width, (3, 2, K)."""
        top, bits = self._top()
        if self.power:
            return torch.stack([_reciprocal(self.high), top, bits])
        return torch.stack([self.low, top * _reciprocal(self.high - self.low), bits])

    def decoder(self) -> torch.Tensor:
        """Return what `to_values` needs of each component, and its width, (3, 2, K)."""
        top, bits = self._top()
        if self.power:
            return torch.stack([self.high, _reciprocal(top), bits])
        return torch.stack([self.low, (self.high - self.low) * _reciprocal(top), bits])

    def _top(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the largest code (linear) or the code of zero (power), and widths."""
        bits = self.widths.to(self.low.dtype)
        if self.power:
            return torch.exp2(bits - 1).sub_(1).clamp_(min=0), bits
        return torch.exp2(bits).sub_(1), bits


def to_codes(values: torch.Tensor, encoder: torch.Tensor, power: float) -> torch.Tensor:
    """Quantize values to codes, whole numbers in the same dtype.

    Parameters
    ----------
    values : Tensor
        Coefficients.
    encoder : Tensor (2 or more, ...)
        Rows of `Grid.encoder`, picked for the coefficients or broadcast to them.
    power : float
        See `Grid`.
    """
    if power:
        scaled = (values * encoder[0]).clamp_(-1, 1)
        return _compand(scaled, power).mul_(encoder[1]).add_(encoder[1]).round_()
    return (values - encoder[0]).mul_(encoder[1]).round_()


def to_values(codes: torch.Tensor, decoder: torch.Tensor, power: float) -> torch.Tensor:
    """Turn codes, in a float dtype, to the levels they stand for; see `to_codes`.

    Linear codes are overwritten.
    """
    if power:
        return _compand((codes * decoder[1]).sub_(1), 1 / power).mul_(decoder[0])
    return torch.addcmul(decoder[0], codes, decoder[1], out=codes)


def quantize(
    groups: torch.Tensor, n: int, split: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """Quantize coefficients (G, 8, K) of n to words (G, K) of eight codes each."""
    num_groups = len(groups)
    index, is_low = low_mask(split, num_groups, groups.dtype)
    encoder = pick(grid.encoder(), is_low)
    of_groups, of_here = encoder[:, :num_groups], encoder[:, num_groups:]
    codes = to_codes(groups, of_groups[:, :, None], grid.power)
    if n % 8:
        codes.view(-1, codes.shape[2])[n:] = 0
    words = merge_codes(codes, of_groups[2])
    # Boundary groups were coded as if they were high; here is their own word.
    here = to_codes(take_group(groups, index), of_here, grid.power)
    if n % 8:
        here *= first_mask(n - 8 * index, 8, here.dtype)
    words.scatter_(0, index[None], merge_uneven(here, of_here[2])[None])
    return words


def dequantize(words: torch.Tensor, split: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the coefficients (G, 8, K) of words (G, K); those past n are undefined."""
    num_groups, dtype = len(words), grid.low.dtype
    index, is_low = low_mask(split, num_groups, dtype)
    decoder = pick(grid.decoder(), is_low)
    of_groups, of_here = decoder[:, :num_groups], decoder[:, num_groups:]
    codes = spread_codes(words, of_groups[2].to(torch.int32)).to(dtype)
    groups = to_values(codes, of_groups[:, :, None], grid.power)
    here = spread_uneven(words.gather(0, index[None])[0], of_here[2].to(torch.int64))
    put_group(groups, index, to_values(here.to(dtype), of_here, grid.power))
    return groups


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


def _reciprocal(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values > 0, values.reciprocal(), 0.0)


def _compand(values: torch.Tensor, power: float) -> torch.Tensor:
    if power == 1:
        return values
    return values.abs().pow_(power).copysign_(values)


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


def grid_of(
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
