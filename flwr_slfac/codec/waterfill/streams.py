r"""Entropy coding of integer streams, each with its own small model on the wire.

A stream is an array of integers that share one distribution. What travels::

    values --digits--> symbols --model--> words
                 \-> |value| - L of the saturated, a stream of its own -> words

Lists of parameters come one by one, the bulk of coefficients at once: all its classes
are one batch of symbols, and their models a stream too.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from flwr_slfac.codec.kernels import NUM_SYMBOLS, SCALE_BITS
from flwr_slfac.codec.waterfill.digits import Digits
from flwr_slfac.codec.waterfill.words import Frequencies

Coder = Literal["range", "best"]

# A limit of the format: the bits of an excess are sent as two halves of 20.
HALF_EXCESS_BITS = 20
MAX_EXCESS_BITS = 2 * HALF_EXCESS_BITS
# Bits of a bit length of at most 40.
LENGTH_BITS = 6
# In place of a model: the stream is all zero.
EMPTY = b""
# Our choice: fewer models than this take less than the two streams that hold more.
FEW_MODELS = 8
# About the byte of a chance of one half: what a model's bytes are near.
HALF = 127


def kinds_of(digits: Sequence[Digits]) -> list[Digits]:
    """Return each kind of digits once, as they come first."""
    return list(dict.fromkeys(digits))


@lru_cache(maxsize=8)
def uniform(num_bits: int) -> Frequencies:
    """Return the frequencies (1, 256) of integers of up to 8 bits."""
    frequencies = np.zeros((1, NUM_SYMBOLS), np.uint16)
    frequencies[:, : 1 << num_bits] = 1 << SCALE_BITS - num_bits
    frequencies.flags.writeable = False
    return frequencies
