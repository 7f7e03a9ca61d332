"""A radio cell: where its devices are, how well each is heard, who gets which part."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flwr_slfac import SettingError
from simulation.channel.fading import FADINGS, fading_gain, shadowing_db
from simulation.channel.path_loss import PATH_LOSSES, require_macro_carrier
from simulation.channel.rates import NOISE_DBM_PER_HZ, RATE_MODELS, watts
from simulation.channel.sharing import (
    SHARINGS,
    equal_hz,
    max_min_fixed_hz,
    max_min_power_hz,
    proportional_hz,
)
from simulation.draws import generator
from simulation.numbers import MOST_DB, require_between, require_share

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Direction = Literal["up", "down"]
# From a millimetre to beyond any satellite; from 1 Hz to light.
_METRES, _HERTZ = (1e-3, 1e9), (1.0, 1e15)
# Four deviations stay far from what float64 can hold.
MOST_SHADOWING_DB = 50


@dataclass(frozen=True)
class CellSettings:
    """One cell; defaults are a 3GPP macro cell with Rayleigh fading.

    Parameters
    ----------
    bandwidth_up_hz, bandwidth_down_hz : float
        The two bands (FDD); 2 to 20 MHz in this literature.
    radius_m, min_distance_m : float
        Devices are uniform over the ring between them.
    distances_m : tuple of float
        Instead: where devices 0, 1, ... are.
    carrier_hz : float
        0.5 to 100 GHz.
    path_loss : str
        A name in `path_loss.PATH_LOSSES`.
    shadowing_db : float
        Standard deviation of log-normal shadowing; 8 dB in TR 36.814, 4 dB (in line of
        sight) to 7.82 dB in TR 38.901.
    fading : {"none", "rayleigh", "rician"}
        Block fading, drawn by round.
    rician_k_db : float
        K of Rician fading.
    base_dbm : float
        Power of the base station over its whole band; 46 dBm in TR 36.814.
    noise_dbm_per_hz, noise_figure_db : float
        Thermal noise, and what a receiver adds to it.
    rate : {"shannon", "lte-cqi", "nr-cqi-64qam", "nr-cqi-256qam"}
        How a signal turns into a rate.
    overhead : float
        Share of the rate that control channels take, in [0, 1).
    sharing : {"equal", "proportional", "max-min"}
        How a band is divided: equal parts, parts by bytes to carry, or equal rates.
    among : {"active", "round"}
        Divided among those that send at the moment, again at each change; or once a
        round among all devices of the round, unused parts idle.
    up_power : {"part", "band"}
        Whether a device puts its power into its part of the band, or has the same
        power density however wide its part is.

    Raises
    ------
    SettingError
        If a number is out of range, a name is unknown, or two do not go together.
    """

    bandwidth_up_hz: float = 10e6
    bandwidth_down_hz: float = 10e6
    radius_m: float = 500.0
    min_distance_m: float = 35.0
    distances_m: tuple[float, ...] = ()
    carrier_hz: float = 2e9
    path_loss: str = "macro"
    shadowing_db: float = 8.0
    fading: str = "rayleigh"
    rician_k_db: float = 6.0
    base_dbm: float = 46.0
    noise_dbm_per_hz: float = NOISE_DBM_PER_HZ
    noise_figure_db: float = 0.0
    rate: str = "shannon"
    overhead: float = 0.0
    sharing: str = "equal"
    among: str = "active"
    up_power: str = "part"

    def __post_init__(self) -> None:
        for name in ("bandwidth_up_hz", "bandwidth_down_hz", "carrier_hz"):
            require_between(name, getattr(self, name), *_HERTZ)
        for name in ("radius_m", "min_distance_m"):
            require_between(name, getattr(self, name), *_METRES)
        for distance in self.distances_m:
            require_between("distances_m", distance, *_METRES)
        for name in ("base_dbm", "noise_dbm_per_hz", "noise_figure_db", "rician_k_db"):
            require_between(name, getattr(self, name), -MOST_DB, MOST_DB)
        require_between("shadowing_db", self.shadowing_db, 0, MOST_SHADOWING_DB)
        require_share("overhead", self.overhead, below_one=True)
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise SettingError(
                    f"{name} {getattr(self, name)!r} is not known; use one of "
                    f"{', '.join(known)}"
                )
        if self.path_loss == "macro":
            require_macro_carrier(self.carrier_hz)
        if self.min_distance_m > self.radius_m:
            raise SettingError(
                f"min_distance_m {self.min_distance_m} is above radius_m "
                f"{self.radius_m}; give a smaller one"
            )
        if self.sharing == "proportional" and self.among == "round":
            raise SettingError(
                "sharing 'proportional' goes by what each has to send at the moment, "
                "which nobody knows a round ahead; use among 'active'"
            )
        concentrated = self.sharing == "max-min" and self.up_power == "part"
        if concentrated and self.rate != "shannon":
            raise SettingError(
                f"sharing 'max-min' with up_power 'part' needs a smooth rate, and rate "
                f"is {self.rate!r}; use 'shannon', or up_power 'band'"
            )


_KNOWN = {
    "path_loss": tuple(PATH_LOSSES),
    "fading": FADINGS,
    "rate": tuple(RATE_MODELS),
    "sharing": SHARINGS,
    "among": ("active", "round"),
    "up_power": ("part", "band"),
}


@dataclass
class Cell:
    """One direction of a cell, for a set of devices.

    Parameters
    ----------
    settings : CellSettings
        The cell.
    direction : {"up", "down"}
        Up, devices send with their own power; down, the base sends.
    transmit_dbm : sequence of float
        Power of each device, for up.
    seed : int
        Of the scenario.
    """

    settings: CellSettings
    direction: Direction
    transmit_dbm: Sequence[float]
    seed: int
    _large_scale: Floats = field(init=False, repr=False)
    _by_round: tuple[int, Floats] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        loss_db = self.loss_db()
        self._large_scale = 10 ** (-loss_db / 10)
        self._by_round = (-1, np.empty(0))

    @property
    def bandwidth_hz(self) -> float:
        """The band of this direction."""
        own = self.settings
        return own.bandwidth_up_hz if self.direction == "up" else own.bandwidth_down_hz

    def distances_m(self) -> Floats:
        """Return each device's distance to the base: a function of seed and device.

        Uniform over the ring: d = sqrt(r^2 + u (R^2 - r^2)).
        """
        own, count = self.settings, len(self.transmit_dbm)
        if own.distances_m:
            if len(own.distances_m) < count:
                raise SettingError(
                    f"distances_m has {len(own.distances_m)} and there are {count} "
                    "devices; give each its distance"
                )
            return np.array(own.distances_m[:count], dtype=np.float64)
        u = np.array([generator(self.seed, "place", k).random() for k in range(count)])
        inner, outer = own.min_distance_m**2, own.radius_m**2
        return np.sqrt(inner + u * (outer - inner))

    def loss_db(self) -> Floats:
        """Return each device's path loss and shadowing, which last for the run."""
        own, count = self.settings, len(self.transmit_dbm)
        u = np.array([generator(self.seed, "sight", k).random() for k in range(count)])
        loss = PATH_LOSSES[own.path_loss].loss_db(self.distances_m(), own.carrier_hz, u)
        shadows = [shadowing_db(own.shadowing_db, self.seed, k) for k in range(count)]
        return np.asarray(loss + np.array(shadows))

    def snr_hz(self, server_round: int) -> Floats:
        """Return p g / N0 of each device in a round: its SNR times the band, in Hz."""
        if self._by_round[0] != server_round:
            own = self.settings
            k_factor = 10 ** (own.rician_k_db / 10)
            fading = np.array(
                [
                    fading_gain(
                        own.fading, k_factor, self.seed, k, server_round, self.direction
                    )
                    for k in range(len(self.transmit_dbm))
                ]
            )
            noise = watts(own.noise_dbm_per_hz + own.noise_figure_db)
            powers = (
                self.transmit_dbm
                if self.direction == "up"
                else [own.base_dbm] * len(self.transmit_dbm)
            )
            power_w = np.array([watts(dbm) for dbm in powers])
            self._by_round = (
                server_round,
                power_w * self._large_scale * fading / noise,
            )
        return self._by_round[1]

    def rates_bit_per_s(
        self,
        server_round: int,
        active: Ints,
        load_bytes: Floats,
        members: Ints,
    ) -> Floats:
        """Return the rate of each active device.

        Parameters
        ----------
        server_round : int
            The round, for fading.
        active : ndarray of int64, shape (N,)
            Devices that send at the moment.
        load_bytes : ndarray, shape (N,)
            What each of them has to carry in all.
        members : ndarray of int64
            All devices of the round, rising.
        """
        snr_hz = self.snr_hz(server_round)
        if self.settings.among == "round":
            parts = self._divide(snr_hz[members], np.empty(0))
            parts = parts[np.searchsorted(members, active)]
        else:
            parts = self._divide(snr_hz[active], load_bytes)
        return parts * self._efficiency(parts, snr_hz[active])

    @property
    def _concentrates(self) -> bool:
        return self.direction == "up" and self.settings.up_power == "part"

    def _divide(self, snr_hz: Floats, load_bytes: Floats) -> Floats:
        band, sharing = self.bandwidth_hz, self.settings.sharing
        if sharing == "equal":
            return equal_hz(band, len(snr_hz))
        if sharing == "proportional":
            return proportional_hz(band, load_bytes)
        if self._concentrates:
            return max_min_power_hz(band, snr_hz)
        return max_min_fixed_hz(band, self._efficiency(np.full(1, band), snr_hz))

    def _efficiency(self, parts_hz: Floats, snr_hz: Floats) -> Floats:
        """Return bit/s/Hz where the power is in these parts, or over the whole band."""
        own = self.settings
        width = np.maximum(parts_hz, 1e-9) if self._concentrates else self.bandwidth_hz
        useful = 1 - own.overhead
        return useful * RATE_MODELS[own.rate].efficiency(snr_hz / width)
