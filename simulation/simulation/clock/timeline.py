"""What happened when: spans of work, who waited for whom, and what it cost."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from simulation.profiles import Profile

SERVER = -1
COMPUTE = frozenset(("forward", "backward", "encode", "decode"))
TRANSMIT = frozenset(("up", "model-up"))
RECEIVE = frozenset(("down", "model-down"))


class Span(NamedTuple):
    """Something that took time.

    Parameters
    ----------
    device : int
        Who did it; `SERVER` (-1) is the server.
    kind : str
        ``model-down, forward, encode, up, down, decode, backward, model-up`` of a
        device, ``flight`` for the latency of a message; ``server-decode, server,
        server-encode, aggregate`` of the server.
    start_s, end_s : float
        Virtual time.
    num_bytes : float
        What crossed, those on air more often than once not counted again; 0 for work.
    server_round, step : int
        Where it belongs; step -1 is the end of a round.
    complete : bool
        False if it was broken off.
    """

    device: int
    kind: str
    start_s: float
    end_s: float
    num_bytes: float
    server_round: int
    step: int
    complete: bool = True

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s


class Wait(NamedTuple):
    """A device that could have gone on but for another.

    Parameters
    ----------
    device, awaited : int
        Who waited, and for whom: the last to arrive at a barrier, or `SERVER`.
    start_s, end_s : float
        Virtual time.
    server_round, step : int
        Where it belongs.
    """

    device: int
    awaited: int
    start_s: float
    end_s: float
    server_round: int
    step: int


@dataclass
class Energy:
    """What a device has spent, in joules.

    Parameters
    ----------
    compute_j : float
        compute_w times the seconds of forward, backward, encode and decode.
    transmit_j, receive_j : float
        Radiated, or receiving, power times the seconds on air.
    """

    compute_j: float = 0.0
    transmit_j: float = 0.0
    receive_j: float = 0.0

    @property
    def total_j(self) -> float:
        """All of it."""
        return self.compute_j + self.transmit_j + self.receive_j


@dataclass
class Timeline:
    """Everything that a clock has seen.

    Parameters
    ----------
    profiles : sequence of Profile
        By device.
    """

    profiles: Sequence[Profile]
    spans: list[Span] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    energy: dict[int, Energy] = field(default_factory=lambda: defaultdict(Energy))

    def add(self, span: Span) -> None:
        """Enter a span and what it cost its device."""
        self.spans.append(span)
        if span.device == SERVER:
            return
        profile, own = self.profiles[span.device], self.energy[span.device]
        if span.kind in COMPUTE:
            own.compute_j += profile.compute_w * span.seconds
        elif span.kind in TRANSMIT:
            own.transmit_j += profile.transmit_w * span.seconds
        elif span.kind in RECEIVE:
            own.receive_j += profile.receive_w * span.seconds

    def battery_left_j(self, device: int) -> float:
        """Return what is left in a device's battery, at least 0."""
        used = self.energy[device].total_j
        return max(0.0, self.profiles[device].battery_j - used)

    def seconds_by_kind(self, device: int) -> dict[str, float]:
        """Return how long a device spent on each kind of work."""
        total: dict[str, float] = defaultdict(float)
        for span in self.spans:
            if span.device == device:
                total[span.kind] += span.seconds
        return dict(total)

    def waited_s(self) -> dict[int, float]:
        """Return how long each device waited, for whomever."""
        return self._waited("device")

    def awaited_s(self) -> dict[int, float]:
        """Return how long others waited for each device, summed over those others."""
        return self._waited("awaited")

    def _waited(self, by: str) -> dict[int, float]:
        total: dict[int, float] = defaultdict(float)
        for wait in self.waits:
            total[getattr(wait, by)] += wait.end_s - wait.start_s
        return dict(total)
