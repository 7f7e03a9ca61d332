r"""Separable transforms of many planes at once, by NumPy.

::

    planes (R, h, w) --stage by stage--> coefficients (h, w, R)

A stage transforms one dimension of the first rows and columns of every plane, by lines
of n values. Half of a line may be added to, and taken off, its mirrored other half
first, and that of the sums again: a *fold*. An output is then the sum of a few of these
values times weights, in the order of its *taps*. Products and sums are of float32 and
rounded one by one, which settles every bit, however many are worked on at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LANES", "LONGEST_LINE", "PlaneTransform", "Stage", "forward", "inverse"]

# Of the compiled loops: beyond, products of matrices are quicker.
LONGEST_LINE = 64
# Planes that the compiled loops work on at once: sums of squares are in as many lanes.
LANES = 16
# Outputs of the same taps that the compiled loops sum at once.
_GROUPS = (4, 2, 1)
# Our choice: values at a time, with what comes of them about what a cache holds.
_CHUNK = 2**16

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


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
    def sums(self) -> list[tuple[Array, Array, Floats]]:
        """Outputs (m,) of as many taps each, their taps and weights (m, T)."""
        return _sums(self.matrix)

    @cached_property
    def inverse_sums(self) -> list[tuple[Array, Array, Floats]]:
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


def forward(
    planes: Floats,
    index: Array,
    transform: PlaneTransform,
    coeffs: Floats,
    weights: Floats | None = None,
) -> tuple[Array, Floats]:
    """Transform planes, and tell of their coefficients.

    Parameters
    ----------
    planes : ndarray (K, S)
        float32, contiguous.
    index : ndarray (R,)
        int64: which plane a column is.
    transform : PlaneTransform
        Of planes of S values.
    coeffs : ndarray (S, R)
        float32, contiguous; written.
    weights : ndarray (R,), optional
        float32, of columns.

    Returns
    -------
    tuple of ndarray
        With weights, the sums of squares times weights (S,), float64, and the least
        and the largest of coefficients and zero, float32; else arbitrary values. Any
        where squares overflow.
    """
    lanes = np.zeros((len(coeffs), LANES), np.float32)
    ends = np.zeros(2, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        _forward(planes, index, transform, coeffs, weights, lanes, ends)
    # One lane after the other: sums of float64 depend on their order too.
    return np.cumsum(lanes, axis=1, dtype=np.float64)[:, -1], ends


def _forward(
    planes: Floats,
    index: Array,
    transform: PlaneTransform,
    coeffs: Floats,
    weights: Floats | None,
    lanes: Floats,
    ends: Floats,
) -> None:
    for chunk in _chunks(coeffs):
        tile = _tile(planes[index[chunk]].T, transform)
        for stage in transform.stages:
            line = _lines(tile, stage)
            line[...] = _apply(stage.sums, _fold(line, stage.folds))
        part = tile.reshape(len(coeffs), -1)
        coeffs[:, chunk] = part
        if weights is not None:
            low, high = part.min(initial=ends[0]), part.max(initial=ends[1])
            ends[:] = low, high
            _add_squares(lanes, part, weights[chunk])


def inverse(
    coeffs: Floats,
    index: Array,
    transform: PlaneTransform,
    planes: Floats,
    clamps: bool = False,
) -> None:
    """Undo `forward`.

    Parameters
    ----------
    coeffs, index, transform
        See `forward`.
    planes : ndarray (K, S)
        float32, contiguous; written.
    clamps : bool
        Whether what is not above zero becomes zero.
    """
    for chunk in _chunks(coeffs):
        tile = _tile(coeffs[:, chunk], transform)
        # Crafted coefficients may overflow: who decodes them looks at the result.
        with np.errstate(over="ignore", invalid="ignore"):
            for stage in reversed(transform.stages):
                line = _lines(tile, stage)
                line[...] = _unfold(_apply(stage.inverse_sums, line), stage.folds)
        part = tile.reshape(len(coeffs), -1)
        if clamps:
            part = np.where(part > 0, part, np.float32(0))
        planes[index[chunk]] = part.T


def _chunks(coeffs: Floats) -> list[slice]:
    num_places, num_planes = coeffs.shape
    step = LANES * max(1, _CHUNK // (LANES * num_places))
    return [slice(i, min(i + step, num_planes)) for i in range(0, num_planes, step)]


def _tile(values: Floats, transform: PlaneTransform) -> Floats:
    """Return a copy (h, w, K)."""
    return np.array(values, order="C").reshape(transform.height, transform.width, -1)


def _lines(tile: Floats, stage: Stage) -> Floats:
    """View what a stage transforms as (n, lines, K)."""
    part = tile[: stage.rows, : stage.columns]
    return part.transpose(1, 0, 2) if stage.is_along_rows else part


def _fold(line: Floats, folds: int) -> Floats:
    n = len(line)
    for _ in range(folds):
        first, last = line[: n // 2], line[n // 2 : n][::-1]
        part = np.concatenate([first + last, (first - last)[::-1]])
        line = part if n == len(line) else np.concatenate([part, line[n:]])
        n //= 2
    return line


def _unfold(line: Floats, folds: int) -> Floats:
    for fold in range(folds - 1, -1, -1):
        line = np.concatenate(
            [_fold(line[: len(line) >> fold], 1), line[len(line) >> fold :]]
        )
    return line


def _apply(sums: list[tuple[Array, Array, Floats]], line: Floats) -> Floats:
    result = np.empty_like(line)
    for outputs, taps, weights in sums:
        if (taps == taps[:1]).all():
            taps = taps[:1]
        total = line[taps[:, 0]] * weights[:, 0, None, None]
        part = np.empty_like(total)
        for t in range(1, weights.shape[1]):
            np.multiply(line[taps[:, t]], weights[:, t, None, None], out=part)
            total += part
        result[outputs] = total
    return result


def _add_squares(lanes: Floats, part: Floats, weights: Floats) -> None:
    weighted = part * part * weights
    for start in range(0, part.shape[1], LANES):
        some = weighted[:, start : start + LANES]
        lanes[:, : some.shape[1]] += some


def _sums(matrix: Floats) -> list[tuple[Array, Array, Floats]]:
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
    sums: list[tuple[Array, Array, Floats]],
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
