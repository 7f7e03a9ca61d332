"""Code at the step that meets a number of bits, all headers counted.

Each pass codes the whole tensor, and what it is off by tells the next step. Where most
levels are zero, bits go with a power of how many are not, and the magnitudes tell at
which step that is so. In a stream as many levels are not zero as the bits allow, going
by how many bits each took in the frame before: then one pass is most often enough.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from flwr_slfac.codec.waterfill.levels import Quantized, quantize
from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.codec.waterfill.sample import CoefficientSample

# Of the frame around the sections of a map: 9 fixed, 9 of the id, 16 of the shape, 4 of
# the checksum; each section's length is 4 more.
_FRAME_BYTES, _LENGTH_BYTES = 38, 4
# How near is near enough, and in a stream, where what one frame is off by the next ones
# are off the other way; and the passes to come so near, our choice.
_CLOSE, _CLOSE_IN_STREAM, _MOST_PASSES = 0.01, 0.03, 8
# Of log bits against -log step, while few levels are zero, and within which limits.
_SLOPE, _LEAST_SLOPE, _MOST_SLOPE = 1.3, 0.1, 4.0
# Of log step, the most that one pass may tell.
_MOST_MOVE = 4.0
# Of log bits against log levels, while most are zero: measured on captured tensors, and
# within which limits two passes may tell another.
_POWER, _LEAST_POWER, _MOST_POWER = 0.75, 0.5, 1.2
# Share of levels from which on bits go with the step instead: our choice.
_DENSE = 0.5
# Of a level in frames of mostly zeros, before one is coded: 4.5 to 8 on the same.
_BITS_A_LEVEL = 5.0
# How often levels are counted before they are coded: our choice.
_MOST_COUNTS = 3
# With fewer levels headers may take the most; so much over these, our choice.
_FEW_LEVELS, _ROOM = 256, 1.1

Write = Callable[[Quantized], Sequence[bytes]]


@dataclass(frozen=True, eq=False)
class Coded:
    """What a plan was coded to.

    Parameters
    ----------
    plan : Plan
        What was settled before the step.
    quantized : Quantized
        The integers.
    sections : list of bytes
        Of the frame.
    """

    plan: Plan
    quantized: Quantized
    sections: Sequence[bytes]

    @property
    def num_bits(self) -> int:
        """Bits of the whole frame, of a map."""
        num_bytes = sum(map(len, self.sections)) + _LENGTH_BYTES * len(self.sections)
        return 8 * (num_bytes + _FRAME_BYTES)


def code_at_rate(plan: Plan, num_bits: float, write: Write) -> Coded:
    """Code a plan at the step that comes nearest to a number of bits.

    Parameters
    ----------
    plan : Plan
        What is to be coded.
    num_bits : float
        Of the whole frame, above 0.
    write : callable
        Returns the sections of a quantized tensor.
    """
    close = _CLOSE_IN_STREAM if plan.is_kept else _CLOSE
    levels = _Levels(plan)
    quantized = levels.first(num_bits)
    coded = Coded(plan, quantized, write(quantized))
    if coded.num_bits > num_bits and coded.quantized.num_levels < _FEW_LEVELS:
        # Headers take some, whatever the step.
        coarsest = quantize(plan, plan.largest)
        least = Coded(plan, coarsest, write(coarsest)).num_bits
        num_bits = max(num_bits, _ROOM * least)
    low, high = 0.0, math.inf
    best, found, before = math.inf, coded, None
    for _ in range(_MOST_PASSES):
        step, over = coded.quantized.step, math.log(coded.num_bits / num_bits)
        if abs(over) < best:
            best, found = abs(over), coded
        if abs(over) < close or (step <= plan.least_step and over < 0):
            break
        low, high = (step, high) if over > 0 else (low, step)
        quantized = levels.after(coded, before, over)
        if not low < quantized.step < high:
            quantized = quantize(plan, _between(low, high, step))
        before = coded
        coded = Coded(plan, quantized, write(quantized))
    return found


class _Levels:
    """Quantizes a plan to a number of levels that are not zero.

    Parameters
    ----------
    plan : Plan
        What is to be quantized.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._dense = _DENSE * plan.coefficients.numel()

    @cached_property
    def _sample(self) -> CoefficientSample:
        return CoefficientSample(self._plan)

    def first(self, num_bits: float) -> Quantized:
        """Quantize to as many as bits allow, going by the frame before if there is one.

        Where these would be most, to the plan's step.
        """
        plan = self._plan
        if plan.is_kept:
            start = quantize(plan, plan.step)
            wanted = num_bits / (plan.bits_a_level or math.inf)
            return self._to(wanted, start) if 0 < wanted < self._dense else start
        wanted = num_bits / _BITS_A_LEVEL
        step = self._sample.step_for(wanted) if wanted < self._dense else plan.step
        return quantize(plan, step)

    def after(self, coded: Coded, before: Coded | None, over: float) -> Quantized:
        """Quantize anew after a frame whose log bits are off by so much."""
        last = coded.quantized
        wanted = last.num_levels * math.exp(-over / _power(coded, before))
        if 0 < wanted < self._dense:
            return self._to(wanted, last)
        move = over / _slope(coded, before)
        move = min(max(move, -_MOST_MOVE), _MOST_MOVE)
        return quantize(self._plan, last.step * math.exp(move))

    def _to(self, wanted: float, start: Quantized) -> Quantized:
        """Quantize to about so many; the sample is corrected by what it was off."""
        quantized = start
        for _ in range(_MOST_COUNTS):
            num = quantized.num_levels
            if abs(num / wanted - 1) < _CLOSE:
                break
            off = self._sample.num_levels(quantized.step) / num if num else 1.0
            step = self._sample.step_for(wanted * (off or 1.0))
            if step == quantized.step:
                break
            quantized = quantize(self._plan, step)
        return quantized


def _between(low: float, high: float, step: float) -> float:
    """Return a step within a bracket whose last step did not serve."""
    if high == math.inf:
        return 2 * step
    return math.sqrt(low * high) if low else step / 2


def _power(coded: Coded, before: Coded | None) -> float:
    """Return by what power of the number of levels bits grow."""
    power = _POWER
    if before is not None:
        levels, bits = _ratios(coded, before)
        # Frames that are far apart tell little of what is between.
        if 0 < abs(levels) < 1:
            power = bits / levels
    return min(max(power, _LEAST_POWER), _MOST_POWER)


def _ratios(coded: Coded, before: Coded) -> tuple[float, float]:
    """Return logarithms of how many times the levels and bits of one before."""
    one, other = max(coded.quantized.num_levels, 1), max(before.quantized.num_levels, 1)
    return math.log(one / other), math.log(coded.num_bits / before.num_bits)


def _slope(coded: Coded, before: Coded | None) -> float:
    """Return by what share log bits fall as log step rises."""
    step = coded.quantized.step
    if before is not None and step != before.quantized.step:
        moved = math.log(step / before.quantized.step)
        slope = -_ratios(coded, before)[1] / moved
    else:
        # Where no level is zero, a halved step takes a bit more of each.
        num_levels = coded.quantized.num_levels
        dense = num_levels / coded.quantized.levels.size
        bits_a_level = coded.num_bits / max(num_levels, 1)
        slope = dense / (bits_a_level * math.log(2)) + (1 - dense) * _SLOPE
    return min(max(slope, _LEAST_SLOPE), _MOST_SLOPE)
