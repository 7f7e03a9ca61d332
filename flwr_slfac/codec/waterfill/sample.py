"""What a quantization step would do, told by a sample of the coefficients."""

from functools import cached_property

import numpy as np

from flwr_slfac.codec.waterfill.digits import Ints
from flwr_slfac.codec.waterfill.energies import NUM_CLASSES, class_offset, classes_of
from flwr_slfac.codec.waterfill.model import ideal_bits
from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.codec.waterfill.solver import SHRINK

# Our choice: many times the coefficients that a distortion to a percent needs.
_SEARCH_SIZE = 2**15
# Magnitudes below 2**6 are counted one by one, larger ones by octave and five bits, up
# to a table of 256 (our choice): the rest is as good as uniform.
_OWN_BITS, _NUM_KEYS = 6, 256


class CoefficientSample:
    """A sample of coefficients, to see what a step would do without coding.

    Parameters
    ----------
    plan : Plan
        What is to be quantized.

    Attributes
    ----------
    magnitudes : ndarray (n,)
        Of the sampled coefficients.
    weight : float
        How many coefficients each of them stands for.
    least_step : float
        The finest step; what is asked of a finer one is told of this.
    """

    def __init__(self, plan: Plan) -> None:
        total = plan.coefficients.numel()
        # Odd, so that it meets all samples where their number is a power of two.
        stride = max(1, total // _SEARCH_SIZE) | 1 if total > _SEARCH_SIZE else 1
        flat = plan.coefficients.reshape(-1)[::stride]
        self.magnitudes = flat.abs().cpu().numpy()
        self._plan, self._stride = plan, stride
        self.weight = total / max(self.magnitudes.size, 1)
        self.least_step = plan.least_step

    def distortion(self, step: float) -> float:
        """Return the squared error of all coefficients at a step."""
        step = max(step, self.least_step)
        scaled = self.magnitudes * np.float32(1 / step)
        levels = np.floor(scaled + np.float32(0.5 - SHRINK))
        error = levels - scaled
        inside = levels > 0
        num = int(np.count_nonzero(inside))
        total = float(np.dot(error, error))
        if num:
            total -= float(np.dot(error, inside)) ** 2 / num
        return max(total, 0.0) * step**2 * self.weight

    def bits(self, step: float) -> float:
        """Return the bits of all coefficients at a step."""
        step = max(step, self.least_step)
        scaled = self.magnitudes * np.float32(1 / step)
        levels = np.floor(scaled + np.float32(0.5 - SHRINK))
        # Beyond the table a magnitude is its octave and uniform bits.
        octave = np.maximum(np.frexp(levels)[1] - _OWN_BITS, 0)
        key = levels / np.exp2(octave) + 2 ** (_OWN_BITS - 1) * octave
        key = np.minimum(key, _NUM_KEYS - 1)
        classes = self._classes(step)
        counts = np.bincount(
            classes * _NUM_KEYS + key.astype(np.int64),
            minlength=NUM_CLASSES * _NUM_KEYS,
        ).reshape(NUM_CLASSES, _NUM_KEYS)
        total = sum(ideal_bits(row.astype(np.float64)) for row in counts if row.any())
        return (total + float(octave.sum()) + float((levels > 0).sum())) * self.weight

    @cached_property
    def _energies(self) -> Ints:
        """Half units of energy; few targets ask for them."""
        positions, planes = self._plan.energies
        at = np.arange(0, self._plan.coefficients.numel(), self._stride)
        found: Ints = positions[at // len(planes)] + planes[at % len(planes)]
        return found

    def _classes(self, step: float) -> Ints:
        return classes_of(self._energies, class_offset(step))
