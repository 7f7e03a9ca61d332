"""The compiled loops over whole frames of `Waterfill`, with their results allocated.

There is no reference here: where these are not, `codec.waterfill` works stream by
stream with the other kernels, to the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CodingTables", "Energies", "FrameLoops"]

Array = npt.NDArray[Any]
# A limit of the format.
_NUM_CLASSES = 60


@dataclass(frozen=True)
class CodingTables:
    """What the format settles, all int64.

    Parameters
    ----------
    kinds : ndarray (60, 3)
        Of each class, the largest digit, digits a symbol, and low bits.
    midpoints, chances : ndarray (B,), (B + 1,)
        Chances that a byte stands for, ascending, and what is between neighbours.
    """

    kinds: Array
    midpoints: Array
    chances: Array


@dataclass(frozen=True, eq=False)
class Energies:
    """What tells the class of every coefficient of a matrix (S, N * r), all int64.

    Parameters
    ----------
    samples, channels, frequencies : ndarray (N,), (r,), (G,)
        Half units, within +-1000.
    groups : ndarray (S,)
        Of frequencies.
    offset : int
        From half units to half classes.
    """

    samples: Array
    channels: Array
    frequencies: Array
    groups: Array
    offset: int


class FrameLoops:
    """Results of the extension's functions, allocated.

    Parameters
    ----------
    compiled : module
        The extension.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def quantize(
        self,
        coefficients: Array,
        energies: Energies,
        inverse: float,
        dtype: np.dtype[Any],
    ) -> tuple[Array, Array]:
        """Return levels, and sums of their errors by class.

        Parameters
        ----------
        coefficients : ndarray (S, N * r)
            float32, contiguous; planes by energy, descending.
        energies : Energies
            Of the coefficients.
        inverse : float
            Of the step.
        dtype : dtype
            Of levels: int8, int16 or int32, which has to hold them.

        Returns
        -------
        tuple of ndarray
            Levels (S, N * r), and int64 (60, 3): how many are not zero, and errors in
            1024ths of a step, along the signs of levels, and squared.
        """
        levels = np.empty(coefficients.shape, dtype)
        sums = np.empty((_NUM_CLASSES, 3), np.int64)
        e = energies
        self._compiled.quantize(
            coefficients,
            e.samples,
            e.channels,
            e.frequencies,
            e.groups,
            e.offset,
            inverse,
            levels,
            levels.itemsize,
            sums,
        )
        return levels, sums

    def write(
        self,
        lists: Sequence[Array],
        energies: Energies,
        shifts: Array,
        levels: Array,
        tables: CodingTables,
    ) -> tuple[bytes, bytes]:
        """Return the parameters and the words of a frame.

        Parameters
        ----------
        lists : sequence of ndarray
            int64: streams before all others.
        energies : Energies
            Of the levels.
        shifts : ndarray (60,)
            int64: of each class.
        levels : ndarray (S, N * r)
            int8, int16 or int32, contiguous; planes by energy, descending.
        tables : CodingTables
            Of the format.
        """
        sizes = np.array([part.size for part in lists], np.int64)
        joined = np.concatenate([sizes[:0], *lists])
        e = energies
        written: tuple[bytes, bytes] = self._compiled.write_streams(
            joined,
            sizes,
            e.samples,
            e.channels,
            e.frequencies,
            e.groups,
            e.offset,
            shifts,
            levels,
            levels.itemsize,
            tables.kinds,
            tables.midpoints,
            tables.chances,
        )
        return written

    def read_lists(
        self,
        parameters: memoryview,
        words: memoryview,
        lists: Sequence[int],
        tables: CodingTables,
    ) -> tuple[Array, str]:
        """Return the first lists of a frame end to end, and what is wrong.

        Parameters
        ----------
        parameters, words, tables
            See `read`.
        lists : sequence of int
            Their sizes.
        """
        sizes = np.array(lists, np.int64)
        values = np.empty(sum(lists), np.int64)
        wrong = self._compiled.read_lists(
            parameters,
            words,
            sizes,
            tables.kinds,
            tables.midpoints,
            tables.chances,
            values,
        )
        return values, wrong

    def read(
        self,
        parameters: memoryview,
        words: memoryview,
        lists: Sequence[int],
        sizes: tuple[int, int, int],
        groups: Array,
        offset: int,
        step: float,
        tables: CodingTables,
    ) -> tuple[Array, Array, str]:
        """Return coefficients (S, N * r), the planes of columns, and what is wrong.

        Parameters
        ----------
        parameters, words : memoryview
            From anywhere; what is wrong with them is told by the last result.
        lists : sequence of int
            Sizes of the lists before all other streams, which are passed over.
        sizes : tuple of int
            N, r and G, see `Energies`.
        groups, offset
            See `Energies`.
        step : float
            Of the levels.
        tables : CodingTables
            Of the format.
        """
        num_samples, num_channels, _ = sizes
        order = np.empty(num_samples * num_channels, np.int64)
        coefficients = np.empty((groups.size, order.size), np.float32)
        wrong = self._compiled.read_streams(
            parameters,
            words,
            np.array(lists, np.int64),
            *sizes,
            groups,
            offset,
            step,
            tables.kinds,
            tables.midpoints,
            tables.chances,
            order,
            coefficients,
        )
        return coefficients, order, wrong
