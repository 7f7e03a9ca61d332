"""A link over Flower's nodes, whatever it carries requests by."""

from collections.abc import Iterable
from typing import Protocol

from flwr_slfac.split import Link


class Carrier(Link, Protocol):
    """A `Link` whose keys are node ids; what it holds is let go by `close`."""

    def finish_by(self, deadline: float) -> None:
        """Wait for no answer after a deadline, as `time.monotonic` counts."""
        ...

    def hold(self, keys: Iterable[int]) -> None:
        """Let all devices go but these, which the round is about to train."""
        ...

    def close(self) -> None:
        """Let all devices go."""
        ...
