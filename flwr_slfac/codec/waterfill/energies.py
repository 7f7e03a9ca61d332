"""The energy of every coefficient from three short lists, and classes of equal energy.

::

    log2 energy of (sample n, channel k, frequency f)  =  a[n] + u[k] + v[f]

in half units, as integers on the wire. Coefficients are a matrix (S, N * r): a row is
a frequency, a column a plane, one channel of one sample. With rows and columns sorted
by energy, the coefficients of one class are few rectangular blocks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels import ClassGrid, PlaneFit, kernels
from flwr_slfac.codec.kernels import classes as loops
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import Basis, order_1d, order_2d
from flwr_slfac.codec.waterfill.digits import LARGE, Ints
from flwr_slfac.codec.waterfill.klt import ListSource
from flwr_slfac.codec.waterfill.level import Reals
from flwr_slfac.errors import DecodeError

# Our choice: half octaves of standard deviation, from a sixteenth of a step to 2**25
# steps, beyond the largest level.
NUM_CLASSES = 60
# Class c holds coefficients of standard deviation 2**((c - 8) / 2) steps: our choice,
# so that class 0 is a sixteenth of a step, where all is zero, and the last of 60 is
# beyond the largest level.
CLASS_OF_STEP = 8
# Half units of energy on the wire are within this, our limit: 2**500 either way.
_LIMIT = 1000
# Our choice: a group's energy costs about a byte, which fewer coefficients do not save.
_FEWEST_PER_FREQUENCY = 256
# Our choice: a sample's energy costs about a byte, which fewer coefficients do not
# save by having their own.
_FEWEST_PER_SAMPLE = 8
# Our limit, against crafted headers: positions of a plane whose groups are kept, 8 MiB
# of 64 frames.
_MOST_KEPT = 2**14


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

    def lists(self) -> list[Ints]:
        """Return what travels: samples less their median, it, changes of the others."""
        median = int(np.median(self.samples))
        return [
            self.samples - median,
            np.array([median], np.int64),
            np.diff(self.channels, prepend=0),
            np.diff(self.frequencies, prepend=0),
        ]

    @classmethod
    def read(
        cls, reader: ListSource, num_samples: int, num_channels: int, num_groups: int
    ) -> "EnergyModel":
        """Read back what `lists` are, or raise DecodeError."""
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


def fit_planes(energies: Reals, num_positions: int, level: float) -> PlaneFit:
    """Fit energies of planes (N, r) a position; samples of few values are alike."""
    alike = energies.shape[1] * num_positions < _FEWEST_PER_SAMPLE
    return kernels().fit_planes(energies, num_positions, level, alike)


def frequencies_per_group(num_planes: int) -> int:
    """Return how many frequencies share an energy, each of so many planes."""
    return -(-_FEWEST_PER_FREQUENCY // num_planes)


def frequency_groups(basis: Basis, shape: PlaneShape, num_rows: int) -> Ints:
    """Return the group (S,) of each position: neighbours, coarse to fine.

    Do not write to the result: that of small planes is shared. A group has enough
    coefficients for its energy to be worth sending.

    Parameters
    ----------
    basis : Basis
        Spatial basis, whose order it is.
    shape : PlaneShape
        Of the planes.
    num_rows : int
        Rows after the rotation of channels.
    """
    num_each = frequencies_per_group(shape.num_samples * num_rows)
    if shape.num_positions <= _MOST_KEPT:
        return _kept_groups(basis, shape, num_each)
    return _groups_of(basis, shape, num_each)


def _groups_of(basis: Basis, shape: PlaneShape, num_each: int) -> Ints:
    """Return groups of so many positions each; a part at a time spares memory."""
    num = shape.num_positions
    groups, order = np.empty(num, np.int64), coarse_to_fine(basis, shape)
    for start in range(0, num, _MOST_KEPT):
        part = slice(start, min(start + _MOST_KEPT, num))
        groups[order[part]] = np.arange(part.start, part.stop) // num_each
    return groups


_kept_groups = lru_cache(maxsize=64)(_groups_of)


def num_groups(shape: PlaneShape, num_rows: int) -> int:
    """Return how many groups there are; parameters as above."""
    each = frequencies_per_group(shape.num_samples * num_rows)
    return -(-shape.num_positions // each)


def group_sizes(shape: PlaneShape, num_rows: int) -> Ints:
    """Return how many positions are in each group (G,); parameters as above."""
    num_each = frequencies_per_group(shape.num_samples * num_rows)
    sizes = np.full(num_groups(shape, num_rows), num_each)
    sizes[-1] += shape.num_positions - int(sizes.sum())
    return sizes


def coarse_to_fine(basis: Basis, shape: PlaneShape) -> Ints:
    """Return the positions (S,) of planes, int64, in the order of a basis."""
    if shape.num_positions == 1:
        return np.zeros(1, np.int64)
    if len(shape.sizes) == 2:
        order = order_2d(basis, *shape.sizes)
    else:
        order = order_1d(basis, shape.num_positions)
    positions: Ints = order.numpy()
    return positions


def class_offset(step: float) -> int:
    """Return what brings half units of energy to half classes at a step."""
    return 2 * CLASS_OF_STEP + 1 - round(4 * math.log2(step))


def classes_of(energies: Ints, offset: int) -> Ints:
    """Return the classes of energies in half units, at an offset."""
    halves: Ints = (energies.astype(np.int64) + offset) >> 1
    return np.clip(halves, 0, NUM_CLASSES - 1)


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
        order = np.argsort(-rows.astype(np.int16), kind="stable")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(columns)) + 1])
        self._grid = ClassGrid(
            order.astype(np.int64),
            rows[order].astype(np.int64),
            np.append(starts, len(columns)).astype(np.int64),
            columns[starts].astype(np.int64),
            offset,
            NUM_CLASSES,
        )

    @cached_property
    def counts(self) -> list[int]:
        """Number of coefficients of each class."""
        energies, num_rows = np.unique(self._grid.rows, return_counts=True)
        classes = energies[:, None] + self._grid.runs + self._grid.offset >> 1
        classes = np.clip(classes, 0, NUM_CLASSES - 1)
        sizes = num_rows[:, None] * np.diff(self._grid.starts)
        # Sums of weights are floats, exact for so many coefficients.
        counts = np.bincount(classes.reshape(-1), sizes.reshape(-1), NUM_CLASSES)
        return [int(count) for count in counts]

    def split(self, matrix: Ints) -> list[Ints]:
        """Return the values of each class, of a matrix (S, R)."""
        values = loops.split(matrix, self._grid)
        return np.split(values, np.cumsum(self.counts)[:-1])

    def join(
        self, values: Iterable[tuple[int, npt.NDArray[np.float32]]]
    ) -> npt.NDArray[np.float32]:
        """Undo `split`, class by class as values come, each that is not empty."""
        flat = np.empty(sum(self.counts), np.float32)
        starts = np.cumsum([0, *self.counts])
        for number, part in values:
            flat[starts[number] : starts[number + 1]] = part
        matrix: npt.NDArray[np.float32] = loops.join(flat, self._grid)
        return matrix
