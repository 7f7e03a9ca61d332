"""Steps over streams: a Flower message opens a session, and all else crosses in it."""

import math
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from flwr_slfac.errors import AllDevicesLostError, SettingError, SlfacError
from flwr_slfac.split import (
    Description,
    EvaluateReply,
    EvaluateRequest,
    Limits,
    Lost,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.transport.answers import DescribeRequest, Request
from flwr_slfac.transport.carrier import Seen
from flwr_slfac.transport.stream.blobs import StateCache
from flwr_slfac.transport.stream.held import Held
from flwr_slfac.transport.stream.opening import Opening
from flwr_slfac.transport.stream.replies import unpack_reply
from flwr_slfac.transport.stream.requests import pack_request
from flwr_slfac.transport.stream.service import Event, StreamService
from flwr_slfac.transport.stream.wire import Packed

Answer = TypeVar("Answer", TrainReply, EvaluateReply, Description)
Taken = TypeVar("Taken")

# What Flower says of a node is asked for so often while devices are waited for.
_LOOK_S = 0.5
# How long a device tries to find the server again, at most. Its node is not free for
# another run meanwhile: half of a timeout, so that one which resumes this one gets it.
_LONGEST_PATIENCE_S = 60.0
_PATIENCE_PER_TIMEOUT = 0.5
# Names, shapes and texts of a reply, and the front of a run that never sent one.
_SLACK_BYTES = 2**24


class Opener(Protocol):
    """Has devices open their streams."""

    def open(self, opening: Opening) -> int:
        """Tell a device what to open its stream with; return the bytes it took."""
        ...

    def ended(self, nodes: Iterable[int]) -> dict[int, Lost]:
        """Return those of these nodes whose call has ended, and why."""
        ...


class StreamLink:
    """Carries requests over one stream per device; keys are node ids.

    Parameters
    ----------
    service : StreamService
        Where the streams lead; stopped by `close`.
    opener : Opener
        Has devices open them.
    timeout_s : float
        A device that does not answer for this long is lost, and its session ends.
    limits : Limits
        What is taken from one device.

    Raises
    ------
    SettingError
        If the timeout is not above 0.
    """

    def __init__(
        self, service: StreamService, opener: Opener, timeout_s: float, limits: Limits
    ) -> None:
        if not timeout_s > 0:
            raise SettingError(f"the step timeout is {timeout_s} s; it must be above 0")
        self._service, self._opener = service, opener
        self._timeout_s, self._limits = timeout_s, limits
        self._patience_s = min(_PATIENCE_PER_TIMEOUT * timeout_s, _LONGEST_PATIENCE_S)
        self._deadline = math.inf
        self._held: dict[int, Held] = {}
        self._partitions: dict[int, int] = {}
        self._states = StateCache()
        self._front_bytes = 0

    def finish_by(self, deadline: float) -> None:
        """Wait for no answer after a deadline, as `time.monotonic` counts."""
        self._deadline = deadline

    def hold(self, keys: Iterable[int]) -> None:
        """Let all devices go but these, which the round is about to train."""
        kept = set(keys)
        for key in [key for key in self._held if key not in kept]:
            self._drop(key)

    def look(self) -> dict[int, Seen]:
        """Return what is seen of nodes that are held."""
        return {key: held.look() for key, held in list(self._held.items())}

    def close(self) -> None:
        """Let all devices go, and stop the service."""
        self._held.clear()
        self._service.stop()

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Return partition ids; those that are not known are told in a session.

        Raises
        ------
        AllDevicesLostError
            If devices were to join and none ever has.
        """
        unknown = {key for key in keys if key not in self._partitions}
        self._open(unknown)
        told = dict(self._await(unknown, lambda held, event: held.session.device))
        lost = {k: each for k, each in told.items() if isinstance(each, Lost)}
        if lost and not self._partitions:
            key, first = next(iter(lost.items()))
            raise AllDevicesLostError(
                f"no device opens its stream (node {key}: {first.reason}); does the "
                "ClientApp start there?"
            )
        return {k: self._partitions[k] for k in keys if k in self._partitions}

    def describe(
        self, keys: list[int], *, channels: bool
    ) -> dict[int, Description | Lost]:
        """Ask devices for what they say of themselves."""
        asked = ((key, DescribeRequest(channels)) for key in keys)
        return dict(self._carry(asked, Description))

    def train_each(
        self, requests: Iterable[tuple[int, TrainRequest]]
    ) -> Iterator[tuple[int, TrainReply | Lost]]:
        """Carry a training request to each device and the replies back."""
        return self._carry(requests, TrainReply)

    def evaluate_each(
        self, requests: Iterable[tuple[int, EvaluateRequest]]
    ) -> Iterator[tuple[int, EvaluateReply | Lost]]:
        """Carry an evaluation request to each device and the replies back."""
        return self._carry(requests, EvaluateReply)

    def _carry(
        self, requests: Iterable[tuple[int, Request]], kind: type[Answer]
    ) -> Iterator[tuple[int, Answer | Lost]]:
        asked: set[int] = set()
        try:
            for key, request in requests:
                self._ask(key, request)
                asked.add(key)
            read = partial(self._read, kind=kind)
            for key, answer in self._await(set(asked), read):
                asked.discard(key)
                yield key, answer
        finally:
            # Whoever is still asked when this is given up could be asked no more.
            for key in asked:
                self._drop(key, "the server gave up the step")

    def _ask(self, key: int, request: Request) -> None:
        held = self._held.get(key)
        trains = isinstance(request, TrainRequest)
        if held is not None and held.is_ahead and not (trains and not request.begin):
            # Its next reply, which may be here already, would answer another step.
            self._drop(key, "it is no more part of the round that it trained in")
        self._open([key])
        held = self._held[key]
        held.request = pack_request(request, self._states)
        held.asked_at = time.monotonic()
        if request.begin is not None:
            held.pipelined = bool(request.begin.pipeline_depth)
        limit = self._limit(request, held.request)
        ahead = held.pipelined and trains
        self._service.ask(held.session, held.request, limit, pipelined=ahead)

    def _open(self, keys: Iterable[int]) -> None:
        """Open a session for every device that has none."""
        for key in keys:
            if key in self._held:
                continue
            session, token = self._service.expect(key)
            identity = self._service.identity
            opening = Opening(
                key,
                self._service.addresses,
                token,
                identity.certificate,
                identity.name,
                self._patience_s,
            )
            self._held[key] = Held(session, besides=self._opener.open(opening))

    def _await(
        self,
        keys: set[int],
        take: Callable[[Held, Event], Taken | Lost | None],
    ) -> Iterator[tuple[int, Taken | Lost]]:
        """Give what is taken of each device when it is, or that it is lost."""
        waiting, now = set(keys), time.monotonic()
        deadline, look = min(self._deadline, now + self._timeout_s), now + _LOOK_S
        while waiting:
            now = time.monotonic()
            if now >= look:
                lost = self._look(waiting, now)
                waiting -= lost.keys()
                yield from lost.items()
                look = now + _LOOK_S
            try:
                wait_s = max(min(look, deadline) - now, 0.0)
                event = self._service.events.get(timeout=wait_s)
            except queue.Empty:
                if time.monotonic() < deadline:
                    continue
                late = Lost(f"no answer within {self._timeout_s:g} s")
                yield from [(key, self._lose(key, late)) for key in waiting]
                return
            key = event.session.node
            held = self._held.get(key)
            if held is None or held.session is not event.session:
                continue  # of a session that is over
            taken = self._misuse(key, event) or take(held, event)
            if key in waiting and taken is not None:
                waiting.discard(key)
                yield key, taken

    def _look(self, keys: Iterable[int], now: float) -> dict[int, Lost]:
        """Return those who are lost before the time is over."""
        lost = self._opener.ended(keys)
        for key in keys:
            session = self._held[key].session
            gone = session.connection is None and session.device is not None
            # The device gives up after its patience; then it takes another session.
            if gone and now - session.away_since > self._patience_s + _LOOK_S:
                reason = (
                    f"its stream broke, and not again within {self._patience_s:g} s"
                )
                lost.setdefault(key, Lost(reason))
        return {key: self._lose(key, why) for key, why in lost.items()}

    def _misuse(self, key: int, event: Event) -> Lost | None:
        """End the session of a device that is at fault."""
        if event.fault:
            what = f"sent what cannot be read: {event.fault}"
            return self._lose(key, Lost(what, at_fault=True))
        device = event.session.device
        if device is not None and self._partitions.setdefault(key, device) != device:
            what = f"claims partition id {device} now"
            return self._lose(key, Lost(what, at_fault=True))
        return None

    def _read(
        self, held: Held, event: Event, kind: type[Answer]
    ) -> Answer | Lost | None:
        """Read a reply; None if the event is another one."""
        if event.answered is None or held.request is None:
            return None
        known = self._partitions.get(held.session.node, held.session.node)
        try:
            reply = unpack_reply(event.answered.reply)
        except SlfacError as error:
            what = f"sent what cannot be read: {error}"
            return Lost(what, known, at_fault=True)
        if isinstance(reply, Lost):
            return replace(reply, device=known)
        if not isinstance(reply, kind) or reply.device != known:
            what = f"sent a {type(reply).__name__} of device {reply.device}"
            return Lost(what, known, at_fault=True)
        goes_on = isinstance(reply, TrainReply) and reply.smashed is not None
        held.is_ahead = held.pipelined and goes_on
        return replace(reply, carried=held.enter(event.answered))

    def _limit(self, request: Request, packed: Packed) -> int:
        """Return how many bytes the answer to a request may have."""
        frames = 2 * self._limits.max_frame_bytes
        if isinstance(request, EvaluateRequest):
            frames += request.max_bytes
        if request.begin is not None:
            self._front_bytes = max(self._front_bytes, packed.num_blob_bytes)
        # A trained front has the size of what was sent, in another dtype at most twice.
        return frames + 2 * self._front_bytes + _SLACK_BYTES

    def _lose(self, key: int, why: Lost) -> Lost:
        """End a session; return the loss with the device's partition id."""
        self._drop(key, why.reason)
        return replace(why, device=self._partitions.get(key, key))

    def _drop(self, key: int, reason: str = "") -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._service.end(held.session, reason)
