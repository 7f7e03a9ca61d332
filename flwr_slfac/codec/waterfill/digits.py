"""Values to symbols of several digits each, and back.

::

    values -> digits -L..L (larger ones saturate) -> k digits a symbol

Packing several digits into one symbol makes one step of the coder serve several values.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels import digits as loops

Ints = npt.NDArray[Any]
Symbols = npt.NDArray[np.uint8]


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
TERNARY = Digits(1, 4)
QUINARY = Digits(2, 3)
SMALL = Digits(7, 2)
LARGE = Digits(127, 1)
# What is left of saturated digits.
EXCESS = Digits(15, 1, signed=False)


def pack_digits(
    values: Ints, digits: Digits
) -> tuple[Symbols, npt.NDArray[np.int64], int]:
    """Return symbols (uint8), counts of all 256, and how many digits saturate."""
    return loops.pack(values, digits.limit, digits.per_symbol, digits.signed)


def unpack_digits(
    symbols: Symbols, num_values: int, digits: Digits
) -> tuple[npt.NDArray[np.int8], int]:
    """Undo `pack_digits` to digits (num_values,), and how many of them saturate."""
    return loops.unpack(
        symbols, num_values, digits.limit, digits.per_symbol, digits.signed
    )


def saturated_positions(values: Ints, digits: Digits) -> Ints:
    """Return the positions of values at or beyond the limit."""
    limit = digits.limit
    if limit == 1:
        return np.flatnonzero(values != 0)
    return np.flatnonzero((values >= limit) | (values <= -limit))


def symbol_of_zeros(digits: Digits) -> int:
    """Return the symbol whose digits are all zero."""
    return sum(digits.zero * digits.base**j for j in range(digits.per_symbol))
