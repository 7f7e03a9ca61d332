"""How much weaker a signal is after a distance, by the models of 3GPP."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_slfac import SettingError

Floats = NDArray[np.float64]
_MACRO_CARRIER_HZ = 2e9
LIGHT_M_PER_S = 299_792_458.0
# Height of a user's device; TR 38.901, Table 7.2-1, ground floor.
DEVICE_HEIGHT_M = 1.5
# The effective height of what surrounds it; TR 38.901, note 1 of Table 7.4.1-1.
_CLUTTER_HEIGHT_M = 1.0
_UMI_HEIGHT_M, _UMA_HEIGHT_M = 10.0, 25.0


def macro_db(distance_m: Floats, carrier_hz: float = 2e9) -> Floats:
    """Return 128.1 + 37.6 log10(d / km): 3GPP TR 36.814, Table A.2.1.1.2-3, at 2 GHz.

    Parameters
    ----------
    distance_m : ndarray, shape (N,)
        Above 0; the model is meant for 35 m and more.
    carrier_hz : float
        Must be 2 GHz, the only carrier that the formula is for.

    Raises
    ------
    SettingError
        If the carrier is another.

    Examples
    --------
    >>> float(macro_db(np.array([1000.0]))[0])
    128.1
    """
    require_macro_carrier(carrier_hz)
    return 128.1 + 37.6 * np.log10(distance_m / 1000)


def require_macro_carrier(carrier_hz: float) -> None:
    """Raise SettingError unless the carrier is the one that `macro_db` is for."""
    if carrier_hz != _MACRO_CARRIER_HZ:
        raise SettingError(
            f"carrier_hz is {carrier_hz:g}, and path_loss 'macro' is for 2e9 only; use "
            "'uma' or 'umi'"
        )


def free_space_db(distance_m: Floats, carrier_hz: float) -> Floats:
    """Return 20 log10(4 pi d f / c): Friis' formula, as in ITU-R P.525.

    Examples
    --------
    >>> round(float(free_space_db(np.array([1000.0]), 1e9)[0]), 2)
    92.45
    """
    return 20 * np.log10(4 * math.pi * distance_m * carrier_hz / LIGHT_M_PER_S)


def umi_los_db(distance_m: Floats, carrier_hz: float) -> Floats:
    """Return the loss of a street canyon in line of sight: TR 38.901, Table 7.4.1-1.

    32.4 + 21 log10(d3D) + 20 log10(f / GHz) up to the breakpoint, then
    32.4 + 40 log10(d3D) + 20 log10(f / GHz) - 9.5 log10(d_BP^2 + (h_BS - h_UT)^2).

    Parameters
    ----------
    distance_m : ndarray, shape (N,)
        On the ground, 10 to 5,000 m.
    carrier_hz : float
        0.5 to 100 GHz.
    """
    return _two_slopes(distance_m, carrier_hz, _UMI_HEIGHT_M, (32.4, 21.0, 9.5))


def umi_nlos_db(distance_m: Floats, carrier_hz: float) -> Floats:
    """Return the loss of a street canyon without line of sight: TR 38.901, 7.4.1-1.

    The greater of `umi_los_db` and
    35.3 log10(d3D) + 22.4 + 21.3 log10(f / GHz) - 0.3 (h_UT - 1.5).
    """
    d3 = _slant_m(distance_m, _UMI_HEIGHT_M)
    lossy = 35.3 * np.log10(d3) + 22.4 + 21.3 * math.log10(carrier_hz / 1e9)
    return np.maximum(umi_los_db(distance_m, carrier_hz), lossy)


def uma_los_db(distance_m: Floats, carrier_hz: float) -> Floats:
    """Return the loss of an urban macro cell in line of sight: TR 38.901, 7.4.1-1.

    28 + 22 log10(d3D) + 20 log10(f / GHz) up to the breakpoint, then
    28 + 40 log10(d3D) + 20 log10(f / GHz) - 9 log10(d_BP^2 + (h_BS - h_UT)^2).
    """
    return _two_slopes(distance_m, carrier_hz, _UMA_HEIGHT_M, (28.0, 22.0, 9.0))


def uma_nlos_db(distance_m: Floats, carrier_hz: float) -> Floats:
    """Return the loss of an urban macro cell without line of sight: TR 38.901, 7.4.1-1.

    The greater of `uma_los_db` and
    13.54 + 39.08 log10(d3D) + 20 log10(f / GHz) - 0.6 (h_UT - 1.5).
    """
    d3 = _slant_m(distance_m, _UMA_HEIGHT_M)
    lossy = 13.54 + 39.08 * np.log10(d3) + 20 * math.log10(carrier_hz / 1e9)
    return np.maximum(uma_los_db(distance_m, carrier_hz), lossy)


def umi_los_probability(distance_m: Floats) -> Floats:
    """Return the probability of line of sight in a street canyon: TR 38.901, 7.4.2-1.

    1 up to 18 m, then 18/d + exp(-d/36) (1 - 18/d).
    """
    return _los_probability(distance_m, 36.0)


def uma_los_probability(distance_m: Floats) -> Floats:
    """Return the same of an urban macro cell, devices up to 13 m: TR 38.901, 7.4.2-1.

    1 up to 18 m, then 18/d + exp(-d/63) (1 - 18/d).
    """
    return _los_probability(distance_m, 63.0)


def _los_probability(distance_m: Floats, decay_m: float) -> Floats:
    near = 18.0 / np.maximum(distance_m, 18.0)
    return near + np.exp(-distance_m / decay_m) * (1 - near)


def _slant_m(distance_m: Floats, height_m: float) -> Floats:
    return np.hypot(distance_m, height_m - DEVICE_HEIGHT_M)


def _two_slopes(
    distance_m: Floats,
    carrier_hz: float,
    height_m: float,
    terms: tuple[float, float, float],
) -> Floats:
    constant, slope, bend = terms
    base, device = height_m - _CLUTTER_HEIGHT_M, DEVICE_HEIGHT_M - _CLUTTER_HEIGHT_M
    breakpoint_m = 4 * base * device * carrier_hz / LIGHT_M_PER_S
    d3 = np.log10(_slant_m(distance_m, height_m))
    start = constant + 20 * math.log10(carrier_hz / 1e9)
    corner = breakpoint_m**2 + (height_m - DEVICE_HEIGHT_M) ** 2
    far = start + 40 * d3 - bend * math.log10(corner)
    return np.where(distance_m <= breakpoint_m, start + slope * d3, far)


@dataclass(frozen=True)
class PathLoss:
    """A model of path loss: its two states, and how likely the clear one is.

    Parameters
    ----------
    los_db, nlos_db : callable
        Loss in dB of (distances in m, carrier in Hz).
    los_probability : callable or None
        Of distances; None if both states are one.
    """

    los_db: Callable[[Floats, float], Floats]
    nlos_db: Callable[[Floats, float], Floats]
    los_probability: Callable[[Floats], Floats] | None = None

    def loss_db(self, distance_m: Floats, carrier_hz: float, u: Floats) -> Floats:
        """Return the loss; `u`, uniform in [0, 1), draws the line of sight."""
        los = self.los_db(distance_m, carrier_hz)
        if self.los_probability is None:
            return los
        clear = u < self.los_probability(distance_m)
        return np.where(clear, los, self.nlos_db(distance_m, carrier_hz))


PATH_LOSSES = {
    "macro": PathLoss(macro_db, macro_db),
    "free-space": PathLoss(free_space_db, free_space_db),
    "umi": PathLoss(umi_los_db, umi_nlos_db, umi_los_probability),
    "umi-los": PathLoss(umi_los_db, umi_los_db),
    "umi-nlos": PathLoss(umi_nlos_db, umi_nlos_db),
    "uma": PathLoss(uma_los_db, uma_nlos_db, uma_los_probability),
    "uma-los": PathLoss(uma_los_db, uma_los_db),
    "uma-nlos": PathLoss(uma_nlos_db, uma_nlos_db),
}
