"""What a device is: how fast it computes, what it draws, what it can hold."""

import math
from dataclasses import dataclass, fields

from simulation.numbers import (
    MOST_DB,
    require_between,
    require_positive,
    require_share,
)


@dataclass(frozen=True)
class Profile:
    """One device.

    Parameters
    ----------
    tier : str
        What kind of device it is.
    forward_flop_per_s, backward_flop_per_s : float
        Sustained float32 operations a second, a multiply-add counted as two; infinity
        takes no time.
    encode_byte_per_s, decode_byte_per_s : float
        Raw float32 bytes a second that its codec encodes and decodes.
    memory_bytes : float
        What training may use.
    transmit_dbm : float
        Radiated power of its radio.
    receive_w : float
        Power of its radio while it receives.
    compute_w : float
        Power, above idle, while it computes; see `dynamic_power_w`.
    battery_j : float
        What its battery holds; infinity on mains.
    availability : float
        Share of the time that it is on, in (0, 1].
    up_bit_per_s, down_bit_per_s : float
        Its own link, where it was measured with one; used by a channel of kind
        ``"profiles"`` only.

    Raises
    ------
    SettingError
        If a number is NaN or out of range.
    """

    tier: str
    forward_flop_per_s: float
    backward_flop_per_s: float
    encode_byte_per_s: float
    decode_byte_per_s: float
    memory_bytes: float
    transmit_dbm: float
    receive_w: float
    compute_w: float
    battery_j: float
    availability: float
    up_bit_per_s: float = math.inf
    down_bit_per_s: float = math.inf

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            require_positive(name, getattr(self, name))
        for name in ("receive_w", "compute_w"):
            require_between(name, getattr(self, name), 0, _MOST_W)
        require_between("transmit_dbm", self.transmit_dbm, -MOST_DB, MOST_DB)
        require_share("availability", self.availability)

    @property
    def transmit_w(self) -> float:
        """Radiated power in watts: 10^(dBm / 10) / 1000."""
        return float(10 ** (self.transmit_dbm / 10) / 1000)


# A power plant: energies stay finite.
_MOST_W = 1e9
_POSITIVE = (
    "forward_flop_per_s",
    "backward_flop_per_s",
    "encode_byte_per_s",
    "decode_byte_per_s",
    "memory_bytes",
    "battery_j",
    "availability",
    "up_bit_per_s",
    "down_bit_per_s",
)
FIGURES = tuple(field.name for field in fields(Profile))[1:]
LINK_FIGURES = ("up_bit_per_s", "down_bit_per_s")


def dynamic_power_w(kappa_w_per_hz3: float, clock_hz: float) -> float:
    """Return the dynamic power of a processor, kappa f^3.

    Parameters
    ----------
    kappa_w_per_hz3 : float
        Effective capacitance coefficient of the chip, about 1e-28 (Zhang et al., IEEE
        Trans. Wireless Commun. 2013; the value of most papers on edge training).
    clock_hz : float
        Clock of the processor.

    Examples
    --------
    >>> round(dynamic_power_w(1e-28, 2e9), 6)
    0.8
    """
    # Not a power: that raises OverflowError where a product is infinite.
    return kappa_w_per_hz3 * clock_hz * clock_hz * clock_hz
