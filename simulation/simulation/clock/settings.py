"""What a clock is told beside devices and channel: server, deadlines, availability."""

import csv
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from flwr_slfac import SettingError
from simulation.draws import generator
from simulation.errors import ScenarioError
from simulation.numbers import require_positive, require_share


@dataclass(frozen=True)
class Server:
    """How fast the server is; it does one thing after another.

    Parameters
    ----------
    flop_per_s : float
        Sustained float32 operations a second; this literature uses 29e12.
    encode_byte_per_s, decode_byte_per_s : float
        Raw float32 bytes a second that its codecs encode and decode.

    Raises
    ------
    SettingError
        If a number is not above 0.
    """

    flop_per_s: float = math.inf
    encode_byte_per_s: float = math.inf
    decode_byte_per_s: float = math.inf

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require_positive(name, value)


@dataclass(frozen=True)
class Deadline:
    """How long the server waits; who is later is lost for the rest of the round.

    Parameters
    ----------
    step_s : float
        From sending to devices until their answers, infinity for ever.
    round_s : float
        From the start of a round until its last update.

    Raises
    ------
    SettingError
        If a number is not above 0.
    """

    step_s: float = math.inf
    round_s: float = math.inf

    def __post_init__(self) -> None:
        require_positive("step_s", self.step_s)
        require_positive("round_s", self.round_s)


class Availability(Protocol):
    """When devices are on."""

    def is_on(self, device: int, time_s: float) -> bool:
        """Return whether a device is on at a time."""
        ...

    def next_off_s(self, device: int, time_s: float) -> float:
        """Return when a device that is on goes off; infinity if never."""
        ...


class AlwaysOn:
    """Devices that never go off."""

    def is_on(self, device: int, time_s: float) -> bool:
        """Return True."""
        return True

    def next_off_s(self, device: int, time_s: float) -> float:
        """Return infinity."""
        return math.inf


@dataclass(frozen=True)
class OnOff:
    """Devices that are on in given intervals, repeated.

    Parameters
    ----------
    intervals : mapping of int to sequence of (float, float)
        By device: (on, off) in seconds, in order, apart; a device without any is
        always on.
    period_s : float
        After how long they begin anew; with infinity a device is off after its last
        interval.

    Raises
    ------
    SettingError
        If intervals overlap, are empty, or go beyond the period.
    """

    intervals: Mapping[int, Sequence[tuple[float, float]]]
    period_s: float = math.inf

    def __post_init__(self) -> None:
        for device, own in self.intervals.items():
            edges = [edge for interval in own for edge in interval]
            rising = all(a < b for a, b in pairwise(edges))
            if not edges or edges[0] < 0 or not rising or edges[-1] > self.period_s:
                raise SettingError(
                    f"device {device} is on at {list(own)}; give intervals from 0 on "
                    f"that rise, lie apart and end by the period, {self.period_s} s"
                )

    def is_on(self, device: int, time_s: float) -> bool:
        """Return whether a device is on at a time."""
        return self.next_off_s(device, time_s) > time_s

    def next_off_s(self, device: int, time_s: float) -> float:
        """Return when a device that is on goes off; `time_s` itself if it is off."""
        own = self.intervals.get(device)
        if own is None:
            return math.inf
        start = 0.0
        if self.period_s < math.inf:
            start = time_s // self.period_s * self.period_s
        place = bisect_right(own, time_s - start, key=lambda interval: interval[0]) - 1
        if place < 0 or own[place][1] <= time_s - start:
            return time_s
        end = own[place][1]
        if end == self.period_s and own[0][0] == 0:
            # On across the end of the period, up to the first end of the next one.
            whole = len(own) == 1
            return math.inf if whole else start + self.period_s + own[0][1]
        return start + end


@dataclass
class DrawnOnOff:
    """Devices that go on and off at random: a two-state Markov process in time.

    On for a mean of ``on_s``, off for a mean that gives each its availability, both
    exponential; the first state is drawn from the long-run share.

    Parameters
    ----------
    on_s : float
        Mean time that a device stays on.
    availability : sequence of float
        By device: long-run share of the time that it is on, in (0, 1].
    seed : int
        Of the scenario; each device's process is a function of seed and device.

    Raises
    ------
    SettingError
        If a number is out of range.
    """

    on_s: float
    availability: Sequence[float]
    seed: int
    _edges: dict[int, tuple[bool, list[float]]] = field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        require_positive("on_s", self.on_s)
        for share in self.availability:
            require_positive("availability", share)
            require_share("availability", share)

    def is_on(self, device: int, time_s: float) -> bool:
        """Return whether a device is on at a time."""
        first, edges = self._drawn_to(device, time_s)
        return first != bool(bisect_right(edges, time_s) % 2)

    def next_off_s(self, device: int, time_s: float) -> float:
        """Return when a device that is on goes off; `time_s` itself if it is off."""
        if self.availability[device] == 1:
            return math.inf
        if not self.is_on(device, time_s):
            return time_s
        _, edges = self._drawn_to(device, time_s)
        return edges[bisect_right(edges, time_s)]

    def _drawn_to(self, device: int, time_s: float) -> tuple[bool, list[float]]:
        """Return the first state and the times of change, at least one after a time."""
        share = self.availability[device]
        if share == 1:
            return True, []
        if device not in self._edges:
            draws = generator(self.seed, "churn-first", device)
            self._edges[device] = bool(draws.random() < share), []
        first, edges = self._edges[device]
        while not edges or edges[-1] <= time_s:
            on = first != bool(len(edges) % 2)
            mean_s = self.on_s if on else self.on_s * (1 - share) / share
            draws = generator(self.seed, "churn", device, len(edges))
            last = edges[-1] if edges else 0.0
            edges.append(last + float(draws.exponential(mean_s)))
        return first, edges


_CHURN_COLUMNS = ["device", "on_s", "off_s"]


def read_on_off(path: Path, period_s: float = math.inf) -> OnOff:
    """Read a trace of availability: CSV with ``device,on_s,off_s``, a row an interval.

    Parameters
    ----------
    path : Path
        The file; rows of a device in order.
    period_s : float
        As in `OnOff`.

    Raises
    ------
    ScenarioError
        If a row is no such interval.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(path, None, "cannot be read:", str(error)) from error
    if not rows or rows[0] != _CHURN_COLUMNS:
        raise ScenarioError(path, 1, "header", f"must be {','.join(_CHURN_COLUMNS)}")
    intervals: dict[int, list[tuple[float, float]]] = {}
    for line, row in enumerate(rows[1:], start=2):
        try:
            device, (on_s, off_s) = int(row[0]), map(float, row[1:])
        except (ValueError, IndexError):
            reason = f"is {','.join(row)!r}; give a device and two times"
            raise ScenarioError(path, line, "row", reason) from None
        intervals.setdefault(device, []).append((on_s, off_s))
    try:
        return OnOff(intervals, period_s)
    except SettingError as error:
        raise ScenarioError(path, None, "intervals:", str(error)) from error
