"""The energy of every coefficient from three short lists, and classes of equal energy.

::

    log2 energy of (sample n, channel k, frequency f)  =  a[n] + u[k] + v[f]

in half units, as integers on the wire. Coefficients are a matrix (S, N * r): a row is
a frequency, a column a plane, one channel of one sample. With rows and columns sorted
by energy, the coefficients of one class are few rectangular blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import Basis, order_1d, order_2d
from flwr_slfac.codec.waterfill.digits import LARGE, Ints
from flwr_slfac.codec.waterfill.level import TINY, Reals
from flwr_slfac.codec.waterfill.streams import StreamReader, StreamWriter
from flwr_slfac.errors import DecodeError

# Our choice: half octaves of standard deviation, from a sixteenth of a step to 2**25
# steps, beyond the largest level.
NUM_CLASSES = 60
# Half units of energy on the wire are within this, our limit: 2**500 either way.
_LIMIT = 1000
# Our choice: with fewer coefficients a block, sorting them all is quicker than slicing.
_SMALL_BLOCK = 128
# Our choice: each sweep fits samples, then channels; three settle it.
_SWEEPS = 3
# Our choice: a group's energy costs about a byte, which fewer coefficients do not save.
_FEWEST_PER_FREQUENCY = 256
# In place of 0 in quotients of energies.
_LEAST_ENERGY = 1e-30


@dataclass(frozen=True, eq=False)
class EnergyModel:
    """Half units of log2 energy, as integers.

    Parameters
    ----------
    samples, channels, frequencies : ndarray (N,), (r,), (G,)
        Their sum is the energy of a coefficient; frequencies are in groups.
    """

    samples: Ints
    channels: Ints
    frequencies: Ints

    def of_planes(self) -> Ints:
        """Return the energy of planes (N * r,), channels varying fastest."""
        sums: Ints = self.samples[:, None] + self.channels[None, :]
        return sums.reshape(-1)

    def write(self, writer: StreamWriter) -> None:
        """Add the lists to the streams, neighbours subtracted where they are alike."""
        writer.stream(self.samples - int(np.median(self.samples)), LARGE)
        writer.stream(np.array([np.median(self.samples)], np.int64), LARGE)
        writer.stream(np.diff(self.channels, prepend=0), LARGE)
        writer.stream(np.diff(self.frequencies, prepend=0), LARGE)

    @classmethod
    def read(
        cls, reader: StreamReader, num_samples: int, num_channels: int, num_groups: int
    ) -> "EnergyModel":
        """Read back what `write` added, or raise DecodeError."""
        samples = reader.stream(num_samples, LARGE).astype(np.int64)
        samples += int(reader.stream(1, LARGE)[0])
        channels = np.cumsum(reader.stream(num_channels, LARGE).astype(np.int64))
        groups = np.cumsum(reader.stream(num_groups, LARGE).astype(np.int64))
        for part in (samples, channels, groups):
            if np.abs(part).max() > _LIMIT:
                raise DecodeError("a scale of codec 'waterfill' is out of range")
        return cls(
            samples.astype(np.int16), channels.astype(np.int16), groups.astype(np.int16)
        )


def half_units(energies: Reals) -> Ints:
    """Return 2 * log2 of energies as integers within limits."""
    logs = 2 * np.log2(np.maximum(energies, TINY))
    units: Ints = np.clip(np.rint(logs), -_LIMIT // 4, _LIMIT // 4).astype(np.int64)
    return units


def fit_separable(energies: Reals, floor: float) -> tuple[Reals, Reals]:
    """Fit ``energies[n, k] ~ a[n] * u[k]``; the mean of a is about 1.

    Parameters
    ----------
    energies : ndarray (N, r)
    floor : float
        Energies well below it do not matter.
    """
    a = np.ones(len(energies))
    u = energies.mean(0)
    for _ in range(_SWEEPS):
        model = a[:, None] * u
        weights = 1 / (model + floor)
        a = a * _ratio((energies * weights).sum(1), (model * weights).sum(1))
        model = a[:, None] * u
        weights = 1 / (model + floor)
        u = u * _ratio((energies * weights).sum(0), (model * weights).sum(0))
    return a, u


def _ratio(above: Reals, below: Reals) -> Reals:
    return np.maximum(above, _LEAST_ENERGY) / np.maximum(below, _LEAST_ENERGY)


def frequency_groups(basis: Basis, shape: PlaneShape, num_rows: int) -> Ints:
    """Return the group (S,) of each position: neighbours, coarse to fine.

    A group has enough coefficients for its energy to be worth sending.

    Parameters
    ----------
    basis : Basis
        Spatial basis, whose order it is.
    shape : PlaneShape
        Of the planes.
    num_rows : int
        Rows after the rotation of channels.
    """
    num_positions = shape.num_positions
    if num_positions == 1:
        return np.zeros(1, np.int64)
    size = -(-_FEWEST_PER_FREQUENCY // (shape.num_samples * num_rows))
    if len(shape.sizes) == 2:
        order = order_2d(basis, *shape.sizes)
    else:
        order = order_1d(basis, num_positions)
    groups = np.empty(num_positions, np.int64)
    groups[order.numpy()] = np.arange(num_positions) // size
    return groups


class EnergyClasses:
    """Coefficients split into classes of equal energy, and joined again.

    Within a class, coefficients are ordered by rows of the sorted matrix.

    Parameters
    ----------
    rows : ndarray (S,)
        Half units of energy of frequencies.
    columns : ndarray (R,)
        Half units of energy of planes, descending.
    offset : int
        Half units to add, so that classes start at 0.
    """

    def __init__(self, rows: Ints, columns: Ints, offset: int) -> None:
        self._shape = (len(rows), len(columns))
        self._order = np.argsort(-rows.astype(np.int16), kind="stable")
        self._in_order = bool((np.diff(rows) <= 0).all())
        self._rows = _runs(rows[self._order])
        self._columns = _runs(columns)
        energies = self._rows[0][:, None] + self._columns[0][None, :] + offset
        self._grid = np.clip(energies >> 1, 0, NUM_CLASSES - 1)

    @cached_property
    def counts(self) -> list[int]:
        """Number of coefficients of each class."""
        sizes = np.diff(self._rows[1])[:, None] * np.diff(self._columns[1])[None, :]
        counts = np.bincount(
            self._grid.reshape(-1), sizes.reshape(-1), minlength=NUM_CLASSES
        )
        return [int(count) for count in counts]

    def split(self, matrix: Ints) -> list[Ints]:
        """Return the values of each class, of a matrix (S, R)."""
        if not self._in_order:
            matrix = matrix[self._order]
        if self._is_fine:
            flat = matrix.reshape(-1)[self._elements]
            return np.split(flat, np.cumsum(self.counts)[:-1])
        empty = matrix[:0].reshape(-1)
        classes = []
        for blocks in self._blocks:
            parts = [matrix[rows, columns].reshape(-1) for rows, columns in blocks]
            classes.append(np.concatenate(parts) if parts else empty)
        return classes

    def join(
        self, values: Iterable[tuple[int, npt.NDArray[np.float32]]]
    ) -> npt.NDArray[np.float32]:
        """Undo `split`, class by class as values come; classes left out stay zero."""
        matrix = np.zeros(self._shape, np.float32)
        starts = np.cumsum([0, *self.counts])
        for number, part in values:
            if self._is_fine:
                places = self._elements[starts[number] : starts[number + 1]]
                matrix.reshape(-1)[places] = part
                continue
            start = 0
            for rows, columns in self._blocks[number]:
                block = matrix[rows, columns]
                block[...] = part[start : start + block.size].reshape(block.shape)
                start += block.size
        if self._in_order:
            return matrix
        result = np.empty_like(matrix)
        result[self._order] = matrix
        return result

    @cached_property
    def _is_fine(self) -> bool:
        return bool(self._shape[0] * self._shape[1] < _SMALL_BLOCK * self._grid.size)

    @cached_property
    def _elements(self) -> Ints:
        """Positions in the sorted matrix, class by class."""
        by_row = np.repeat(self._grid.astype(np.uint8), np.diff(self._rows[1]), axis=0)
        by_element = np.repeat(by_row, np.diff(self._columns[1]), axis=1)
        return np.argsort(by_element, axis=None, kind="stable")

    @cached_property
    def _blocks(self) -> list[list[tuple[slice, slice]]]:
        """Blocks of each class, row run by row run, left to right."""
        blocks: list[list[tuple[slice, slice]]] = [[] for _ in range(NUM_CLASSES)]
        row_starts, column_starts = self._rows[1].tolist(), self._columns[1]
        for i, line in enumerate(self._grid):
            rows = slice(row_starts[i], row_starts[i + 1])
            changes = np.flatnonzero(np.diff(line)) + 1
            first = [0, *changes.tolist()]
            edges = column_starts[[*first, len(line)]].tolist()
            for j, column in enumerate(first):
                blocks[line[column]].append((rows, slice(edges[j], edges[j + 1])))
        return blocks


def _runs(values: Ints) -> tuple[Ints, Ints]:
    """Return the value of each run, and where runs start, the end included."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
    return values[starts].astype(np.int64), np.append(starts, len(values))
