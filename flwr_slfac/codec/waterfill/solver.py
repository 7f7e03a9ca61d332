"""Find the step that meets a target; what a dead zone loses at a step."""

import math
from collections.abc import Callable

import torch

from flwr_slfac.codec.waterfill.level import TINY

# Values are rounded after 0.1 step is taken off their magnitude: a dead zone of 1.2,
# our choice between plain rounding and wider zones, which lose more than they save.
SHRINK = 0.1
# Our choice: far more evaluations than any curve here takes, and as far in log x as the
# answer may lie from the guess.
_MOST_STEPS = 60
# Logarithms of x that are nearer than this are taken for equal.
_SAME = 1e-4
# Outside of a bracket log x moves by this share of what log y is off, within limits: a
# distortion goes with step**1 to step**2.
_SLOPE, _LEAST_MOVE, _MOST_MOVE = 0.6, 0.05, 3.0
_LEAST_GAIN = 0.1
# Of a bracket, what regula falsi may take off at a time: neither end gets stuck.
_LEAST_SHARE = 0.1


def clamping_gain(before: float, after: float) -> float:
    """Return what clamping at zero leaves of a squared error, from it and what is left.

    At least a tenth, so that a step never grows beyond reason.
    """
    return min(1.0, max(after / before, _LEAST_GAIN)) if before > 0 else 1.0


def dead_zone_error(magnitudes: torch.Tensor, step: float) -> float:
    """Return the squared error of magnitudes, without reconstruction points."""
    scaled = magnitudes * (1 / step)
    error = (scaled + (0.5 - SHRINK)).floor_().sub_(scaled)
    return float(error.square_().sum()) * step**2


def solve(
    curve: Callable[[float], float], wanted: float, start: float, close: float = 2e-3
) -> float:
    """Return x with ``curve(x) == wanted`` for a rising curve of positive numbers.

    Parameters
    ----------
    curve : callable
        May be flat or jump: the result is then at the jump, below it.
    wanted : float
        Above 0.
    start : float
        A first guess, above 0.
    close : float
        How near in relative terms is near enough.
    """
    goal = math.log(max(wanted, TINY))

    def log_excess(log_x: float) -> float:
        return math.log(max(curve(math.exp(log_x)), TINY)) - goal

    first = x = math.log(start)
    y = log_excess(x)
    low, high = -math.inf, math.inf
    y_low = y_high = 0.0
    for _ in range(_MOST_STEPS):
        if y <= 0:
            low, y_low = x, y
        else:
            high, y_high = x, y
        if abs(y) < close or high - low < _SAME or abs(x - first) > _MOST_STEPS:
            break
        if high == math.inf:
            x = low + max(_LEAST_MOVE, min(-_SLOPE * y_low, _MOST_MOVE))
        elif low == -math.inf:
            x = high - max(_LEAST_MOVE, min(_SLOPE * y_high, _MOST_MOVE))
        else:
            share = y_low / (y_low - y_high)
            x = low + min(max(share, _LEAST_SHARE), 1 - _LEAST_SHARE) * (high - low)
        y = log_excess(x)
    return math.exp(x if abs(y) < close or low == -math.inf else low)
