"""Probabilities of digits: a few bytes on the wire, and the coder's table from them.

::

    counts -> chance that a magnitude stops at 0, 1, 2, 3-4, 5-8, ... -> a byte each

The tables that drive the coder are computed from those bytes in integer arithmetic, so
both sides have the same ones whatever the platform.
"""

from bisect import bisect_left
from functools import lru_cache
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.waterfill.digits import Digits, Ints

# A chance of 1. Our choice: integers of 24 bits are exact in the float32 that the coder
# takes.
_CHANCE_BITS = 24
_ONE = 2**_CHANCE_BITS
# Last magnitude of each bucket of magnitudes that share one stopping chance: octaves,
# as the chance changes slowly with the magnitude; 126 is the last that does not
# saturate the largest digit.
_BUCKET_ENDS = (0, 1, 2, 4, 8, 16, 32, 64, 126)
# A byte holds a half, this many chances below it, and as many above.
_NUM_BELOW_HALF = 127
# 2**-0.125 as an integer over 2**16: our choice, the finest that the byte's range of
# chances, down to 2**-16, allows.
_NEXT, _NEXT_BITS = 60097, 16
_GUARD_BITS = 7


def ideal_bits(counts: npt.NDArray[np.float64]) -> float:
    """Return the bits of an ideal code for symbols that occur `counts` times."""
    some = counts[counts > 0]
    total = float(some.sum())
    return float(-(some * np.log2(some / total)).sum()) if some.size else 0.0


def fit_model(counts: Ints, digits: Digits) -> bytes:
    """Return the model of symbols that occur `counts` times.

    A byte for each stopping chance up to the largest magnitude; before them, for signed
    digits, one for the chance of a negative sign.
    """
    base, k = digits.base, digits.per_symbol
    by_digit = np.zeros(base, np.int64)
    for j in range(k):
        by_digit += counts.reshape(base**j, base, base ** (k - 1 - j)).sum((0, 2))
    by_magnitude = by_digit[digits.zero :].copy()
    model = bytearray()
    if digits.signed:
        by_magnitude[1:] += by_digit[digits.zero - 1 :: -1]
        num_negative = int(by_digit[: digits.zero].sum())
        model.append(_nearest(num_negative, int(by_magnitude[1:].sum())))
    # Short lists: plain integers are several times faster than arrays.
    stops = by_magnitude.tolist()
    reach = by_magnitude[::-1].cumsum()[::-1].tolist()
    largest = max(magnitude for magnitude, count in enumerate(stops) if count)
    start = 0
    for end in _BUCKET_ENDS:
        stop = min(end + 1, digits.limit)
        if start >= stop or start > largest:
            break
        model.append(_nearest(sum(stops[start:stop]), sum(reach[start:stop])))
        start = stop
    return bytes(model)


@lru_cache(maxsize=1024)
def coder_table(model: bytes, digits: Digits) -> Any:
    """Return the coder's table for a model, computed in integers."""
    sign = 0
    if digits.signed:
        sign, model = int(_CHANCES[model[0]]), model[1:]
    left, start = _ONE, 0
    magnitudes = []
    chances = [int(_CHANCES[b]) for b in model]
    for i, end in enumerate(_BUCKET_ENDS):
        stop = min(end + 1, digits.limit)
        chance = chances[i] if i < len(chances) else _ONE - 1
        for _ in range(start, stop):
            magnitudes.append(left * chance >> _CHANCE_BITS)
            left -= magnitudes[-1]
        start = max(start, stop)
    magnitudes.append(left)
    weights = np.array(magnitudes, np.int64)
    if digits.signed:
        negative = weights[:0:-1] * sign >> _CHANCE_BITS
        positive = weights[1:] - negative[::-1]
        weights = np.concatenate([negative, weights[:1], positive])
    product = weights
    for _ in range(digits.per_symbol - 1):
        product = (product[:, None] * weights[None, :] >> _CHANCE_BITS).reshape(-1)
    return constriction.stream.model.Categorical(
        np.maximum(product, 1).astype(np.float32), perfect=False
    )


def _stopping_chances() -> Ints:
    """Return the chances that a byte stands for, in units of 2**-24, ascending.

    Neighbours differ by about a factor of 2**0.125, in the chance below one half, in
    its complement above.
    """
    # From a half, with more bits than are kept, so that rounding does not add up.
    low = [_ONE << _GUARD_BITS >> 1]
    for _ in range(_NUM_BELOW_HALF):
        low.append(low[-1] * _NEXT >> _NEXT_BITS)
    below_half = [max(1, chance >> _GUARD_BITS) for chance in low]
    return np.array(below_half[::-1] + [_ONE - c for c in below_half[1:]], np.int64)


_CHANCES = _stopping_chances()
_MIDPOINTS = ((_CHANCES[1:] + _CHANCES[:-1]) // 2).tolist()
NUM_CHANCES = len(_CHANCES)


def _nearest(stops: int, reaches: int) -> int:
    """Return the byte whose chance is nearest to stops / reaches."""
    chance = (stops << _CHANCE_BITS) // max(reaches, 1)
    return bisect_left(_MIDPOINTS, chance)
