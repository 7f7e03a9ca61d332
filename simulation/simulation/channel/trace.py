"""A recorded rate over time, and how long it takes to carry bytes over it."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flwr_slfac import SettingError
from simulation.errors import ScenarioError

Floats = NDArray[np.float64]
# A Mahimahi line is a chance to send one packet of this size.
_MAHIMAHI_BITS = 1500 * 8
# Thirty years: beyond any trace, within what int64 and float64 hold exactly.
_MOST_MS = 10**12
_COLUMNS = ["time_s", "rate_bit_per_s"]


@dataclass(frozen=True)
class Trace:
    """A rate that changes in steps, repeated when it ends.

    Parameters
    ----------
    time_s : ndarray, shape (N,)
        When each step begins; from 0, rising.
    rate_bit_per_s : ndarray, shape (N,)
        The rate from then on, at least 0 and not 0 throughout.
    period_s : float
        After how long it begins anew; above the last time.

    Raises
    ------
    SettingError
        If it is empty, its times do not rise from 0, a rate is negative, infinite or
        NaN, or nothing is ever sent.

    Examples
    --------
    >>> trace = Trace(np.array([0.0, 1.0]), np.array([8.0, 0.0]), 2.0)
    >>> trace.finish_s(0.0, 1), trace.finish_s(0.5, 1), trace.finish_s(0.0, 2)
    (1.0, 2.5, 3.0)
    """

    time_s: Floats
    rate_bit_per_s: Floats
    period_s: float
    # Bits carried from 0 to the start of each step, and to the end of the period.
    _bits: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        times, rates = self.time_s, self.rate_bit_per_s
        if not len(times) or len(times) != len(rates):
            raise SettingError(
                f"a trace has {len(times)} times and {len(rates)} rates; give one or "
                "more, and as many of each"
            )
        if times[0] != 0 or not np.all(np.diff(times) > 0):
            raise SettingError("times of a trace must begin with 0 and rise")
        if not times[-1] < self.period_s < math.inf:
            raise SettingError(
                f"the trace's period is {self.period_s} s; give one above its last "
                f"time, {times[-1]} s"
            )
        if not (np.all(np.isfinite(rates)) and np.all(rates >= 0) and rates.any()):
            raise SettingError(
                "rates of a trace must be finite, at least 0 and not all 0"
            )
        lengths = np.diff(np.append(times, self.period_s))
        bits = np.concatenate(([0.0], np.cumsum(lengths * rates)))
        object.__setattr__(self, "_bits", bits)

    @property
    def mean_bit_per_s(self) -> float:
        """Mean rate over a period."""
        return float(self._bits[-1] / self.period_s)

    def finish_s(self, start_s: float, num_bytes: float) -> float:
        """Return when `num_bytes` are carried that are sent from `start_s` on.

        Parameters
        ----------
        start_s : float
            At least 0; beyond the period the trace repeats.
        num_bytes : float
            At least 0.
        """
        if not num_bytes:
            return start_s
        periods, offset = divmod(start_s, self.period_s)
        wanted = self._carried(offset) + 8 * num_bytes
        more, rest = divmod(wanted, float(self._bits[-1]))
        if rest == 0:
            # The end of a period's last step that sends, not the start of the next.
            more, rest = more - 1, float(self._bits[-1])
        step = int(np.searchsorted(self._bits, rest, side="left")) - 1
        beyond = (rest - self._bits[step]) / self.rate_bit_per_s[step]
        end = (periods + more) * self.period_s + float(self.time_s[step] + beyond)
        return max(end, start_s)

    def _carried(self, offset_s: float) -> float:
        """Return the bits carried from the start of a period to a time in it."""
        step = int(np.searchsorted(self.time_s, offset_s, side="right")) - 1
        beyond = (offset_s - self.time_s[step]) * self.rate_bit_per_s[step]
        return float(self._bits[step] + beyond)


def read_trace(path: Path) -> Trace:
    """Read a trace: CSV with ``time_s,rate_bit_per_s``, or Mahimahi's format.

    A file whose name ends in ``.csv`` is the first: its last row lasts as long as the
    one before it, a single row for 1 s. In Mahimahi's format each line is a time in ms
    at which one packet of 1,500 bytes may cross, and the last line ends the period
    (Netravali et al., "Mahimahi", USENIX ATC 2015); here the packets of a millisecond
    are its rate.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    ScenarioError
        If a line is no such row, or the whole is no trace.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(path, None, "cannot be read:", str(error)) from error
    read = _read_csv if path.suffix == ".csv" else _read_mahimahi
    try:
        return read(path, text.splitlines())
    except SettingError as error:
        if isinstance(error, ScenarioError):
            raise
        raise ScenarioError(path, None, "is no trace:", str(error)) from error


def _read_csv(path: Path, lines: list[str]) -> Trace:
    rows = list(csv.reader(lines))
    if not rows or [cell.strip() for cell in rows[0]] != _COLUMNS:
        found = ",".join(rows[0]) if rows else "nothing"
        raise ScenarioError(path, 1, "header", f"is {found}; give {','.join(_COLUMNS)}")
    values = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            time_s, rate = map(float, row)
        except ValueError:
            reason = f"is {','.join(row)!r}; give two numbers"
            raise ScenarioError(path, number, "row", reason) from None
        values.append((time_s, rate))
    table = np.array(values, dtype=np.float64).reshape(-1, 2)
    times = table[:, 0]
    last = float(times[-1] - times[-2]) if len(times) > 1 else 1.0
    return Trace(times, table[:, 1], float(times[-1]) + last if len(times) else 0.0)


def _read_mahimahi(path: Path, lines: list[str]) -> Trace:
    stamps = []
    for number, line in enumerate(lines, start=1):
        if not (line.strip().isascii() and line.strip().isdigit()):
            reason = f"is {line!r}; give a whole number of milliseconds"
            raise ScenarioError(path, number, "line", reason)
        stamps.append(int(line))
        if stamps[-1] > _MOST_MS:
            raise ScenarioError(path, number, "line", f"is above {_MOST_MS} ms")
        if number > 1 and stamps[-1] < stamps[-2]:
            raise ScenarioError(path, number, "line", "is before the one above it")
    if not stamps or not stamps[-1]:
        raise ScenarioError(path, None, "is no trace:", "its last time must be above 0")
    # A packet at the end of the period crosses in its last millisecond.
    slots, packets = np.unique(np.minimum(stamps, stamps[-1] - 1), return_counts=True)
    # Only milliseconds with packets, and what follows them, are steps of their own.
    times = np.union1d(np.append(slots, slots + 1), [0])
    times = times[times < stamps[-1]]
    rates = np.zeros(len(times))
    rates[np.searchsorted(times, slots)] = packets * float(_MAHIMAHI_BITS * 1000)
    return Trace(times / 1000, rates, stamps[-1] / 1000)
