"""Links that devices do not share: plain rates, recorded rates; and one shared pipe."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flwr_slfac import SettingError
from simulation.channel.packets import Packets
from simulation.channel.trace import Trace
from simulation.draws import generator
from simulation.errors import ScenarioError
from simulation.numbers import require_positive
from simulation.tables import read_table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PRESETS = Path(__file__).parents[2] / "links"


@dataclass(frozen=True)
class PlainLinks:
    """A rate of its own for every device, the same at all times.

    Parameters
    ----------
    bit_per_s : tuple of float
        By device; infinity takes no time.

    Raises
    ------
    SettingError
        If a rate is not above 0.
    """

    bit_per_s: tuple[float, ...]

    def __post_init__(self) -> None:
        for rate in self.bit_per_s:
            require_positive("rate_bit_per_s", rate)

    def finish_s(self, device: int, start_s: float, num_bytes: float) -> float:
        """Return when bytes are sent that a device sends from `start_s` on."""
        return start_s + 8 * num_bytes / self.bit_per_s[device]

    def mean_bit_per_s(self, device: int) -> float:
        """Return the rate of a device."""
        return self.bit_per_s[device]


@dataclass(frozen=True)
class TraceLinks:
    """A recorded rate for every device: trace ``device % len(traces)``.

    Parameters
    ----------
    traces : tuple of Trace
        One or more.
    seed : int
        Each device starts at its own, drawn place of its trace, a whole number of
        seconds, so that devices with one trace are not in step; None starts all at 0.
    """

    traces: tuple[Trace, ...]
    seed: int | None = None

    def finish_s(self, device: int, start_s: float, num_bytes: float) -> float:
        """Return when bytes are sent that a device sends from `start_s` on."""
        trace = self.traces[device % len(self.traces)]
        offset = self.offset_s(device)
        return trace.finish_s(start_s + offset, num_bytes) - offset

    def mean_bit_per_s(self, device: int) -> float:
        """Return the mean rate of a device's trace."""
        return self.traces[device % len(self.traces)].mean_bit_per_s

    def offset_s(self, device: int) -> float:
        """Return where in its trace a device starts."""
        if self.seed is None:
            return 0.0
        period = self.traces[device % len(self.traces)].period_s
        draws = generator(self.seed, "trace-offset", device)
        return float(draws.integers(max(1, math.floor(period))))


@dataclass(frozen=True)
class Pipe:
    """One rate that all who send at the moment share equally, as Wi-Fi's air is.

    Parameters
    ----------
    total_bit_per_s : float
        The rate of one that sends alone.

    Raises
    ------
    SettingError
        If the rate is not above 0.
    """

    total_bit_per_s: float

    def __post_init__(self) -> None:
        require_positive("total_bit_per_s", self.total_bit_per_s)

    def rates_bit_per_s(
        self,
        server_round: int,
        active: Ints,
        load_bytes: Floats,
        members: Ints,
    ) -> Floats:
        """Return the rate of each active device, as `Cell.rates_bit_per_s`."""
        return np.full(len(active), self.total_bit_per_s / len(active))


@dataclass(frozen=True)
class Preset:
    """A kind of access network.

    Parameters
    ----------
    up_bit_per_s, down_bit_per_s : float
        Median rates.
    packets : Packets
        Latency, jitter, loss.
    sources : dict of str to str
        Where each number is from.
    """

    up_bit_per_s: float
    down_bit_per_s: float
    packets: Packets
    sources: dict[str, str]


_PRESET_KEYS = (
    "up_bit_per_s",
    "down_bit_per_s",
    "latency_s",
    "jitter_s",
    "packet_loss",
)


def read_presets(path: Path = PRESETS / "presets.toml") -> dict[str, Preset]:
    """Read presets: a table per name, in it a table per number with value and source.

    Raises
    ------
    ScenarioError
        If a number is missing, unknown, without a source or out of range.

    Examples
    --------
    >>> read_presets()["lora-sf7"].up_bit_per_s
    5468.75
    """
    content, lines = read_table(path)
    presets = {}
    for name, table in content.items():
        if not isinstance(table, dict):
            raise ScenarioError(path, lines.get(name), name, "must be a table")
        for key in (*_PRESET_KEYS, *table):
            entry = table.get(key)
            known = key in _PRESET_KEYS
            if not known or not _told(entry):
                reason = (
                    f"must be one of {', '.join(_PRESET_KEYS)}, all of them given, "
                )
                reason += "each with value and source"
                line = lines.get(f"{name}.{key}", lines.get(name))
                raise ScenarioError(path, line, f"{name}.{key}", reason)
        value = {key: float(table[key]["value"]) for key in _PRESET_KEYS}
        try:
            for key in _PRESET_KEYS[:2]:
                require_positive(key, value[key])
            packets = Packets(
                value["latency_s"], value["jitter_s"], value["packet_loss"]
            )
        except SettingError as error:
            raise ScenarioError(path, lines.get(name), name, str(error)) from error
        sources = {key: table[key]["source"] for key in _PRESET_KEYS}
        rates = value["up_bit_per_s"], value["down_bit_per_s"]
        presets[name] = Preset(*rates, packets, sources)
    return presets


def _told(entry: object) -> bool:
    """Return whether an entry is a number with its source."""
    if not isinstance(entry, dict) or entry.keys() != {"value", "source"}:
        return False
    value, source = entry["value"], entry["source"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and isinstance(source, str) and bool(source.strip())


def spread_rates(
    median_bit_per_s: float, spread: float, num_devices: int, seed: int, direction: str
) -> tuple[float, ...]:
    """Draw a log-normal rate for each device: a function of seed and device.

    Parameters
    ----------
    median_bit_per_s : float
        Median rate.
    spread : float
        Standard deviation of the natural logarithm.
    num_devices, seed : int
        How many, and of the scenario.
    direction : {"up", "down"}
        Up and down have draws of their own.
    """
    draws = [
        generator(seed, f"link-{direction}", device).standard_normal()
        for device in range(num_devices)
    ]
    return tuple(float(median_bit_per_s * math.exp(spread * z)) for z in draws)
