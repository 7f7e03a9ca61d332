"""The paper's ablations of both stages, in our reading.

Of AFD: which coefficients enter the low component first, by magnitude or by standard
deviation in place of coarse to fine. Of FQC: one width for all components, and a
symmetric quantizer with a searched power (PowerQuant) or clipping level (EasyQuant) in
place of min-max linear quantization.
"""

from dataclasses import replace

import torch

from flwr_slfac.codec.search import search_grid
from flwr_slfac.codec.slfac import fqc
from flwr_slfac.codec.slfac.afd import Components, components_at, decompose
from flwr_slfac.codec.slfac.groups import group_by_eight, of_component, prefix_mask
from flwr_slfac.codec.slfac.spectra import with_rows

# 0.2 to 1 in steps of 0.05, our choice: 1 is the linear grid. Coarser than the grid of
# codec "powerquant": a power costs a pass over coefficients, not over a histogram.
_POWERS = tuple(round(0.2 + 0.05 * i, 2) for i in range(17))
# 1 down to 0.5 in steps of 0.05, our choice: above 1 codes would be idle, below 0.5
# the largest coefficients lose half of themselves. The widest, first, wins if equal.
_CLIPS = tuple(round(1 - 0.05 * i, 2) for i in range(11))
# Sums in float32 differ by about this much with the order of summing.
_SIMILARITY_TOLERANCE = 1e-6
# In place of 0 as a norm.
_LEAST_NORM = 1e-30
# The power is searched on about this many coefficients, our choice: one number for a
# whole tensor needs no more, and each power costs a pass over them.
_SAMPLE = 2**18


def largest_first(groups: torch.Tensor, n: int) -> torch.Tensor:
    """Return (n, K): each row's coefficients ordered by magnitude, largest first."""
    magnitude = groups.reshape(-1, groups.shape[2])[:n].abs()
    return magnitude.argsort(dim=0, descending=True, stable=True)


def partition(member: torch.Tensor) -> torch.Tensor:
    """Return the order (n, K) that brings members (n, K) first, else kept as it is."""
    return (~member).to(torch.uint8).argsort(dim=0, stable=True)


def decompose_by_magnitude(
    coeffs: torch.Tensor, theta: float
) -> tuple[torch.Tensor, Components, torch.Tensor]:
    """Take each row's largest coefficients into the low component.

    Returns
    -------
    tuple of Tensor (n, K), Components, Tensor (n, K)
        The coefficients, low ones first, else kept as they were; their components;
        which ones are low, in the order given.
    """
    n = len(coeffs)
    rank = largest_first(group_by_eight(coeffs), n)
    sizes = group_by_eight(coeffs.gather(0, rank))
    split = decompose(sizes, n, theta).split
    member = torch.zeros_like(rank, dtype=torch.bool)
    low = prefix_mask(split, n, torch.float32)
    member.scatter_(0, rank, low.to(torch.bool))
    ordered = coeffs.gather(0, partition(member))
    return ordered, components_at(group_by_eight(ordered), n, split), member


def deviation_order(chunks: list[torch.Tensor]) -> torch.Tensor:
    """Return coefficient positions (n,) by standard deviation over rows, largest first.

    Parameters
    ----------
    chunks : list of Tensor (n, K)
        The coefficients of all rows.
    """
    num_rows = sum(c.shape[1] for c in chunks)
    mean = (
        torch.stack([c.sum(1, dtype=torch.float64) for c in chunks]).sum(0) / num_rows
    )
    squares = [(c.to(torch.float64) - mean[:, None]).square().sum(1) for c in chunks]
    return torch.argsort(torch.stack(squares).sum(0), descending=True, stable=True)


def equal_widths(count: torch.Tensor, bit_widths: tuple[int, int]) -> torch.Tensor:
    """Return the middle width, rounded down, for every component, (2, R) int32."""
    return torch.full_like(count, sum(bit_widths) // 2, dtype=torch.int32)


def choose_power(
    grid: fqc.Grid, chunks: list[torch.Tensor], split: torch.Tensor
) -> fqc.Grid:
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
    for chunk, coeffs in with_rows(chunks):
        some = torch.arange(-chunk.start % every, coeffs.shape[1], every)
        samples.append(coeffs[:, some.to(coeffs.device)])
        kept.append(chunk.start + some)
    sampled = torch.cat(samples, 1)
    index = torch.cat(kept).to(split.device)
    part = fqc.Grid(
        grid.low[:, index], grid.high[:, index], grid.widths[:, index], grid.power
    )
    is_low = prefix_mask(split[index], n, sampled.dtype)
    return replace(grid, power=search_power(sampled, is_low, part))


def clip_ranges(
    chunks: list[torch.Tensor],
    split: torch.Tensor,
    high: torch.Tensor,
    widths: torch.Tensor,
) -> torch.Tensor:
    """Return the clipped ranges (2, R) of all rows; parameters as in `search_clip`."""
    clipped = []
    for chunk, coeffs in with_rows(chunks):
        is_low = prefix_mask(split[chunk], len(coeffs), coeffs.dtype)
        clipped.append(search_clip(coeffs, is_low, high[:, chunk], widths[:, chunk]))
    return torch.cat(clipped, 1)


def search_power(coeffs: torch.Tensor, is_low: torch.Tensor, grid: fqc.Grid) -> float:
    """Return the exponent of 0.2, 0.25, ..., 1 with the least squared error.

    PowerQuant (Yvinec et al., 2023) searches one exponent per network for weights; one
    per tensor, by grid search, is our reading for smashed data.

    Parameters
    ----------
    coeffs, is_low : Tensor (n, K)
        Coefficients, and which belong to the low component.
    grid : Grid
        Their ranges and widths.
    """

    def merit(power: float) -> torch.Tensor:
        decoded = _dequantized(coeffs, is_low, replace(grid, power=power))
        return (decoded - coeffs).square_().sum().neg_()

    return float(search_grid(_POWERS, merit))


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

    def similarity(clip: float) -> torch.Tensor:
        grid = fqc.Grid(-high * clip, high * clip, widths, 1.0)
        decoded = _dequantized(coeffs, is_low, grid)
        of_component = []
        for member in (is_low, 1 - is_low):
            kept = decoded * member
            norm = kept.square().sum(0).sqrt_().clamp_(min=_LEAST_NORM)
            of_component.append((kept * coeffs).sum(0) / norm)
        return torch.stack(of_component)

    clips = search_grid(_CLIPS, similarity, tolerance=_SIMILARITY_TOLERANCE)
    return high * clips.to(high.dtype)


def _dequantized(
    coeffs: torch.Tensor, is_low: torch.Tensor, grid: fqc.Grid
) -> torch.Tensor:
    """Return what coefficients are decoded to."""
    codes = fqc.to_codes(coeffs, of_component(grid.encoder(), is_low), grid.power)
    return fqc.to_values(codes, of_component(grid.decoder(), is_low), grid.power)
