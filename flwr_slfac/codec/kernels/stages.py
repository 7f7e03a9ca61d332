"""What a separable transform of planes is made of, and how the compiled loops take it.

A stage transforms one dimension of the first rows and columns of every plane, by lines
of n values. Half of a line may be added to, and taken off, its mirrored other half
first, and that of the sums again: a *fold*. An output is then the sum of a few of these
values times weights, in the order of its *taps*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LONGEST_LINE", "PlaneTransform", "Stage", "Sums"]

# Of the compiled loops: beyond, products of matrices are quicker.
LONGEST_LINE = 64
# Outputs of the same taps that the compiled loops sum at once.
_GROUPS = (4, 2, 1)

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
# Outputs (m,) of as many taps each, their taps and weights (m, T).
Sums = list[tuple[Array, Array, Floats]]


@dataclass(frozen=True, eq=False)
class Stage:
    """One dimension of the first rows and columns of a plane.

    Parameters
    ----------
    rows, columns : int
        How many of a plane.
    is_along_rows : bool
        Whether a line is a row, of `columns` values.
    folds : int
        How often a line is folded. Of n values, sums are the first n / 2; the last is
        the difference of the first two that were added, and so on to the front.
    matrix : ndarray (n, n)
        float32: outputs from a folded line. What is zero is no tap.
    """

    rows: int
    columns: int
    is_along_rows: bool
    folds: int
    matrix: Floats

    @cached_property
    def sums(self) -> Sums:
        """What the outputs are sums of."""
        return _sums(self.matrix)

    @cached_property
    def inverse_sums(self) -> Sums:
        """The same from outputs to a folded line."""
        return _sums(self.matrix.T)


@dataclass(frozen=True, eq=False)
class PlaneTransform:
    """The stages of a transform of planes.

    Parameters
    ----------
    height, width : int
        Of a plane, in [1, 64].
    stages : sequence of Stage
        In the order of the way forward.
    """

    height: int
    width: int
    stages: Sequence[Stage]

    @cached_property
    def packed(self) -> tuple[Array, Floats]:
        """Numbers and weights as the compiled loops take them."""
        return self._packed(inverts=False)

    @cached_property
    def packed_inverse(self) -> tuple[Array, Floats]:
        """The same for the way back."""
        return self._packed(inverts=True)

    def _packed(self, *, inverts: bool) -> tuple[Array, Floats]:
        numbers = [self.height, self.width, len(self.stages)]
        weights: list[Array] = []
        for s in self.stages:
            groups = _groups(s.inverse_sums if inverts else s.sums)
            head = s.rows, s.columns, s.is_along_rows, s.folds, len(groups)
            numbers.extend(map(int, head))
            for outputs, taps, of_taps in groups:
                numbers += [len(outputs), len(taps), *outputs, *taps]
                weights.append(of_taps.T.reshape(-1))
        joined = np.concatenate([np.zeros(0, np.float32), *weights])
        return np.array(numbers, np.int32), joined


def _sums(matrix: Floats) -> Sums:
    """Return the rows of a matrix, by how many taps they have."""
    is_tap = matrix != 0
    counts = is_tap.sum(1)
    found = []
    for count in np.unique(counts):
        outputs = np.flatnonzero(counts == count)
        taps = np.nonzero(is_tap[outputs])[1].reshape(outputs.size, count)
        found.append((outputs, taps, matrix[outputs[:, None], taps]))
    return found


def _groups(
    sums: Sums,
) -> list[tuple[list[int], list[int], Floats]]:
    """Return groups of outputs of the same taps, each a power of two of them."""
    found = []
    for outputs, taps, weights in sums:
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, of_output in enumerate(taps.tolist()):
            alike.setdefault(tuple(of_output), []).append(i)
        for shared, members in alike.items():
            while members:
                num = next(size for size in _GROUPS if size <= len(members))
                some, members = members[:num], members[num:]
                found.append((outputs[some].tolist(), list(shared), weights[some]))
    return found
