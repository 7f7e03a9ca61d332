"""The symmetric quantizers of SL-FAC's ablations: which power, which clipping level."""

from dataclasses import replace

import torch

from flwr_slfac.codec.slfac import quantize
from flwr_slfac.codec.slfac.bands import first_mask, pick
from flwr_slfac.codec.slfac.spectra import with_lanes

_POWERS = tuple(round(0.2 + 0.05 * i, 2) for i in range(17))
_CLIPS = tuple(round(0.5 + 0.05 * i, 2) for i in range(11))
# The power is searched on about this many coefficients.
_SAMPLE = 2**18


def choose_power(
    grid: quantize.Grid, chunks: list[torch.Tensor], split: torch.Tensor
) -> quantize.Grid:
    """Return the grid with the power that suits rows spread over the tensor.

    Parameters
    ----------
    grid : Grid
        Ranges and widths of all rows.
    chunks : list of Tensor (n, K)
        Their coefficients.
    split : Tensor (R,)
        How many of each row's are low.
    """
    n = chunks[0].shape[0]
    every = -(-n * len(split) // _SAMPLE)
    samples, kept = [], []
    for lanes, coeffs in with_lanes(chunks):
        some = torch.arange(-lanes.start % every, coeffs.shape[1], every)
        samples.append(coeffs[:, some.to(coeffs.device)])
        kept.append(lanes.start + some)
    sampled = torch.cat(samples, 1)
    index = torch.cat(kept).to(split.device)
    part = quantize.Grid(
        grid.low[:, index], grid.high[:, index], grid.widths[:, index], grid.power
    )
    is_low = first_mask(split[index], n, sampled.dtype)
    return replace(grid, power=search_power(sampled, is_low, part))


def clip_ranges(
    chunks: list[torch.Tensor],
    split: torch.Tensor,
    high: torch.Tensor,
    widths: torch.Tensor,
) -> torch.Tensor:
    """Return the clipped ranges (2, R) of all rows; parameters as in `search_clip`."""
    clipped = []
    for lanes, coeffs in with_lanes(chunks):
        is_low = first_mask(split[lanes], len(coeffs), coeffs.dtype)
        clipped.append(search_clip(coeffs, is_low, high[:, lanes], widths[:, lanes]))
    return torch.cat(clipped, 1)


def search_power(
    coeffs: torch.Tensor, is_low: torch.Tensor, grid: quantize.Grid
) -> float:
    """Return the exponent of 0.2, 0.25, ..., 1 with the least squared error.

    PowerQuant searches one exponent per network for weights; one per tensor, by grid
    search, is our reading for smashed data.

    Parameters
    ----------
    coeffs, is_low : Tensor (n, K)
        Coefficients, and which belong to the low component.
    grid : Grid
        Their ranges and widths.
    """
    errors = []
    for power in _POWERS:
        tried = replace(grid, power=power)
        decoded = _there_and_back(coeffs, is_low, tried)
        errors.append(float((decoded - coeffs).square_().sum()))
    return _POWERS[errors.index(min(errors))]


def search_clip(
    coeffs: torch.Tensor, is_low: torch.Tensor, high: torch.Tensor, widths: torch.Tensor
) -> torch.Tensor:
    """Return the clipped range (2, K) of the best cosine similarity per component.

    EasyQuant (Wu et al., 2020) searches a layer's scale so; trying 0.5, 0.55, ..., 1
    times the largest magnitude of each component is our reading for smashed data.

    Parameters
    ----------
    coeffs, is_low : Tensor (n, K)
        Coefficients, and which belong to the low component.
    high, widths : Tensor (2, K)
        Largest magnitude and bit width of each component.
    """
    best = torch.full_like(high, -1.0)
    chosen = high.clone()
    for clip in sorted(_CLIPS, reverse=True):
        grid = quantize.Grid(-high * clip, high * clip, widths, 1.0)
        decoded = _there_and_back(coeffs, is_low, grid)
        likeness = []
        for member in (is_low, 1 - is_low):
            kept = decoded * member
            norm = kept.square().sum(0).sqrt_().clamp_(min=1e-30)
            likeness.append((kept * coeffs).sum(0) / norm)
        found = torch.stack(likeness)
        better = found > best * (1 + 1e-6)
        best = torch.where(better, found, best)
        chosen = torch.where(better, high * clip, chosen)
    return chosen


def _there_and_back(
    coeffs: torch.Tensor, is_low: torch.Tensor, grid: quantize.Grid
) -> torch.Tensor:
    codes = quantize.to_codes(coeffs, pick(grid.encoder(), is_low), grid.power)
    return quantize.to_values(codes, pick(grid.decoder(), is_low), grid.power)
