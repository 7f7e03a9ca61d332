"""A link that tells each node what the strategy has for it, until a deadline."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from flwr_slfac.sampled import Sampled
from flwr_slfac.split import (
    Begin,
    Description,
    EvaluateReply,
    EvaluateRequest,
    Lost,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.states import State
from flwr_slfac.transport import Carrier

Request = TypeVar("Request", TrainRequest, EvaluateRequest)
Reply = TypeVar("Reply", TrainReply, EvaluateReply)


class NodeLink:
    """Carries requests of one round; keys are node ids.

    Parameters
    ----------
    link : Carrier
        What carries them.
    sampled : Sampled
        What each node is to be told.
    timeout_s : float or None
        From now on, how long the round may take; a node that is not done by then is
        lost. None for any time.
    """

    def __init__(
        self, link: Carrier, sampled: Sampled, timeout_s: float | None
    ) -> None:
        self._link, self._sampled = link, sampled
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + (
            math.inf if timeout_s is None else timeout_s
        )

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Ask nodes for their partition ids."""
        return self._link.devices(keys)

    def describe(
        self, keys: list[int], *, channels: bool
    ) -> dict[int, Description | Lost]:
        """Ask nodes for what their devices say of themselves."""
        return self._link.describe(keys, channels=channels)

    def train_each(
        self, requests: Iterable[tuple[int, TrainRequest]]
    ) -> Iterator[tuple[int, TrainReply | Lost]]:
        """Deliver training requests, each with what its node is to be told."""
        return self._in_time(requests, self._link.train_each)

    def evaluate_each(
        self, requests: Iterable[tuple[int, EvaluateRequest]]
    ) -> Iterator[tuple[int, EvaluateReply | Lost]]:
        """Deliver evaluation requests, each with what its node is to be told."""
        return self._in_time(requests, self._link.evaluate_each)

    def _in_time(
        self,
        requests: Iterable[tuple[int, Request]],
        deliver: Callable[
            [Iterable[tuple[int, Request]]], Iterator[tuple[int, Reply | Lost]]
        ],
    ) -> Iterator[tuple[int, Reply | Lost]]:
        """Deliver while there is time; who has not answered by then is lost."""
        late = Lost(f"not done within the timeout of {self._timeout_s or 0:g} s")
        if self._is_over:
            yield from ((key, late) for key, _ in requests)
            return
        self._link.finish_by(self._deadline)
        try:
            told = ((key, self._tell(key, request)) for key, request in requests)
            for key, answer in deliver(told):
                if isinstance(answer, Lost) and self._is_over:
                    yield key, replace(answer, reason=late.reason)
                else:
                    yield key, answer
        finally:
            self._link.finish_by(math.inf)

    @property
    def _is_over(self) -> bool:
        return time.monotonic() >= self._deadline

    def _tell(self, key: int, request: Request) -> Request:
        begin = request.begin
        if begin is None:
            return request
        own = self._sampled.of(key)
        return replace(
            request,
            begin=replace(
                begin,
                front=self._front(key, begin),
                proximal_mu=own.proximal_mu,
                told=own.told,
            ),
        )

    def _front(self, key: int, begin: Begin) -> State | None:
        # What a relay hands on, or a mask leaves, is not the strategy's.
        if self._sampled.is_uniform:
            return begin.front
        return self._sampled.of(key).front
