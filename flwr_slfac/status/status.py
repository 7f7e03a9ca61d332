"""How a run stands at one moment, and that as a line."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from flwr_slfac.report import readable_bytes

Phase = Literal["between", "train", "evaluate"]

# Directions that a line tells of; the others are small.
_SHOWN = "up", "down", "model-up", "model-down"
# Devices that a line names.
_MOST_NAMED = 3
# From then on a device that has not answered is worth a word.
_LONG_S = 2.0


@dataclass(frozen=True)
class DeviceStatus:
    """How one device of the round stands.

    Parameters
    ----------
    device : int
        Partition id, or the node id while the device has not told it.
    connected : bool
        Whether its stream is open; always so where messages carry the steps.
    waiting_s : float or None
        For how long the server has waited for its answer; None if it does not.
    num_bytes : mapping of str to int
        What crossed in this round by direction, as `Traffic` names them.
    """

    device: int
    connected: bool = True
    waiting_s: float | None = None
    num_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Parameters
    ----------
    server_round, num_rounds : int
        The round, from 1, and how many there are; 0 before the first.
    phase : {"between", "train", "evaluate"}
        What it does; "between" is aggregation, and what the ServerApp does itself.
    step, num_steps : int
        Steps done in this round, and those of the device with most; 0 if unknown.
    devices : sequence of DeviceStatus
        Of the round, in the order of their ids.
    num_bytes, total_bytes : mapping of str to int
        By direction: in this round, and since the start.
    left_s : float or None
        Seconds to the end at the pace so far; None if there is none yet.
    metrics : mapping of str to float
        What the last finished round came to, as `RoundReport.scalars`.
    """

    server_round: int = 0
    num_rounds: int = 0
    phase: Phase = "between"
    step: int = 0
    num_steps: int = 0
    devices: tuple[DeviceStatus, ...] = ()
    num_bytes: Mapping[str, int] = field(default_factory=dict)
    total_bytes: Mapping[str, int] = field(default_factory=dict)
    left_s: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """Return it as a line.

        Examples
        --------
        >>> device = DeviceStatus(4, waiting_s=12.0)
        >>> Status(2, 8, "train", 7, 20, (device,), left_s=131.0).line()
        'round 2/8, train step 7/20, 1 device, waiting for 4 (12 s), 2:11 left'
        """
        parts = [f"round {self.server_round}/{self.num_rounds}", self._doing()]
        away = [d.device for d in self.devices if not d.connected]
        parts.append(f"{len(self.devices)} device{'s' * (len(self.devices) != 1)}")
        if away:
            parts[-1] += f" ({len(away)} away: {_named(map(str, away))})"
        parts.extend(
            f"{name} {readable_bytes(self.num_bytes[name])}"
            for name in _SHOWN
            if name in self.num_bytes
        )
        slow = sorted(
            (-d.waiting_s, d.device)
            for d in self.devices
            if d.waiting_s is not None and d.waiting_s >= _LONG_S
        )
        if slow:
            named = _named(f"{device} ({-wait:.0f} s)" for wait, device in slow)
            parts.append(f"waiting for {named}")
        parts.append("time left unknown" if self.left_s is None else self._left())
        return ", ".join(parts)

    def _doing(self) -> str:
        if self.phase != "train":
            return self.phase
        of = f"/{self.num_steps}" if self.num_steps else ""
        return f"train step {self.step}{of}"

    def _left(self) -> str:
        minutes, seconds = divmod(round(self.left_s or 0.0), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}" if hours else f"{minutes}"
        return f"{clock}:{seconds:02} left"


def _named(names: Iterable[str]) -> str:
    """Return the first of some names, and how many there are beside."""
    found = list(names)
    rest = len(found) - _MOST_NAMED
    shown = " ".join(found[:_MOST_NAMED])
    return f"{shown} and {rest} more" if rest > 0 else shown


def summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of bytes by direction."""
    sums: dict[str, int] = {}
    for part in parts:
        for direction, num_bytes in part.items():
            sums[direction] = sums.get(direction, 0) + num_bytes
    return sums
