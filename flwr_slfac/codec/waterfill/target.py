"""What the quantization step has to meet."""

import enum
import math
from dataclasses import dataclass, replace

from flwr_slfac.codec.waterfill.level import TINY, Reals, gaussian_bits, water_level

# 40 bits a value, more than any target, lie between the largest variance and 2**-80.
_OCTAVES = 80.0
# Halvings of it: the level is found to a millionth of an octave.
_NUM_HALVINGS = 30
# Our choice: an octave of step, which is a factor of 4 in variance.
_DEEPER = 4
# What a number of bits may make of the distortion beside it in small planes, of which a
# rate that suits maps would leave little, and of the energy in any: our choice.
_MOST_COARSER, _SMALL, _MOST_LOST = 10.0, 64, 0.75


class Decider(enum.IntEnum):
    """What decides a step: the distortion, the bits, or the most that bits may cost."""

    ERROR = 0
    BITS = 1
    MOST_ERROR = 2


_ALL = tuple(Decider)


@dataclass(frozen=True)
class Target:
    """What the step has to meet, in units of the normalized tensor.

    Of distortion, number of bits and step, one is given; or a distortion and the bits
    that it may take, unless less would be left of the tensor than `most_distortion`.

    Parameters
    ----------
    energy : float
        Sum of squares of the tensor, above 0.
    distortion : float, optional
        Squared error.
    num_bits : float, optional
        Of the whole frame.
    step : float, optional
        Quantization step.
    num_positions : int
        Of a plane.
    """

    energy: float
    distortion: float | None = None
    num_bits: float | None = None
    step: float | None = None
    num_positions: int = 1

    @property
    def most_distortion(self) -> float:
        """What bits beside a distortion may make of it."""
        wanted = self.distortion or 0.0
        coarsest = _MOST_COARSER * wanted if self.num_positions <= _SMALL else math.inf
        return max(wanted, min(coarsest, _MOST_LOST * self.energy))

    @property
    def likely_limit(self) -> Decider:
        """What decides where the distortion takes more than the bits beside it."""
        if self.distortion is None or self.num_positions > _SMALL:
            return Decider.BITS
        return Decider.MOST_ERROR

    @property
    def deciders(self) -> tuple[Decider, ...]:
        """What may decide; the first one is tried first where nothing is known."""
        if self.num_bits is None:
            return (Decider.ERROR,)
        return (Decider.BITS,) if self.distortion is None else _ALL

    def of(self, decider: Decider) -> "Target":
        """Return the target of one number, of what may decide."""
        if len(self.deciders) == 1:
            return self
        if decider is Decider.BITS:
            return replace(self, distortion=None)
        most = self.distortion if decider is Decider.ERROR else self.most_distortion
        return replace(self, num_bits=None, distortion=most)

    def max_left_out(self, num_values: int) -> float:
        """Return the squared error that rows left out of a basis may cause."""
        if self.distortion is not None:
            return self.distortion / 2
        if self.step is not None:
            return self.step**2 / 12 * num_values / 2
        return self.energy

    def water_level(self, variances: Reals, num_each: int) -> float:
        """Return the water level to expect, before a spatial basis.

        Parameters
        ----------
        variances : ndarray (C,)
            Of the channels.
        num_each : int
            Values of each.
        """
        if self.step is not None:
            return self.step**2 / 12
        if self.distortion is not None:
            return water_level(variances, self.distortion / num_each)
        wanted = (self.num_bits or 0.0) / num_each
        high = math.log2(max(float(variances.max()), TINY))
        low = high - _OCTAVES
        for _ in range(_NUM_HALVINGS):
            middle = (low + high) / 2
            if gaussian_bits(variances, 2.0**middle) > wanted:
                low = middle
            else:
                high = middle
        # The spatial basis makes these bits buy more: look deeper than this.
        return float(2.0**high / _DEEPER)
