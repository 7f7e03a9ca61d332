"""Energies of planes as a product of two short lists, and what follows of it.

Sums are in the order of samples and channels, and logarithms are told by comparing, so
every bit is settled.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST_ENERGY", "PlaneFit", "fit_planes", "half_units", "plane_weights"]

# Our choice: each sweep fits samples, then channels; three settle it.
_SWEEPS = 3
# In place of 0 in quotients of energies, and with the share of the largest the least to
# weigh by: reciprocals, times squares, stay in float32's range.
LEAST_ENERGY, _LEAST_SHARE = 1e-30, 1e-12
# In place of 0 where a logarithm is taken, near float64's smallest.
_TINY = 1e-300
# Half units are within this, our limit: 2**125 either way.
_LIMIT = 250
# Mantissas at which half units change: 2**-0.75 and 2**-0.25.
_CHANGES = 0.5946035575013605, 0.8408964152537145

Reals = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class PlaneFit:
    """The fit of energies (N, r).

    Parameters
    ----------
    a, u : ndarray (N,), (r,)
        Energies are about ``a[n] * u[k]``; the mean of a is about 1.
    samples, channels : ndarray (N,), (r,)
        Their half units, int64.
    order : ndarray (N * r,)
        int64: planes ``n * r + k`` by their half units, descending.
    weights : ndarray (N * r,)
        float32: of planes in their order, where frequencies are fitted.
    weighted : float
        Sum of weights times the energies that are fitted.
    """

    a: Reals
    u: Reals
    samples: Array
    channels: Array
    order: Array
    weights: npt.NDArray[np.float32]
    weighted: float


def half_units(energies: Reals) -> Array:
    """Return 2 * log2 of energies as integers (int64) within limits."""
    mantissas, exponents = np.frexp(np.maximum(energies, _TINY))
    units = 2 * exponents.astype(np.int64) - 2
    for change in _CHANGES:
        units += mantissas >= change
    return np.minimum(np.maximum(units, -_LIMIT), _LIMIT)


def plane_weights(energies: Reals, level: float) -> Reals:
    """Return what planes of such energies weigh where frequencies are fitted."""
    floor = max(level, _LEAST_SHARE * float(energies.max()), LEAST_ENERGY)
    weights: Reals = 1 / (energies + floor)
    return weights


def fit_planes(
    energies: Reals, num_positions: int, level: float, alike: bool
) -> PlaneFit:
    """Fit the energies of planes.

    Parameters
    ----------
    energies : ndarray (N, r)
        Of planes, float64, contiguous.
    num_positions : int
        What they are divided by.
    level : float
        Above 0: energies a position well below it do not matter.
    alike : bool
        Whether samples are taken for alike.
    """
    each = energies / num_positions
    a, u = np.ones(len(each)), _sums(each, 0) / len(each)
    for _ in range(_SWEEPS):
        for axis in (1, 0):
            model = np.multiply.outer(a, u)
            weights = 1 / (model + level)
            above, below = _sums(each * weights, axis), _sums(model * weights, axis)
            above, below = (np.maximum(x, LEAST_ENERGY) for x in (above, below))
            if axis:
                a = a * (above / below)
            else:
                u = u * (above / below)
    if alike:
        a = np.ones_like(a)
    samples, channels = half_units(a), half_units(u)
    order = np.argsort(-(samples[:, None] + channels).reshape(-1), kind="stable")
    of_planes = np.multiply.outer(a, u).reshape(-1)[order]
    of_all = plane_weights(of_planes, level)
    weighted = float(_sums(of_planes * of_all, 0))
    return PlaneFit(a, u, samples, channels, order, of_all.astype(np.float32), weighted)


def _sums(values: Reals, axis: int) -> Reals:
    """Return sums along an axis, one after the other."""
    sums: Reals = np.asarray(np.cumsum(values, axis=axis).take(-1, axis))
    return sums
