"""Values to symbols of several digits each, and back.

::

    values -> digits -L..L (larger ones saturate) -> k digits a symbol

Packing several digits into one symbol makes one step of the coder serve several values,
and lets the Huffman stage of zstd come within a few percent of the entropy even where
most values are zero.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]


@dataclass(frozen=True)
class Digits:
    """How values become symbols.

    Parameters
    ----------
    limit : int
        Largest magnitude of a digit, 1 to 127.
    per_symbol : int
        Digits to a symbol; at most 256 symbols in all.
    signed : bool
        Whether digits may be negative.
    """

    limit: int
    per_symbol: int
    signed: bool = True

    @property
    def base(self) -> int:
        """Number of values of a digit."""
        return (2 * self.limit if self.signed else self.limit) + 1

    @property
    def zero(self) -> int:
        """What is added to a digit to make it non-negative."""
        return self.limit if self.signed else 0


# Our choice: as many digits a symbol as give at most 256 symbols, a byte each; small
# limits for streams that are mostly zero, a large one for lists of parameters.
TERNARY = Digits(1, 5)
QUINARY = Digits(2, 3)
SMALL = Digits(7, 2)
LARGE = Digits(127, 1)
# What is left of saturated digits.
EXCESS = Digits(15, 1, signed=False)


def pack_digits(values: Ints, digits: Digits) -> tuple[Ints, bool]:
    """Return symbols (uint8), and whether any digit saturates.

    Digit j of symbol i is value j * num_symbols + i: slices, not strides.
    """
    num_symbols = -(-values.size // digits.per_symbol)
    low, high = int(values.min()), int(values.max())
    limit = digits.limit
    if max(-low, high) > limit:
        values = np.clip(values, -limit, limit)
    saturates = max(-low, high) >= limit
    shifted = np.full(num_symbols * digits.per_symbol, digits.zero, np.uint8)
    np.add(values, digits.zero, out=shifted[: values.size], casting="unsafe")
    symbols = shifted[:num_symbols]
    for j in range(1, digits.per_symbol):
        symbols = symbols * np.uint8(digits.base)
        symbols += shifted[j * num_symbols : (j + 1) * num_symbols]
    return symbols, saturates


def unpack_digits(symbols: Ints, num_values: int, digits: Digits) -> Ints:
    """Undo `pack_digits` to int8 digits (num_values,)."""
    num_symbols = symbols.size
    shifted = np.empty(num_symbols * digits.per_symbol, np.uint8)
    base = np.uint8(digits.base)
    for j in range(digits.per_symbol - 1, 0, -1):
        rest = symbols // base
        part = shifted[j * num_symbols : (j + 1) * num_symbols]
        np.subtract(symbols, rest * base, out=part)
        symbols = rest
    shifted[:num_symbols] = symbols
    values = shifted[:num_values]
    values -= np.uint8(digits.zero)
    return values.view(np.int8)


def saturated_positions(values: Ints, digits: Digits) -> Ints:
    """Return the positions of values at or beyond the limit."""
    limit = digits.limit
    if limit == 1:
        return np.flatnonzero(values != 0)
    return np.flatnonzero((values >= limit) | (values <= -limit))


def symbol_of_zeros(digits: Digits) -> int:
    """Return the symbol whose digits are all zero."""
    return sum(digits.zero * digits.base**j for j in range(digits.per_symbol))
