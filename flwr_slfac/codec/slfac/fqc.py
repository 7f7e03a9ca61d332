"""Frequency-based quantization (FQC): bit widths, and codes of these widths.

::

    energy of each component --log--> bit width 2..8
    coefficients, range, width --min-max linear--> codes --by eight--> words

Lin et al., "SL-FAC", arXiv 2604.07316, the second of the two stages. Everything here is
per component: pairs (2, K) hold the low and the high component of K rows.
"""

from dataclasses import dataclass

import torch

from flwr_slfac.codec.slfac.groups import (
    low_mask,
    merge_codes,
    merge_uneven,
    of_component,
    prefix_mask,
    put_group,
    spread_codes,
    spread_uneven,
    take_group,
)

# What of a component's squared coefficients its width follows.
ENERGIES = ("mean", "sum")
# Below this share of the mean square, eight units in the last place of float32, a
# variance is rounding noise of a constant.
_VARIANCE_FLOOR = 2.0**-20


def spectral_widths(
    energy: torch.Tensor,
    count: torch.Tensor | None,
    total: float,
    num_elements: int,
    bit_widths: tuple[int, int],
) -> torch.Tensor:
    """Return the width of each component from its mean spectral energy (SL-FAC's FQC).

    ``b = round(b_min + (b_max - b_min) * log(1 + e) / max log(1 + e))``, where e is a
    component's mean squared coefficient, or their sum, over the variance of the tensor,
    the maximum is taken over all components of the tensor and halves round to even. The
    paper gives the logarithm and the bounds; the mean or the sum, the variance and the
    normaliser are our reading.

    Parameters
    ----------
    energy : Tensor (2, R)
        float64: sum of squared coefficients of each component.
    count : Tensor (2, R), optional
        Number of coefficients of each component; an empty one takes b_min. None takes
        sums, not means.
    total : float
        Sum of the tensor's elements.
    num_elements : int
        Number of elements of the tensor.
    bit_widths : tuple of int
        b_min and b_max.

    Returns
    -------
    Tensor (2, R)
        int32.
    """
    narrow, wide = bit_widths
    mean_square = float(energy.sum()) / num_elements
    variance = max(
        mean_square - (total / num_elements) ** 2, _VARIANCE_FLOOR * mean_square
    )
    if variance <= 0:
        return torch.full_like(energy, narrow, dtype=torch.int32)
    mean = energy if count is None else energy / count.clamp(min=1)
    relative = mean / variance
    scale = torch.log1p(relative)
    spread = (wide - narrow) * (scale / scale.max())
    return (narrow + spread).round().to(torch.int32)


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

    def of_rows(self, rows: slice, device: torch.device) -> "Grid":
        """Return the grid of some rows, on a device."""
        low, high = self.low[:, rows].to(device), self.high[:, rows].to(device)
        return Grid(low, high, self.widths[:, rows].to(device), self.power)

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
    return codes.mul_(decoder[1]).add_(decoder[0])


def quantize(
    groups: torch.Tensor, n: int, split: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """Quantize coefficients to words of eight codes.

    Parameters
    ----------
    groups : Tensor (G, 8, K)
        From `group_by_eight`.
    n : int
        Number of coefficients a row.
    split : Tensor (K,)
        How many of them are low.
    grid : Grid
        The levels of the K rows.

    Returns
    -------
    Tensor (G, K)
        int64; codes past n are 0.
    """
    num_groups = len(groups)
    index, is_low = low_mask(split, num_groups, groups.dtype)
    encoder = of_component(grid.encoder(), is_low)
    of_groups, of_boundary = encoder[:, :num_groups], encoder[:, num_groups:]
    codes = to_codes(groups, of_groups[:, :, None], grid.power)
    if n % 8:
        codes.view(-1, codes.shape[2])[n:] = 0
    words = merge_codes(codes, of_groups[2])
    # Boundary groups were coded as if they were high; these are their own words.
    boundary = to_codes(take_group(groups, index), of_boundary, grid.power)
    if n % 8:
        boundary *= prefix_mask(n - 8 * index, 8, boundary.dtype)
    words.scatter_(0, index[None], merge_uneven(boundary, of_boundary[2])[None])
    return words


def dequantize(words: torch.Tensor, split: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the coefficients (G, 8, K) of words (G, K); those past n are undefined."""
    num_groups, dtype = len(words), grid.low.dtype
    index, is_low = low_mask(split, num_groups, dtype)
    decoder = of_component(grid.decoder(), is_low)
    of_groups, of_boundary = decoder[:, :num_groups], decoder[:, num_groups:]
    codes = spread_codes(words, of_groups[2].to(torch.int32)).to(dtype)
    groups = to_values(codes, of_groups[:, :, None], grid.power)
    boundary = spread_uneven(
        words.gather(0, index[None])[0], of_boundary[2].to(torch.int64)
    )
    put_group(groups, index, to_values(boundary.to(dtype), of_boundary, grid.power))
    return groups


def _reciprocal(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values > 0, values.reciprocal(), 0.0)


def _compand(values: torch.Tensor, power: float) -> torch.Tensor:
    if power == 1:
        return values
    return values.abs().pow_(power).copysign_(values)
