"""Code at the step that meets a number of bits, all headers counted.

Each pass codes the whole tensor, and what it is off by tells the next step. In a stream
the first step is that by which as many levels are not zero as the bits allow, going by
how many bits each took in the frame before: then one pass is most often enough.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr_slfac.codec.waterfill.levels import Quantized, quantize
from flwr_slfac.codec.waterfill.plan import Plan

# Of the frame around the sections of a map: 9 fixed, 9 of the id, 16 of the shape, 4 of
# the checksum; each section's length is 4 more.
_FRAME_BYTES, _LENGTH_BYTES = 38, 4
# How near is near enough, and in a stream, where what one frame is off by the next ones
# are off the other way; and the passes to come so near, our choice.
_CLOSE, _CLOSE_IN_STREAM, _MOST_PASSES = 0.01, 0.03, 8
# Of log bits against -log step: while most levels are zero, and within which limits.
_SLOPE, _LEAST_SLOPE, _MOST_SLOPE = 1.3, 0.1, 4.0
# Of log step, the most that one pass may tell.
_MOST_MOVE = 4.0
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
    quantized = _first(plan, num_bits)
    coded = Coded(plan, quantized, write(quantized))
    if coded.num_bits > num_bits and coded.quantized.num_levels < _FEW_LEVELS:
        # Headers take some, whatever the step.
        num_bits = max(num_bits, _ROOM * _coded(plan, plan.largest, write).num_bits)
    low, high = 0.0, math.inf
    best, found, before = math.inf, coded, None
    for _ in range(_MOST_PASSES):
        step, over = coded.quantized.step, math.log(coded.num_bits / num_bits)
        if abs(over) < best:
            best, found = abs(over), coded
        if abs(over) < close or (step <= plan.least_step and over < 0):
            break
        low, high = (step, high) if over > 0 else (low, step)
        here = math.log(step), over
        move = over / _slope(coded, here, before)
        step *= math.exp(min(max(move, -_MOST_MOVE), _MOST_MOVE))
        if not low < step < high:
            step = math.sqrt(low * high)
        before = here
        coded = _coded(plan, step, write)
    return found


def _coded(plan: Plan, step: float, write: Write) -> Coded:
    quantized = quantize(plan, step)
    return Coded(plan, quantized, write(quantized))


def _slope(
    coded: Coded, here: tuple[float, float], before: tuple[float, float] | None
) -> float:
    """Return by what share log bits fall as log step rises."""
    if before is not None and here[0] != before[0]:
        slope = (before[1] - here[1]) / (here[0] - before[0])
    else:
        # Where no level is zero, a halved step takes a bit more of each.
        num_levels = coded.quantized.num_levels
        dense = num_levels / coded.quantized.levels.size
        bits_a_level = coded.num_bits / max(num_levels, 1)
        slope = dense / (bits_a_level * math.log(2)) + (1 - dense) * _SLOPE
    return min(max(slope, _LEAST_SLOPE), _MOST_SLOPE)


def _first(plan: Plan, num_bits: float) -> Quantized:
    """Quantize to as many levels as the frame before had for the bits."""
    quantized = quantize(plan, plan.step)
    if not plan.is_kept or plan.bits_a_level <= 0:
        return quantized
    for _ in range(_MOST_PASSES):
        over = quantized.num_levels * plan.bits_a_level / num_bits
        if abs(over - 1) < _CLOSE or over == 0:
            break
        move = math.log(over) / _SLOPE
        step = quantized.step * math.exp(min(max(move, -_MOST_MOVE), _MOST_MOVE))
        quantized = quantize(plan, step)
    return quantized
