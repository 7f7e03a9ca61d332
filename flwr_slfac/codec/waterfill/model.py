"""Probabilities of digits: a few bytes on the wire, and the coder's table from them.

::

    counts -> chance that a magnitude stops at 0, 1, 2, 3-4, 5-8, ... -> a byte each

The frequencies that drive the coder are computed from those bytes in integer
arithmetic, so both sides have the same ones whatever the platform.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels import (
    BUCKET_ENDS,
    CHANCE_BITS,
    NUM_SYMBOLS,
    SCALE_BITS,
    models,
)
from flwr_slfac.codec.waterfill.digits import Digits, Ints
from flwr_slfac.codec.waterfill.words import Frequencies
from flwr_slfac.errors import DecodeError

_ONE = 2**CHANCE_BITS
_BUCKET_STARTS = (0, *(end + 1 for end in BUCKET_ENDS[:-1]))
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
    return models.fit(counts, digits.limit, digits.per_symbol, digits.signed, MIDPOINTS)


@lru_cache(maxsize=1024)
def frequencies_of(model: bytes, digits: Digits) -> Frequencies:
    """Return the frequency (256,) of each symbol, 2**14 in all, computed in integers.

    Raises
    ------
    DecodeError
        If the bytes are no model of such digits.
    """
    num_signs = 1 if digits.signed else 0
    chances = [int(CHANCES[b]) for b in model if b < NUM_CHANCES]
    if len(chances) < len(model) or not (
        num_signs < len(model) <= num_signs + _num_buckets(digits)
    ):
        raise DecodeError("a stream's model is not valid")
    magnitudes = _magnitudes(chances[num_signs:], digits.limit)
    if len(magnitudes) == 1:
        raise DecodeError("a stream's model knows no digit but zero")
    weights = np.zeros(digits.base, np.int64)
    last = digits.zero + len(magnitudes)
    weights[digits.zero : last] = magnitudes
    if digits.signed:
        above = weights[digits.zero + 1 :]
        negative = above * chances[0] >> CHANCE_BITS
        above -= negative
        weights[: digits.zero] = negative[::-1]
        # What may occur has a weight.
        occurring = slice(digits.limit + 1 - len(magnitudes), last)
    else:
        occurring = slice(0, last)
    weights[occurring] = np.maximum(weights[occurring], 1)
    product = weights
    for _ in range(digits.per_symbol - 1):
        product = product[:, None] * weights[None, :]
        # Rounded up: what may occur has a weight.
        product = (product + (_ONE - 1) >> CHANCE_BITS).reshape(-1)
    return _scaled(product)


def _num_buckets(digits: Digits) -> int:
    return sum(1 for start in _BUCKET_STARTS if start < digits.limit)


def _magnitudes(chances: list[int], limit: int) -> list[int]:
    """Return the weights of magnitudes 0, 1, ... up to the last that may occur."""
    left, start = _ONE, 0
    magnitudes = []
    for chance, end in zip(chances, BUCKET_ENDS, strict=False):
        stop = min(end + 1, limit)
        for _ in range(start, stop):
            magnitudes.append(left * chance >> CHANCE_BITS)
            left -= magnitudes[-1]
        start = stop
    if start == limit:
        magnitudes.append(left)
    else:
        magnitudes[-1] += left
    return magnitudes


def _scaled(weights: Ints) -> Frequencies:
    """Return frequencies of a sum of 2**14, at least 1 where there is a weight."""
    some = weights > 0
    scale = 1 << SCALE_BITS
    shares = (weights << SCALE_BITS) // int(weights.sum())
    whole = np.where(some, np.maximum(shares, 1), 0)
    largest = int(whole.argmax())
    whole[largest] += scale - int(whole.sum())
    if whole[largest] < 1:
        # So many small ones that the largest cannot pay for them: all give alike.
        num = int(some.sum())
        whole = np.where(some, 1 + shares * (scale - num) // scale, 0)
        whole[largest] += scale - int(whole.sum())
    frequencies = np.zeros(NUM_SYMBOLS, np.uint16)
    frequencies[: whole.size] = whole
    frequencies.flags.writeable = False
    return frequencies


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


# Of each byte, and between those of neighbouring ones.
CHANCES = _stopping_chances()
MIDPOINTS = (CHANCES[1:] + CHANCES[:-1]) // 2
NUM_CHANCES = len(CHANCES)
