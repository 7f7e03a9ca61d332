"""Find the step that meets a target, from what a dead zone does at a step."""

import math
from collections.abc import Callable

import torch

# Values are rounded after 0.1 step is taken off their magnitude: a dead zone of 1.2.
SHRINK = 0.1
_MOST_STEPS = 60


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
    goal = math.log(max(wanted, 1e-300))

    def height(log_x: float) -> float:
        return math.log(max(curve(math.exp(log_x)), 1e-300)) - goal

    first = x = math.log(start)
    y = height(x)
    low, high = -math.inf, math.inf
    y_low = y_high = 0.0
    for _ in range(_MOST_STEPS):
        if y <= 0:
            low, y_low = x, y
        else:
            high, y_high = x, y
        if abs(y) < close or high - low < 1e-4 or abs(x - first) > _MOST_STEPS:
            break
        if high == math.inf:
            x = low + max(0.05, min(-0.6 * y_low, 3.0))
        elif low == -math.inf:
            x = high - max(0.05, min(0.6 * y_high, 3.0))
        else:
            share = y_low / (y_low - y_high)
            x = low + min(max(share, 0.1), 0.9) * (high - low)
        y = height(x)
    return math.exp(x if abs(y) < close or low == -math.inf else low)
