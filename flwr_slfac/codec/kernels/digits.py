"""Values to symbols of several digits each, and back, by NumPy.

::

    values -> digits -L..L, or 0..L (larger ones saturate) -> k digits a symbol
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels.rans import NUM_SYMBOLS, Symbols

__all__ = ["pack", "unpack"]

Ints = npt.NDArray[Any]


def pack(
    values: Ints, limit: int, per_symbol: int, is_signed: bool
) -> tuple[Symbols, npt.NDArray[np.int64], int]:
    """Return symbols, how often each of 256 occurs, and how many digits saturate.

    Digit j of symbol i is value ``j * num_symbols + i``: slices, not strides. The first
    digit counts most; what is missing in the last symbols is zero.

    Parameters
    ----------
    values : ndarray (n,)
        Signed integers, not empty.
    limit, per_symbol, is_signed
        Largest magnitude of a digit, digits to a symbol, whether they may be negative.
    """
    num_symbols = -(-values.size // per_symbol)
    zero = limit if is_signed else 0
    low, high = int(values.min()), int(values.max())
    saturated = 0
    if max(-low, high) >= limit:
        saturated = int(np.count_nonzero((values >= limit) | (values <= -limit)))
        values = np.clip(values, -zero, limit)
    shifted = np.full(num_symbols * per_symbol, zero, np.uint8)
    np.add(values, zero, out=shifted[: values.size], casting="unsafe")
    symbols = shifted[:num_symbols]
    for j in range(1, per_symbol):
        symbols = symbols * np.uint8(zero + limit + 1)
        symbols += shifted[j * num_symbols : (j + 1) * num_symbols]
    counts = np.bincount(symbols, minlength=NUM_SYMBOLS).astype(np.int64)
    return symbols, counts, saturated


def unpack(
    symbols: Symbols, num_values: int, limit: int, per_symbol: int, is_signed: bool
) -> tuple[npt.NDArray[np.int8], int]:
    """Undo `pack` to digits (num_values,), and return how many of them saturate."""
    num_symbols = symbols.size
    zero = limit if is_signed else 0
    shifted = np.empty(num_symbols * per_symbol, np.uint8)
    base = np.uint8(zero + limit + 1)
    for j in range(per_symbol - 1, 0, -1):
        rest = symbols // base
        part = shifted[j * num_symbols : (j + 1) * num_symbols]
        np.subtract(symbols, rest * base, out=part)
        symbols = rest
    shifted[:num_symbols] = symbols
    unsigned = shifted[:num_values]
    unsigned -= np.uint8(zero)
    values = unsigned.view(np.int8)
    return values, int(np.count_nonzero((values >= limit) | (values <= -limit)))
