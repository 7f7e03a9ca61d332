"""Coefficients by eight, and the code words of eight.

Coefficients lie coefficient by coefficient: ``(n, K)`` for K rows (one row is one
sample's channel), grouped by eight as ``(G, 8, K)``. A row's low component is its first
`split` coefficients, the high one the rest; the group that holds coefficient
``split - 1`` is its *boundary group*, all groups before it are low, all after it high.
So per-coefficient work is plain arithmetic on groups, and only boundary groups need
care.

Eight codes are merged into one 64-bit word where the tensor is, so only words of an
eighth of the count come to the CPU, where they are laid end to end::

    codes (G, 8, K) --merge_codes--> words (G, K) --BitWriter--> bytes
    bytes --BitReader--> words (G, K) --spread_codes--> codes (G, 8, K)
"""

from functools import lru_cache

import numpy as np
import torch

from flwr_slfac.codec.packing import Counts

# The lower half of a word: what four codes of at most 8 bits fill.
_LOW_32 = 0xFFFFFFFF


def group_by_eight(coeffs: torch.Tensor) -> torch.Tensor:
    """Return (n, K) as (G, 8, K), the last coefficient repeated to fill up."""
    n, num_rows = coeffs.shape
    if n % 8:
        coeffs = torch.cat([coeffs, coeffs[-1:].expand(8 - n % 8, num_rows)])
    return coeffs.reshape(-1, 8, num_rows)


def low_mask(
    split: torch.Tensor, num_groups: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the boundary group (K,) of each row, and what is low (num_groups + 8, K).

    The mask is 1 for each group before the boundary group, then, in its last eight
    rows, for each low coefficient of the boundary group; else 0. Masks are numbers: on
    a CPU, arithmetic with them takes a fifth of the time of comparisons and `where`.
    """
    last = split - 1
    index = last >> 3
    steps = _mask_steps(num_groups, split.device, dtype)
    mask = steps.new_empty(num_groups + 8, len(split))
    torch.sub(index, steps[:num_groups], out=mask[:num_groups])
    torch.sub(last & 7, steps[num_groups:], out=mask[num_groups:])
    return index, mask.clamp_(0, 1)


@lru_cache(maxsize=64)
def _mask_steps(
    num_groups: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Return a column of each group's number, then of -1 to 6."""
    group = torch.arange(num_groups, device=device, dtype=dtype)
    place = torch.arange(-1, 7, device=device, dtype=dtype)
    return torch.cat([group, place])[:, None]


def prefix_mask(count: torch.Tensor, num: int, dtype: torch.dtype) -> torch.Tensor:
    """Return 1 for the first `count` (K,) of `num` entries (num, K), else 0."""
    number = torch.arange(num, device=count.device, dtype=dtype)
    return (count.to(dtype) - number[:, None]).clamp_(0, 1)


def of_component(pair: torch.Tensor, is_low: torch.Tensor) -> torch.Tensor:
    """Return the low or the high one of finite pairs (..., 2, K) by a mask of 0 and 1.

    The mask is (G, K); the result (..., G, K) is exact.
    """
    low, high = pair[..., :1, :], pair[..., 1:, :]
    return torch.addcmul(high * (1 - is_low), low, is_low)


def take_group(groups: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return group `index` (K,) of each row of (G, 8, K) as (8, K)."""
    return groups.gather(0, index.expand(1, 8, -1))[0]


def put_group(groups: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> None:
    """Write (8, K) into group `index` (K,) of each row of (G, 8, K)."""
    groups.scatter_(0, index.expand(1, 8, -1), values[None])


def merge_codes(codes: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Merge codes (G, 8, K), whole numbers in a float dtype, to int64 words (G, K).

    Parameters
    ----------
    codes : Tensor (G, 8, K)
        In [0, 2**width).
    widths : Tensor (G, K)
        0 to 8, in the same dtype: the width of all eight codes of a group.
    """
    groups, _, num_rows = codes.shape
    # Two codes are at most 2**16, which float32 holds exactly.
    radix = torch.exp2(widths)[:, None]
    pairs = torch.addcmul(codes[:, 0::2], codes[:, 1::2], radix).to(torch.int32)
    twice = (2 * widths).to(torch.int32)
    quads = (pairs[:, 0::2] | (pairs[:, 1::2] << twice[:, None])).to(torch.int64)
    quads &= _LOW_32
    high = quads[:, 1]
    high <<= 2 * twice
    return (quads[:, 0] | high).reshape(groups, num_rows)


def spread_codes(words: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Undo `merge_codes`: int64 words (G, K) to int32 codes (G, 8, K)."""
    groups, num_rows = words.shape
    four = 4 * widths
    quads = torch.stack([words, words >> four], 1).to(torch.int32)
    place = torch.arange(4, dtype=torch.int32, device=words.device)
    shifts = place[:, None] * widths[:, None]
    codes = quads[:, :, None] >> shifts[:, None]
    codes &= ((1 << widths) - 1)[:, None, None]
    return codes.reshape(groups, 8, num_rows)


def merge_uneven(codes: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Merge codes (8, K), whole numbers in a float dtype, to int64 words (K,).

    Each code has its own width (8, K), 0 to 8, in the same dtype.
    """
    bits = widths.to(torch.int64)
    return (codes.to(torch.int64) << (bits.cumsum(0) - bits)).sum(0)


def spread_uneven(words: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Undo `merge_uneven`."""
    ends = widths.cumsum(0)
    return (words >> (ends - widths)) & ((1 << widths) - 1)


def group_starts(split: Counts, widths: Counts, n: int, first: int) -> Counts:
    """Return where each group of eight codes begins (K, G) in the stream of K rows.

    Parameters
    ----------
    split : array (K,)
        How many of a row's n codes are in its first component.
    widths : array (2, K)
        Bits of a code of the first and of the second component.
    n : int
        Number of codes a row; the last group may hold fewer than eight.
    first : int
        Where the first row begins.
    """
    bits = row_bits(split, widths, n)
    begin = np.cumsum(bits) - bits + first
    eight = np.arange(0, n, 8)
    starts = np.minimum(eight, split[:, None])
    starts *= (widths[0] - widths[1])[:, None]
    starts += widths[1][:, None] * eight
    starts += begin[:, None]
    return starts


def row_bits(split: Counts, widths: Counts, n: int) -> Counts:
    """Return the bits (K,) of each row's codes; parameters as in `group_starts`."""
    bits: Counts = split * widths[0] + (n - split) * widths[1]
    return bits
