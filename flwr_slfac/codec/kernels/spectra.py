"""The compiled loops over spectra, with their results allocated.

There is no reference in NumPy: where these are not, `codec.slfac` works in PyTorch, as
on a GPU, to the same bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Levels", "SpectraLoops"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Levels:
    """The levels of two components of R rows, float32.

    Parameters
    ----------
    low, scale : ndarray (2, R)
        The lowest level, and codes per unit (to encode) or the distance of two levels
        (to decode).
    widths : ndarray (2, R)
        int32: bits of a code; 0 where the range is a point.
    """

    low: Array
    scale: Array
    widths: Array


class SpectraLoops:
    """Results of the extension's functions, allocated.

    Parameters
    ----------
    compiled : module
        The extension.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self.transpose = compiled.transpose
        self.place_columns = compiled.place_columns

    @staticmethod
    def floats_a_row(n: int) -> int:
        """Return how many floats a row of n coefficients takes, in order."""
        floats = 8 * -(-n // 8)
        return floats if floats % 256 else floats + 16

    def split(
        self,
        coeffs: Array,
        order: Array,
        theta: float,
        store: Array,
        first: int,
        found: tuple[Array, Array, Array],
    ) -> None:
        """Put rows in order, and split them as `afd.decompose` does.

        Parameters
        ----------
        coeffs : ndarray (n, K)
            float32, contiguous: of rows `first` to ``first + K`` of R.
        order : ndarray (n,)
            int64.
        theta : float
            Share of the energy.
        store : ndarray
            Room for R rows, see `floats_a_row`; written.
        first : int
            Of these rows.
        found : tuple of ndarray (R,), (2, R), (2 ends, 2, R)
            Splits in int64, energies in float64 and ends in float32; written.
        """
        n, num_rows = coeffs.shape
        self._compiled.spectra_split(
            coeffs, n, num_rows, order, theta, store, first, *found
        )

    def ranges(self, ends: Array, exponent: int) -> Array:
        """Return float16 ranges (2 ends, 2, R), see `ranges.round_outward`."""
        halves = np.empty(ends.shape, np.float16)
        self._compiled.spectra_ranges(ends, exponent, halves)
        return halves

    def levels(
        self, halves: Array, exponent: int, widths: Array, *, decodes: bool
    ) -> Levels:
        """Return the levels of finite ranges (2 ends, 2, R) and widths (2, R).

        Raises
        ------
        ValueError
            If a range is not one.
        """
        low = np.empty(widths.shape, np.float32)
        scale, used = np.empty_like(low), np.empty(widths.shape, np.int32)
        is_valid = self._compiled.spectra_levels(
            halves, exponent, widths, decodes, low, scale, used
        )
        if not is_valid:
            raise ValueError("a range is not finite, or its ends are swapped")
        return Levels(low, scale, used)

    def pack(self, store: Array, n: int, split: Array, levels: Levels) -> memoryview:
        """Quantize all rows of a store, and pack their codes end to end."""
        used = levels.widths
        num_bits = int((split * used[0] + (n - split) * used[1]).sum())
        out = np.empty((num_bits + 7) // 8, np.uint8)
        self._compiled.spectra_pack(
            store, n, split, levels.low, levels.scale, used, out
        )
        return out.data

    def unpack(
        self,
        codes: memoryview,
        position: int,
        first: int,
        split: Array,
        levels: Levels,
        order: Array,
        coeffs: Array,
    ) -> int:
        """Turn codes to coefficients (n, K), of rows `first` to ``first + K``.

        Returns
        -------
        int
            The bit where the next row begins.
        """
        n, num_rows = coeffs.shape
        end: int = self._compiled.spectra_unpack(
            codes,
            position,
            n,
            first,
            num_rows,
            split,
            levels.low,
            levels.scale,
            levels.widths,
            order,
            coeffs,
        )
        return end

    def pack_records(self, words: Array, bits: int) -> memoryview:
        """Return 64-bit words end to end, of each its lowest bits."""
        out = np.empty((words.size * bits + 7) // 8, np.uint8)
        self._compiled.pack_records(words, bits, out)
        return out.data

    def unpack_records(self, data: memoryview, bits: int, num_records: int) -> Array:
        """Undo `pack_records`; the data must have their length."""
        words = np.empty(num_records, np.uint64)
        self._compiled.unpack_records(data, bits, words)
        return words
