"""Streams, and messages for the devices from which the service cannot be reached."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from flwr_slfac.errors import SlfacError
from flwr_slfac.split import (
    Description,
    EvaluateReply,
    EvaluateRequest,
    Lost,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.transport.carrier import Seen
from flwr_slfac.transport.messages import MessageLink
from flwr_slfac.transport.stream.link import StreamLink

logger = logging.getLogger("flwr")

Request = TypeVar("Request", TrainRequest, EvaluateRequest)
Reply = TypeVar("Reply", TrainReply, EvaluateReply)
Carry = Callable[[Iterable[tuple[int, Request]]], Iterator[tuple[int, Reply | Lost]]]


class FallbackLink:
    """Carries requests over streams, or as messages where there can be no stream.

    Parameters
    ----------
    streams : StreamLink
        For all nodes but those in `unreachable`.
    messages : MessageLink
        For those.
    unreachable : mapping of int to str
        Those nodes and why; grows while streams are opened.
    """

    def __init__(
        self, streams: StreamLink, messages: MessageLink, unreachable: Mapping[int, str]
    ) -> None:
        self._streams, self._messages = streams, messages
        self._unreachable = unreachable
        self._logged: set[int] = set()

    def finish_by(self, deadline: float) -> None:
        """Wait for no answer after a deadline, as `time.monotonic` counts."""
        self._streams.finish_by(deadline)
        self._messages.finish_by(deadline)

    def hold(self, keys: Iterable[int]) -> None:
        """Let all devices go but these."""
        self._streams.hold(keys)

    def look(self) -> dict[int, Seen]:
        """Return what is seen of nodes."""
        return {**self._messages.look(), **self._streams.look()}

    def close(self) -> None:
        """Let all devices go."""
        self._streams.close()

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Return partition ids."""
        by_stream = [key for key in keys if key not in self._unreachable]
        try:
            found = self._streams.devices(by_stream)
        except SlfacError:
            if not self._others(keys):
                raise
            found = {}
        return {**found, **self._messages.devices(self._others(keys))}

    def describe(
        self, keys: list[int], *, channels: bool
    ) -> dict[int, Description | Lost]:
        """Ask devices for what they say of themselves."""
        by_stream = [key for key in keys if key not in self._unreachable]
        found = self._streams.describe(by_stream, channels=channels)
        rest = self._messages.describe(self._others(keys), channels=channels)
        return {**found, **rest}

    def train_each(
        self, requests: Iterable[tuple[int, TrainRequest]]
    ) -> Iterator[tuple[int, TrainReply | Lost]]:
        """Carry training requests."""
        streams, messages = self._streams, self._messages
        return self._carry(requests, streams.train_each, messages.train_each)

    def evaluate_each(
        self, requests: Iterable[tuple[int, EvaluateRequest]]
    ) -> Iterator[tuple[int, EvaluateReply | Lost]]:
        """Carry evaluation requests."""
        streams, messages = self._streams, self._messages
        return self._carry(requests, streams.evaluate_each, messages.evaluate_each)

    def _others(self, keys: Iterable[int]) -> list[int]:
        """Return those of these nodes that are out of reach; say so once."""
        found = [key for key in keys if key in self._unreachable]
        for key in found:
            if key not in self._logged:
                self._logged.add(key)
                why = self._unreachable[key]
                logger.warning("node %d goes on with messages: %s", key, why)
        return found

    def _carry(
        self,
        requests: Iterable[tuple[int, Request]],
        stream: Carry[Request, Reply],
        message: Carry[Request, Reply],
    ) -> Iterator[tuple[int, Reply | Lost]]:
        """Try streams; what turns out to be out of reach was asked nothing yet."""
        before = set(self._unreachable)
        asked: dict[int, Request] = {}
        answered: set[int] = set()

        def by_stream() -> Iterator[tuple[int, Request]]:
            for key, request in requests:
                asked[key] = request
                if key not in before:
                    yield key, request

        for key, answer in stream(by_stream()):
            if key not in self._unreachable:
                answered.add(key)
                yield key, answer
        rest = {key: asked[key] for key in self._others(asked.keys() - answered)}
        if rest:
            yield from message(rest.items())
