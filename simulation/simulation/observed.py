"""A link that writes down what crosses, step by step, and loses whom the clock loses.

::

    Round ──requests──► Observed ──► link ──► devices
          ◄──answers───    │  notes bytes and examples of every step
                           └─ Clock.foresee: who is late, off or out of battery by the
                              barrier of this step is lost for the round
"""

from collections.abc import Callable, Iterable, Iterator

from flwr_slfac.split import (
    Description,
    EvaluateReply,
    EvaluateRequest,
    Link,
    Lost,
    TrainReply,
    TrainRequest,
)
from simulation.clock import RoundRecord
from simulation.notes import DeviceNotes
from simulation.work import DeviceWork

Foresee = Callable[[RoundRecord, int, int], dict[int, str]]


class Observed:
    """The link of one round of training; see `flwr_slfac.split.Link`.

    Parameters
    ----------
    link : Link
        What carries.
    server_round : int
        The round.
    scheme : str
        As in `flwr_slfac.split`.
    work : DeviceWork
        Counts the operations of each device's steps.
    shares : dict of int to float
        By device: share of the front's operations that lightweight training leaves, as
        the device told last; entered anew when it tells.
    foresee : callable or None
        As `Clock.foresee`; None where nobody can be lost.

    Attributes
    ----------
    lost : dict of int to str
        Who was lost by the clock, and why.
    """

    def __init__(
        self,
        link: Link,
        server_round: int,
        scheme: str,
        work: DeviceWork,
        shares: dict[int, float],
        foresee: Foresee | None,
    ) -> None:
        self._link, self._server_round, self._scheme = link, server_round, scheme
        self._work, self._foresee = work, foresee
        # What is foreseen must not change with what a device tells at the end.
        self._shares = dict(shares) if foresee else shares
        self._told = shares
        self._notes: dict[int, DeviceNotes] = {}
        self._members: list[int] = []
        self.lost: dict[int, str] = {}

    @property
    def notes(self) -> list[DeviceNotes]:
        """What was seen of each device that answered a step, by partition id."""
        return sorted(
            (own for own in self._notes.values() if own.steps), key=lambda n: n.device
        )

    def record(self) -> RoundRecord | None:
        """Return the round as the clock takes it; None if nobody answered a step."""
        devices = [
            own.as_round(self._work.of(own.device), self._shares.get(own.device, 1.0))
            for own in self.notes
        ]
        if not devices:
            return None
        return RoundRecord(self._server_round, self._scheme, devices)

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Ask the link."""
        found = self._link.devices(keys)
        self._members = sorted(found.values())
        return found

    def describe(
        self, keys: list[int], *, channels: bool
    ) -> dict[int, Description | Lost]:
        """Ask the link."""
        return self._link.describe(keys, channels=channels)

    def evaluate_each(
        self, requests: Iterable[tuple[int, EvaluateRequest]]
    ) -> Iterator[tuple[int, EvaluateReply | Lost]]:
        """Ask the link."""
        return self._link.evaluate_each(requests)

    def train_each(
        self, requests: Iterable[tuple[int, TrainRequest]]
    ) -> Iterator[tuple[int, TrainReply | Lost]]:
        """Let the link deliver; give an answer for every key, late ones as lost.

        Where somebody may be late, no answer is given before all are there.
        """
        steps: dict[int, int] = {}

        def noted() -> Iterator[tuple[int, TrainRequest]]:
            for key, request in requests:
                steps[key] = request.step
                self._notes.setdefault(key, DeviceNotes()).sent(request)
                yield key, request

        answers: dict[int, TrainReply | Lost] = {}
        for key, answer in self._link.train_each(noted()):
            if isinstance(answer, TrainReply):
                self._came(key, answer)
            if self._foresee is None:
                yield key, answer
            else:
                answers[key] = answer
        lost = self._newly_lost(answers, steps)
        for key, answer in answers.items():
            device = self._notes[key].device
            yield key, Lost(lost[device], device) if device in lost else answer

    def _came(self, key: int, reply: TrainReply) -> None:
        self._notes[key].came(reply)
        if reply.cost is not None and reply.cost.plain_forward_flops:
            share = reply.cost.forward_flops / reply.cost.plain_forward_flops
            self._told[reply.device] = share

    def _newly_lost(
        self, answers: dict[int, TrainReply | Lost], steps: dict[int, int]
    ) -> dict[int, str]:
        """Return who answered, and is lost by the barrier all the same."""
        answered = {
            self._notes[key].device: steps[key]
            for key, answer in answers.items()
            if isinstance(answer, TrainReply) and self._notes[key].steps
        }
        record = self._so_far()
        if not answered or record is None or self._foresee is None:
            return {}
        device, step = min(answered.items())
        found = self._foresee(record, device, step)
        lost = {d: why for d, why in found.items() if d in answered}
        self.lost |= lost
        return lost

    def _so_far(self) -> RoundRecord | None:
        """Return the record; in a relay with those whose turn is still to come.

        They take no part yet, but a band may be divided among all of the round.
        """
        record = self.record()
        if record is None or self._scheme != "sequential":
            return record
        begun = {own.device for own in record.devices}
        idle = [DeviceNotes.idle(d) for d in self._members if d not in begun]
        devices = sorted((*record.devices, *idle), key=lambda own: own.device)
        return RoundRecord(self._server_round, self._scheme, devices)
