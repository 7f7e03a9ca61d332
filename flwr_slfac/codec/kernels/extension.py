"""The compiled kernels with the parameters of the reference: results are allocated."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from flwr_slfac.codec.kernels.classes import ClassGrid
from flwr_slfac.codec.kernels.fit import PlaneFit
from flwr_slfac.codec.kernels.planes import LANES
from flwr_slfac.codec.kernels.rans import NUM_SYMBOLS
from flwr_slfac.codec.kernels.scratch import scratch
from flwr_slfac.codec.kernels.stages import LONGEST_LINE, PlaneTransform


class Extension:
    """Results of the extension's functions, allocated.

    Parameters
    ----------
    compiled : module
        The extension.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def pack(
        self, values: Any, limit: int, per_symbol: int, is_signed: bool
    ) -> tuple[Any, Any, int]:
        """Cut digits, see `digits.pack`."""
        values = np.ascontiguousarray(values)
        symbols = np.empty(-(-values.size // per_symbol), np.uint8)
        counts = np.empty(NUM_SYMBOLS, np.int64)
        saturated = self._compiled.pack_digits(
            values, values.itemsize, limit, per_symbol, is_signed, symbols, counts
        )
        return symbols, counts, saturated

    def unpack(
        self,
        symbols: Any,
        num_values: int,
        limit: int,
        per_symbol: int,
        is_signed: bool,
    ) -> tuple[Any, int]:
        """Undo `pack`, see `digits.unpack`."""
        values = np.empty(num_values, np.int8)
        saturated = self._compiled.unpack_digits(
            symbols, limit, per_symbol, is_signed, values
        )
        return values, saturated

    def split(self, matrix: Any, grid: ClassGrid) -> Any:
        """Split by classes, see `classes.split`."""
        return _move(
            self._compiled.split, matrix, grid, np.empty(matrix.size, matrix.dtype)
        )

    def join(self, values: Any, grid: ClassGrid) -> Any:
        """Join classes, see `classes.join`."""
        return _move(
            self._compiled.join, values, grid, np.empty(grid.shape, values.dtype)
        )

    def to_values(self, levels: Any, step: float, taken: float, out: Any) -> None:
        """Bring levels to their values, see `models.to_values`."""
        levels = np.ascontiguousarray(levels)
        self._compiled.to_values(levels, levels.itemsize, step, taken, out)

    def fit_planes(
        self, energies: Any, num_positions: int, level: float, alike: bool
    ) -> PlaneFit:
        """Fit the energies of planes, see `fit.fit_planes`."""
        num_samples, num_channels = energies.shape
        a, u = np.empty(num_samples), np.empty(num_channels)
        samples = np.empty(num_samples, np.int64)
        channels = np.empty(num_channels, np.int64)
        order = np.empty(energies.size, np.int64)
        weights = np.empty(energies.size, np.float32)
        found = a, u, samples, channels, order, weights
        weighted = self._compiled.fit_planes(
            energies, num_positions, level, alike, *found
        )
        return PlaneFit(*found, weighted)

    def plane_energies(self, planes: Any) -> Any:
        """Return sums of squares, see `planes.energies`."""
        energies = np.empty(len(planes))
        self._compiled.plane_energies(planes, planes.shape[1], energies)
        return energies

    def forward_planes(
        self,
        planes: Any,
        index: Any,
        transform: PlaneTransform,
        coeffs: Any,
        weights: Any = None,
    ) -> tuple[Any, Any]:
        """Transform planes, see `planes.forward`."""
        room = _tile_room(transform)
        sums, ends = np.empty(len(coeffs)), np.empty(2, np.float32)
        told = np.empty(0, np.float32) if weights is None else weights
        stages = transform.packed
        self._compiled.forward_planes(
            planes, index, *stages, told, room, coeffs, sums, ends
        )
        return sums, ends

    def plane_spectra(
        self, planes: Any, transform: PlaneTransform, scales: Any, result: Any
    ) -> None:
        """Transform planes to scaled coefficients, see `planes.spectra`."""
        room, stages = _tile_room(transform), transform.packed
        self._compiled.plane_spectra(planes, *stages, scales, room, result)

    def inverse_planes(
        self,
        coeffs: Any,
        index: Any,
        transform: PlaneTransform,
        planes: Any,
        clamps: bool = False,
    ) -> None:
        """Undo `forward_planes`, see `planes.inverse`."""
        room, stages = _tile_room(transform), transform.packed_inverse
        self._compiled.inverse_planes(coeffs, index, *stages, clamps, room, planes)


def _tile_room(transform: PlaneTransform) -> Any:
    """Return room for a tile, a line and what is told of each place."""
    height, width = transform.height, transform.width
    floats = LANES * (height * (width + 1) + height * width + LONGEST_LINE)
    return scratch("tile", (floats,), torch.float32).numpy()


def _move(work: Callable[..., None], source: Any, grid: ClassGrid, target: Any) -> Any:
    source = np.ascontiguousarray(source)
    lists = (grid.order, grid.rows, grid.starts, grid.runs)
    work(source, source.itemsize, *lists, grid.offset, grid.num_classes, target)
    return target
