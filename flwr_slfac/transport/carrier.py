"""A link over Flower's nodes, whatever it carries requests by."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from flwr_slfac.split import Link


@dataclass(frozen=True)
class Seen:
    """What a carrier sees of a node just now.

    Parameters
    ----------
    device : int or None
        Partition id; None if the node has not told it.
    connected : bool
        Whether its stream is open; always so where messages carry the steps.
    asked_at : float or None
        When it was asked what it has not answered (`time.monotonic`); None if nothing.
    """

    device: int | None
    connected: bool
    asked_at: float | None


class Carrier(Link, Protocol):
    """A `Link` whose keys are node ids; what it holds is let go by `close`."""

    def finish_by(self, deadline: float) -> None:
        """Wait for no answer after a deadline, as `time.monotonic` counts."""
        ...

    def hold(self, keys: Iterable[int]) -> None:
        """Let all devices go but these, which the round is about to train."""
        ...

    def look(self) -> dict[int, Seen]:
        """Return what is seen of nodes that are held or asked; from any thread."""
        ...

    def close(self) -> None:
        """Let all devices go."""
        ...
