"""What a quantization step would do, told by a sample of the coefficients."""

from functools import cached_property

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.codec.waterfill.solver import SHRINK

# Our choice: many times the coefficients that a distortion to a percent needs.
_SEARCH_SIZE = 2**15
# Of a step: what is larger has a level that is not zero.
_EDGE = 0.5 + SHRINK


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

    def num_levels(self, step: float) -> float:
        """Return about how many levels are not zero at a step."""
        kept = self._ascending.size - int(
            np.searchsorted(self._ascending, _EDGE * step)
        )
        return self.weight * kept

    def step_for(self, num_levels: float) -> float:
        """Return the step at which about so many levels are not zero."""
        kept = min(max(round(num_levels / self.weight), 1), self._ascending.size)
        return float(self._ascending[-kept]) / _EDGE

    @cached_property
    def _ascending(self) -> npt.NDArray[np.float32]:
        return np.sort(self.magnitudes)
