"""Coefficients to levels at one step, and the centroids of each class.

::

    c / step, 0.1 nearer to zero, rounded --> levels
    errors, in 1024ths of a step, by class --> centroids, distortion

Errors are summed as integers, so that the compiled loop, which goes class by class,
has the same sums.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels import Energies, kernels
from flwr_slfac.codec.waterfill.digits import Ints
from flwr_slfac.codec.waterfill.energies import NUM_CLASSES, classes_of
from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.codec.waterfill.solver import SHRINK

__all__ = ["CENTROID_UNIT", "Quantized", "quantize"]

# Centroids travel in 128ths of a step: our choice, a hundredth of a class's deviation.
CENTROID_UNIT = 128.0
# Our choice: finer by far than a distortion has to be told.
_ERROR_UNIT = 1024

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Quantized:
    """Integers of all coefficients, and what they mean.

    Parameters
    ----------
    levels : ndarray (S, N * r)
        Signed numbers of steps.
    step : float
        As float32 holds it.
    shifts : ndarray (NUM_CLASSES,)
        What to take off magnitudes, by class, in 128ths of a step.
    distortion : float
        Squared error, of the normalized tensor.
    num_levels : int
        How many are not zero.
    gain : float, optional
        What clamping at zero leaves of the distortion, if that is known.
    near_zero : float
        Share of values near zero, if so.
    """

    levels: Ints
    step: float
    shifts: Ints
    distortion: float
    num_levels: int
    gain: float | None = None
    near_zero: float = 0.0


def quantize(plan: Plan, step: float) -> Quantized:
    """Quantize all coefficients; the distortion is that of the centroids.

    Parameters
    ----------
    plan : Plan
        What is to be quantized.
    step : float
        The step; what float32 transforms can tell apart is the least that is used.
    """
    step = float(np.float32(max(step, plan.least_step)))
    limit = plan.largest / step + 1
    wide = np.int16 if limit < 32767 else np.int32
    dtype = np.int8 if limit < 127 else wide
    coefficients = np.ascontiguousarray(plan.coefficients.cpu().numpy())
    energies, inverse = plan.energies_at(step), float(np.float32(1 / step))
    loops = kernels().frames
    if loops is None:
        levels, sums = _levels(coefficients, energies, inverse)
        levels = levels.astype(dtype)
    else:
        levels, sums = loops.quantize(coefficients, energies, inverse, np.dtype(dtype))
    shifts, error = _centroids(sums)
    distortion = error * step**2 + plan.left_out
    return Quantized(levels, step, shifts, distortion, int(sums[:, 0].sum()))


def _centroids(sums: Ints) -> tuple[Ints, float]:
    """Return the centroids of classes (60,), and the squared error that they leave.

    Parameters
    ----------
    sums : ndarray (60, 3)
        See the extension's `quantize`.
    """
    num, along = sums[:, 0], sums[:, 1]
    units = np.rint(along / np.maximum(num, 1) / (_ERROR_UNIT / CENTROID_UNIT))
    most = CENTROID_UNIT
    shifts = np.minimum(np.maximum(units, -most), most).astype(np.int64)
    # In whole numbers: of errors in their units, that of a shift is so many.
    fine = shifts * int(_ERROR_UNIT / CENTROID_UNIT)
    saved = 2 * int(fine @ along) - int(fine * fine @ num)
    return shifts, (int(sums[:, 2].sum()) - saved) / _ERROR_UNIT**2


def _levels(
    coefficients: Floats, energies: Energies, inverse: float
) -> tuple[Ints, Ints]:
    """Return levels, and sums by class (60, 3): see the extension's `quantize`."""
    scaled = coefficients * np.float32(inverse)
    shrink = np.float32(SHRINK)
    levels = scaled - np.clip(scaled, -shrink, shrink)
    np.rint(levels, out=levels)
    errors = np.subtract(levels, scaled, out=scaled)
    errors *= np.float32(_ERROR_UNIT)
    np.rint(errors, out=errors)
    planes = (energies.samples[:, None] + energies.channels).reshape(-1)
    # Planes are in order of energy, descending.
    of_columns = -np.sort(-planes)
    of_rows = energies.frequencies[energies.groups]
    classes = classes_of(of_rows[:, None] + of_columns, energies.offset).reshape(-1)
    signs, errors = np.sign(levels).reshape(-1), errors.reshape(-1)
    # Most levels are zero.
    (some,) = signs.nonzero()
    sums = [
        np.bincount(classes[some], minlength=NUM_CLASSES),
        np.bincount(classes[some], signs[some] * errors[some], NUM_CLASSES),
        np.bincount(classes, np.square(errors, out=errors), NUM_CLASSES),
    ]
    # Sums of whole numbers, exact in float64.
    return levels.astype(np.int32), np.stack(sums, 1).astype(np.int64)
