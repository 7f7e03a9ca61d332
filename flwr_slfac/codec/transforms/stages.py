"""The stages of a basis for planes whose sizes are small, see `kernels.stages`."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from flwr_slfac.codec.kernels import LONGEST_LINE, PlaneTransform, Stage
from flwr_slfac.codec.transforms.basis import Basis
from flwr_slfac.codec.transforms.dct import dct_matrix
from flwr_slfac.codec.transforms.wavelets import Array, step_matrix

__all__ = ["plane_transform"]


@lru_cache(maxsize=64)
def plane_transform(basis: Basis, sizes: Sequence[int]) -> PlaneTransform | None:
    """Return the stages for planes of one or two sizes, None where one is too large.

    Parameters
    ----------
    basis : Basis
        What to transform by.
    sizes : tuple of int
        Of a plane; one size is that of a row.

    Raises
    ------
    SettingError
        If a wavelet cannot do the sizes.
    """
    num_levels = basis.num_levels(*sizes) if basis.is_wavelet else 1
    if not all(1 <= size <= LONGEST_LINE for size in sizes):
        return None
    height, width = (1, *sizes)[-2:]
    stages = []
    for level in range(0 if basis.is_plain else num_levels):
        rows, columns = max(1, height >> level), width >> level
        for is_along_rows, n in ((True, columns), (False, rows)):
            if n > 1:
                folds, matrix = _line(basis, n)
                weights = matrix.astype(np.float32)
                stages.append(Stage(rows, columns, is_along_rows, folds, weights))
    return PlaneTransform(height, width, stages)


def _line(basis: Basis, n: int) -> tuple[int, Array]:
    """Return how often a line is folded, and the matrix of what remains."""
    if basis.is_wavelet:
        return 0, step_matrix(basis.name, n)
    matrix = dct_matrix(n)
    folded = np.zeros_like(matrix)
    folds = 0
    while n % 2 == 0:
        # Odd rows are odd functions: the differences alone, which lie mirrored.
        rows = slice(1 << folds, None, 2 << folds)
        folded[rows, n // 2 : n] = matrix[rows, : n // 2][:, ::-1]
        n //= 2
        folds += 1
    rows = slice(0, None, 1 << folds)
    folded[rows, :n] = matrix[rows, :n]
    return folds, folded
