"""How many bits a second a signal carries: Shannon's bound, or a standard's table."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Thermal noise at 290 K: 10 log10(1.38e-23 * 290 * 1000).
NOISE_DBM_PER_HZ = -174.0
# The bit error rate at which ns-3's LTE module chooses a CQI.
_TARGET_BER = 0.00005


def watts(dbm: float) -> float:
    """Return a power in watts: 10^(dBm / 10) / 1000.

    Examples
    --------
    >>> watts(30)
    1.0
    """
    return float(10 ** (dbm / 10) / 1000)


def shannon_bit_per_s(bandwidth_hz: Floats, snr: Floats) -> Floats:
    """Return W log2(1 + SNR) (Shannon, 1949).

    Parameters
    ----------
    bandwidth_hz : ndarray
        W, at least 0.
    snr : ndarray
        Signal over noise, linear, p g / (N0 W).

    Examples
    --------
    >>> float(shannon_bit_per_s(np.float64(1e6), np.float64(3.0)))
    2000000.0
    """
    return bandwidth_hz * np.log2(1 + snr)


@dataclass(frozen=True)
class Shannon:
    """Shannon's bound as a spectral efficiency."""

    smooth = True

    def efficiency(self, snr: Floats) -> Floats:
        """Return log2(1 + SNR), in bit/s/Hz."""
        return np.log2(1 + snr)


@dataclass(frozen=True)
class CqiTable:
    """The efficiencies that a standard offers, chosen by the signal as ns-3 does.

    The largest efficiency that log2(1 + SNR / gap) reaches, gap = -ln(5 BER) / 1.5 at a
    bit error rate of 5e-5 (Piro, Baldo, Miozzo, "An LTE module for the ns-3 network
    simulator", 2011); the last row is the cap, below the first nothing is sent.

    Parameters
    ----------
    efficiencies : tuple of float
        Rising, in bit/s/Hz.
    """

    efficiencies: tuple[float, ...]
    smooth = False

    def efficiency(self, snr: Floats) -> Floats:
        """Return the chosen row's efficiency, 0 below the first, in bit/s/Hz."""
        gap = -math.log(5 * _TARGET_BER) / 1.5
        reached = np.log2(1 + snr / gap)
        rows = np.array((0.0, *self.efficiencies))
        return rows[np.searchsorted(self.efficiencies, reached, side="right")]


# 3GPP TS 36.213, Table 7.2.3-1; equal to TS 38.214, Table 5.2.2.1-2.
_CQI_64QAM = (
    *(0.1523, 0.2344, 0.3770, 0.6016, 0.8770, 1.1758, 1.4766, 1.9141),
    *(2.4063, 2.7305, 3.3223, 3.9023, 4.5234, 5.1152, 5.5547),
)
# 3GPP TS 38.214, Table 5.2.2.1-3.
_CQI_256QAM = (
    *(0.1523, 0.3770, 0.8770, 1.4766, 1.9141, 2.4063, 2.7305, 3.3223),
    *(3.9023, 4.5234, 5.1152, 5.5547, 6.2266, 6.9141, 7.4063),
)
RateModel = Shannon | CqiTable
RATE_MODELS: dict[str, RateModel] = {
    "shannon": Shannon(),
    "lte-cqi": CqiTable(_CQI_64QAM),
    "nr-cqi-64qam": CqiTable(_CQI_64QAM),
    "nr-cqi-256qam": CqiTable(_CQI_256QAM),
}
