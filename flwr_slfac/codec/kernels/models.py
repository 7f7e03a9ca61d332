"""Counts of symbols to the bytes that model them, and levels to values, by NumPy.

::

    counts -> chance that a magnitude stops at 0, 1, 2, 3-4, 5-8, ... -> a byte each
    levels -> level * step, less what is taken off its magnitude
"""

from bisect import bisect_left
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BUCKET_ENDS", "CHANCE_BITS", "fit", "to_values"]

Ints = npt.NDArray[Any]
# A chance of 1. Our choice: products of two such integers stay within 64 bits.
CHANCE_BITS = 24
# Last magnitude of each bucket of magnitudes that share one stopping chance: octaves,
# as the chance changes slowly with the magnitude; 126 is the last that does not
# saturate the largest digit.
BUCKET_ENDS = (0, 1, 2, 4, 8, 16, 32, 64, 126)


def fit(
    counts: Ints, limit: int, per_symbol: int, is_signed: bool, midpoints: Ints
) -> bytes:
    """Return the model of symbols that occur `counts` times.

    A byte for each stopping chance up to the largest magnitude; before them, for signed
    digits, one for the chance of a negative sign.

    Parameters
    ----------
    counts : ndarray (256,)
        int64: of each symbol; one of them is not 0.
    limit, per_symbol, is_signed
        See `digits.pack`.
    midpoints : ndarray (B,)
        int64, ascending: between the chances of neighbouring bytes, in units of 2**-24.
    """
    zero = limit if is_signed else 0
    base, k = zero + limit + 1, per_symbol
    counts = counts[: base**k]
    by_digit = np.zeros(base, np.int64)
    for j in range(k):
        by_digit += counts.reshape(base**j, base, base ** (k - 1 - j)).sum((0, 2))
    by_magnitude = by_digit[zero:].copy()
    between = midpoints.tolist()
    model = bytearray()
    if is_signed:
        by_magnitude[1:] += by_digit[zero - 1 :: -1]
        num_negative = int(by_digit[:zero].sum())
        model.append(_nearest(num_negative, int(by_magnitude[1:].sum()), between))
    # Short lists: plain integers are several times faster than arrays.
    stops = by_magnitude.tolist()
    reach = by_magnitude[::-1].cumsum()[::-1].tolist()
    largest = max(magnitude for magnitude, count in enumerate(stops) if count)
    start = 0
    for end in BUCKET_ENDS:
        stop = min(end + 1, limit)
        if start >= stop or start > largest:
            break
        found = _nearest(sum(stops[start:stop]), sum(reach[start:stop]), between)
        model.append(found)
        start = stop
    return bytes(model)


def to_values(levels: Ints, step: float, taken: float, out: Ints) -> None:
    """Write levels times a step, `taken` nearer to zero where they are not zero.

    Parameters
    ----------
    levels : ndarray (n,)
        int8 or int64.
    step, taken : float
        As float32 holds them.
    out : ndarray (n,)
        float32; may overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(levels, np.float32(step), out=out, dtype=np.float32)
        signs = np.sign(levels)
        out -= np.multiply(signs, np.float32(taken), dtype=np.float32)


def _nearest(stops: int, reaches: int, midpoints: list[int]) -> int:
    """Return the byte whose chance is nearest to stops / reaches."""
    chance = (stops << CHANCE_BITS) // max(reaches, 1)
    return bisect_left(midpoints, chance)
