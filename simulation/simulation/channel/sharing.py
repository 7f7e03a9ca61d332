"""How a band is divided among devices that send at once (OFDMA)."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SHARINGS = ("equal", "proportional", "max-min")
# Newton's steps converge quadratically: 60 are far beyond what float64 can use.
_MOST_STEPS = 60
# Rising iterations that bring large SNRs near, where Newton would double at each step.
_FIXED_POINT_STEPS = 4
_TOLERANCE = 1e-12


def equal_hz(bandwidth_hz: float, num_devices: int) -> Floats:
    """Return equal parts of a band.

    With block fading this is also the proportional-fair schedule of devices that always
    have something to send: sum log(W_k e_k) is greatest at equal W_k.
    """
    return np.full(num_devices, bandwidth_hz / num_devices)


def proportional_hz(bandwidth_hz: float, load_bytes: Floats) -> Floats:
    """Return parts of a band in proportion to what each device has to carry."""
    total = load_bytes.sum()
    if not total > 0:
        return equal_hz(bandwidth_hz, len(load_bytes))
    return np.asarray(bandwidth_hz * load_bytes / total)


def max_min_fixed_hz(bandwidth_hz: float, efficiency: Floats) -> Floats:
    """Return parts that give all the same rate, where efficiency does not change.

    W_k is proportional to 1 / e_k. A device of efficiency 0 gets nothing.

    Parameters
    ----------
    bandwidth_hz : float
        The band.
    efficiency : ndarray, shape (N,)
        In bit/s/Hz, at least 0.
    """
    parts = np.zeros_like(efficiency)
    able = efficiency > 0
    parts[able] = 1 / efficiency[able]
    total = parts.sum()
    return bandwidth_hz * parts / total if total > 0 else parts


def max_min_power_hz(bandwidth_hz: float, snr_hz: Floats) -> Floats:
    """Return parts that give all the same rate, where all power is in a device's part.

    Solves r = W_k log2(1 + c_k / W_k) for all k with sum W_k = W, c_k = p_k g_k / N0.
    The unknown is the weakest device's SNR x = c / W in its part, between that of the
    whole band and that of an equal part, since the weakest gets the widest; regula
    falsi on it (the Illinois rule) outside, Newton for the others' SNR inside.

    Parameters
    ----------
    bandwidth_hz : float
        The band.
    snr_hz : ndarray, shape (N,)
        c_k, above 0: the band over which the signal is as strong as the noise.
    """
    weakest = int(np.argmin(snr_hz))
    weak_hz = float(snr_hz[weakest])

    def parts_at(log_snr: float) -> Floats:
        own = math.exp(log_snr)
        wanted = math.log1p(own) / own * (weak_hz / snr_hz)
        return snr_hz / np.where(snr_hz > weak_hz, _snr_for(wanted), own)

    def excess(log_snr: float) -> float:
        return math.log(parts_at(log_snr).sum() / bandwidth_hz)

    low = math.log(weak_hz / bandwidth_hz)
    high = low + math.log(len(snr_hz))
    parts = parts_at(_root(excess, low, high))
    return np.asarray(parts * (bandwidth_hz / parts.sum()))


def _snr_for(wanted: Floats) -> Floats:
    """Return x with ln(1 + x) / x = wanted, for wanted in (0, 1).

    The left side is convex and falling and lies above 1 - x / 2, so that 2 (1 - wanted)
    is below the root, from where Newton's steps rise to it.
    """
    x = np.maximum(2 * (1 - wanted), np.finfo(np.float64).tiny)
    for _ in range(_FIXED_POINT_STEPS):
        x = np.maximum(x, np.log1p(x) / wanted)
    for _ in range(_MOST_STEPS):
        log = np.log1p(x)
        slope = (x / (1 + x) - log) / x**2
        step = np.where(slope < 0, (wanted - log / x) / np.minimum(slope, -1e-300), 0.0)
        x = x + np.maximum(step, 0)
        if np.all(step <= _TOLERANCE * x):
            break
    return x


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a falling function is 0, between two ends of unlike sign."""
    at_low, at_high = function(low), function(high)
    side = 0
    for _ in range(_MOST_STEPS):
        if at_low <= 0 or at_high >= 0:
            return low if at_low <= 0 else high
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = function(middle)
        if abs(value) <= _TOLERANCE:
            return middle
        if value > 0:
            low, at_low = middle, value
            at_high, side = (at_high / 2 if side == 1 else at_high), 1
        else:
            high, at_high = middle, value
            at_low, side = (at_low / 2 if side == -1 else at_low), -1
    return (low + high) / 2
