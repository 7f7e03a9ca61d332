"""The elements of a matrix, class by class, and back, by NumPy.

A row and a column have each an energy, and the class of an element is half their sum.
Columns are sorted by energy, descending, in runs of equal ones; rows have an order in
which their energies descend. Within a class elements are in the order of rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ClassGrid", "join", "split"]

Ints = npt.NDArray[Any]
# Our choice: with fewer elements a block, sorting them all is quicker than slicing.
_SMALL_BLOCK = 128


@dataclass(frozen=True, eq=False)
class ClassGrid:
    """What tells the class of every element of a matrix (S, R).

    Parameters
    ----------
    order : ndarray (S,)
        int64: rows of the matrix, most energy first.
    rows : ndarray (S,)
        int64: energies of the rows in that order.
    starts : ndarray (Q + 1,)
        int64: where runs of columns begin, and R.
    runs : ndarray (Q,)
        int64: energies of the runs, descending.
    offset : int
        Added to the sum of two energies.
    num_classes : int
        Classes beyond the last, and below the first, are the last and the first.
    """

    order: Ints
    rows: Ints
    starts: Ints
    runs: Ints
    offset: int
    num_classes: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return len(self.order), int(self.starts[-1])


def split(matrix: Ints, grid: ClassGrid) -> Ints:
    """Return the elements of a matrix (S, R), one class after the other."""
    ordered = matrix[grid.order]
    row_starts, lines = _lines(grid)
    if _is_fine(grid, lines):
        return ordered.reshape(-1)[_elements(grid, row_starts, lines)]
    parts = [
        ordered[rows, columns].reshape(-1)
        for rows, columns in _blocks(grid, row_starts, lines)
    ]
    return np.concatenate([matrix[:0].reshape(-1), *parts])


def join(values: Ints, grid: ClassGrid) -> Ints:
    """Undo `split`."""
    ordered = np.empty(grid.shape, values.dtype)
    row_starts, lines = _lines(grid)
    if _is_fine(grid, lines):
        ordered.reshape(-1)[_elements(grid, row_starts, lines)] = values
    else:
        start = 0
        for rows, columns in _blocks(grid, row_starts, lines):
            block = ordered[rows, columns]
            block[...] = values[start : start + block.size].reshape(block.shape)
            start += block.size
    matrix = np.empty_like(ordered)
    matrix[grid.order] = ordered
    return matrix


def _lines(grid: ClassGrid) -> tuple[Ints, Ints]:
    """Return where runs of rows begin, and the classes of runs of rows and columns."""
    changes = np.flatnonzero(np.diff(grid.rows)) + 1
    row_starts = np.concatenate([[0], changes, [len(grid.rows)]])
    energies = grid.rows[row_starts[:-1], None] + grid.runs + grid.offset
    return row_starts, np.clip(energies >> 1, 0, grid.num_classes - 1)


def _is_fine(grid: ClassGrid, lines: Ints) -> bool:
    return grid.shape[0] * grid.shape[1] < _SMALL_BLOCK * lines.size


def _elements(grid: ClassGrid, row_starts: Ints, lines: Ints) -> Ints:
    """Return positions in the matrix of ordered rows, class by class."""
    by_row = np.repeat(lines.astype(np.uint8), np.diff(row_starts), axis=0)
    by_element = np.repeat(by_row, np.diff(grid.starts), axis=1)
    return np.argsort(by_element, axis=None, kind="stable")


def _blocks(
    grid: ClassGrid, row_starts: Ints, lines: Ints
) -> list[tuple[slice, slice]]:
    """Return blocks of one class, class by class; along a line each is one run."""
    blocks: list[list[tuple[slice, slice]]] = [[] for _ in range(grid.num_classes)]
    for i, line in enumerate(lines):
        rows = slice(int(row_starts[i]), int(row_starts[i + 1]))
        first = [0, *(np.flatnonzero(np.diff(line)) + 1).tolist()]
        edges = grid.starts[[*first, len(line)]].tolist()
        for j, column in enumerate(first):
            blocks[line[column]].append((rows, slice(edges[j], edges[j + 1])))
    return [block for some in blocks for block in some]
