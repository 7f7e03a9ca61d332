"""What obstacles and many paths do to a signal, drawn by device and round."""

import math

from flwr_slfac import SettingError
from simulation.draws import generator

FADINGS = ("none", "rayleigh", "rician")


def shadowing_db(sigma_db: float, seed: int, device: int) -> float:
    """Return a device's log-normal shadowing: normal in dB, the same in every round.

    Parameters
    ----------
    sigma_db : float
        Standard deviation; 8 dB in 3GPP's macro cells (TR 36.814).
    seed, device : int
        What it is a function of.
    """
    return sigma_db * float(generator(seed, "shadowing", device).standard_normal())


def fading_gain(
    kind: str,
    k_factor: float,
    seed: int,
    device: int,
    server_round: int,
    direction: str,
) -> float:
    """Return a block-fading power gain of mean 1, fixed over a round.

    Rayleigh: |h|^2 for h ~ CN(0, 1), an exponential variable. Rician: |h|^2 for
    h = sqrt(K / (K + 1)) + sqrt(1 / (K + 1)) z, z ~ CN(0, 1) (Tse and Viswanath,
    "Fundamentals of Wireless Communication", section 2.4.2).

    Parameters
    ----------
    kind : {"none", "rayleigh", "rician"}
        The model.
    k_factor : float
        K of Rician fading, linear: power of the clear path over that of all others.
    seed, device, server_round : int
        What the draw is a function of.
    direction : {"up", "down"}
        The same: the two bands fade on their own.

    Raises
    ------
    SettingError
        If the kind is not known.
    """
    if kind == "none":
        return 1.0
    if kind not in FADINGS:
        raise SettingError(f"fading {kind!r} is not known; use {', '.join(FADINGS)}")
    draws = generator(seed, f"fading-{direction}", device, server_round)
    real, imaginary = draws.standard_normal(2) / math.sqrt(2)
    clear = 0.0
    if kind == "rician":
        clear = math.sqrt(k_factor / (k_factor + 1))
        real, imaginary = (x / math.sqrt(k_factor + 1) for x in (real, imaginary))
    return float((clear + real) ** 2 + imaginary**2)
