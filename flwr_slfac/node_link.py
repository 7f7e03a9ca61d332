"""A link that tells each node what the strategy has for it, until a deadline."""

import math
import time
from collections.abc import Callable, Mapping
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

    def train(
        self, requests: Mapping[int, TrainRequest]
    ) -> dict[int, TrainReply | Lost]:
        """Deliver training requests, each with what its node is to be told."""
        return self._in_time(requests, self._link.train)

    def evaluate(
        self, requests: Mapping[int, EvaluateRequest]
    ) -> dict[int, EvaluateReply | Lost]:
        """Deliver evaluation requests, each with what its node is to be told."""
        return self._in_time(requests, self._link.evaluate)

    def _in_time(
        self,
        requests: Mapping[int, Request],
        deliver: Callable[[Mapping[int, Request]], dict[int, Reply | Lost]],
    ) -> dict[int, Reply | Lost]:
        """Deliver while there is time; who has not answered by then is lost."""
        late = Lost(f"not done within the timeout of {self._timeout_s or 0:g} s")
        if time.monotonic() >= self._deadline:
            return dict.fromkeys(requests, late)
        told = {key: self._tell(key, request) for key, request in requests.items()}
        self._link.finish_by(self._deadline)
        try:
            answers = deliver(told)
        finally:
            self._link.finish_by(math.inf)
        if time.monotonic() < self._deadline:
            return answers
        return {
            key: replace(answer, reason=late.reason)
            if isinstance(answer, Lost)
            else answer
            for key, answer in answers.items()
        }

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
