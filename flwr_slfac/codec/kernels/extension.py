"""The compiled kernels with the parameters of the reference: results are allocated."""

from typing import Any

import numpy as np
import torch

from flwr_slfac.codec.kernels.fit import PlaneFit
from flwr_slfac.codec.kernels.planes import LANES
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
