"""What carries requests to devices and their replies back, as the rounds know it."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from flwr_slfac.split.protocol import (
    Description,
    EvaluateAnswer,
    EvaluateRequest,
    Lost,
    TrainAnswer,
    TrainRequest,
)


class Link(Protocol):
    """Carries requests to devices, all at once, and their replies back.

    What is asked of many devices comes one by one, and so do the answers: a request is
    under way while others are still coded, an answer is decoded while others are under
    way. All requests are taken before the first answer is given.
    """

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Return the partition id of each reachable device by its key."""
        ...

    def describe(
        self, keys: list[int], *, channels: bool
    ) -> dict[int, Description | Lost]:
        """Ask devices for their descriptions, with channels where wanted."""
        ...

    def train_each(
        self, requests: Iterable[tuple[int, TrainRequest]]
    ) -> Iterator[tuple[int, TrainAnswer]]:
        """Deliver training requests by key; give one answer for every key."""
        ...

    def evaluate_each(
        self, requests: Iterable[tuple[int, EvaluateRequest]]
    ) -> Iterator[tuple[int, EvaluateAnswer]]:
        """Deliver evaluation requests by key; give one answer for every key."""
        ...
