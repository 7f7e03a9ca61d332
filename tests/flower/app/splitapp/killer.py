"""Kills the ServerApp at a moment of a round, as a power cut would."""

import os
import signal
from collections.abc import Callable
from typing import Any

from flwr_slfac import RoundReport


class Killer:
    """A callback that kills this process.

    Parameters
    ----------
    moment : {"before the save", "in the save", "after the save"}
        When in the round, as seen from its checkpoint.
    server_round : int
        The round.
    """

    def __init__(self, moment: str, server_round: int) -> None:
        self._moment, self._round = moment, server_round

    def on_round(self, report: RoundReport) -> None:
        after = self._round + (self._moment == "after the save")
        if report.server_round != after:
            return
        if self._moment == "in the save":
            os.fsync = killing(os.fsync, 3)
        else:
            kill()


def killing(work: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Return a function that works, and kills the process after so many calls."""
    calls = 0

    def call(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        work(*arguments, **settings)
        calls += 1
        if calls == number:
            kill()

    return call


def kill() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)
