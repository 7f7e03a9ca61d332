"""What of a run over Flower outlives a round: gathered for a checkpoint, put back."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Result

import flwr_slfac.flower_kinds  # noqa: F401 - makes Flower's records known
from flwr_slfac.checkpoint import (
    Ledger,
    described,
    modules_of,
    random_states,
    restore_random,
    shapes_of,
)
from flwr_slfac.errors import SettingError
from flwr_slfac.flower_rounds import FlowerRounds
from flwr_slfac.history import History
from flwr_slfac.report import Callback
from flwr_slfac.split import KEPT
from flwr_slfac.strategy_state import StrategyState
from flwr_slfac.wrapped import WrappedStrategy

logger = logging.getLogger("flwr")

_METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp")
_CENTRAL = "evaluate_metrics_serverapp"
_CONFIGS = ("train_config", "evaluate_config")


@dataclass
class Progress:
    """How far a run has come.

    Parameters
    ----------
    arrays : ArrayRecord
        The device-side model as it is served.
    configs : dict of str to ConfigRecord
        ``train_config`` and ``evaluate_config``, which strategies may change.
    result : Result
        What Flower's `start` returns, so far.
    server_round : int
        The last round that was finished; 0 for none.
    stopped_by : str
        Class of the callback that ended the run; empty for none.
    """

    arrays: ArrayRecord
    configs: dict[str, ConfigRecord]
    result: Result = field(default_factory=Result)
    server_round: int = 0
    stopped_by: str = ""

    @classmethod
    def at_first(cls, arguments: Mapping[str, Any]) -> "Progress":
        """Return that of a run that begins, from the arguments of Flower's `start`."""
        given = {name: arguments[name] for name in _CONFIGS}
        configs = {k: ConfigRecord() if c is None else c for k, c in given.items()}
        return cls(arguments["initial_arrays"], configs)


class RunState:
    """The parts of a run of which something outlives a round.

    Parameters
    ----------
    rounds : FlowerRounds
        What trains.
    history : History
        What rounds came to.
    wrapped : WrappedStrategy
        The strategy, as it is before the first round.
    arguments : mapping
        Those of Flower's `start`, by name.

    Attributes
    ----------
    progress : Progress
        How far the run has come.
    num_rounds : int
        The round after which it is to end.
    """

    def __init__(
        self,
        rounds: FlowerRounds,
        history: History,
        wrapped: WrappedStrategy,
        arguments: Mapping[str, Any],
    ) -> None:
        self._rounds, self._history, self._wrapped = rounds, history, wrapped
        self._arguments = arguments
        self._ledger = Ledger()
        self.progress = Progress.at_first(arguments)
        self.num_rounds: int = arguments["num_rounds"]

    @cached_property
    def _strategy(self) -> StrategyState:
        """What the strategy remembers; made for `settings`, before the first round."""
        return StrategyState(self._wrapped.inner)

    def settings(self) -> dict[str, str]:
        """Return what makes the run another one; before the first round."""
        arguments = self._arguments
        configs = {name: dict(arguments[name] or {}) for name in _CONFIGS}
        back = self._rounds.server.back
        return {
            **described(self._rounds.settings()),
            **described({"seeded_sampling": self._wrapped.seeded, **configs}),
            **described(self._strategy.settings()),
            **shapes_of("front", arguments["initial_arrays"]),
            **shapes_of("back", back.state_dict()),
            **modules_of("back", back),
        }

    @property
    def callbacks(self) -> list[Callback]:
        """Told of every round."""
        return self._history.callbacks

    @property
    def server_round(self) -> int:
        """The last round that was finished; 0 for none."""
        return self.progress.server_round

    @property
    def stopped_by(self) -> str:
        """Class of a callback that ended the run and is still there; else empty."""
        present = {type(each).__name__ for each in self.callbacks}
        name = self.progress.stopped_by
        return name if name in present else ""

    @property
    def aggregates(self) -> bool:
        """Whether no front stays on the devices after the last round."""
        return self._rounds.rounds.run.fronts.aggregates(self.server_round)

    @property
    def is_forced(self) -> bool:
        """Whether fronts were aggregated only because no round follows."""
        return self._rounds.rounds.run.fronts.is_forced(self.server_round)

    def metrics(self) -> dict[str, float]:
        """Return what the last round came to."""
        reports = self._history.reports[-1:]
        found = [r.scalars() for r in reports if r.server_round == self.server_round]
        return found[0] if found else {}

    def sections(self) -> dict[str, Any]:
        """Return what a checkpoint holds but for `rounds`.

        Raises
        ------
        CheckpointError
            If the wrapped strategy remembers what cannot be stored.
        """
        progress, result = self.progress, self.progress.result
        state = {
            "run": self._rounds.rounds.run.state(),
            "strategy": self._strategy.state(),
            "callbacks": [_asked(each) for each in self.callbacks],
            "random": random_states(),
            "aggregated": bool(result.arrays),
            "metrics": {name: getattr(result, name) for name in (*_METRICS, _CENTRAL)},
            "configs": progress.configs,
            "stopped_by": progress.stopped_by,
        }
        return {
            "front": progress.arrays.to_torch_state_dict(),
            "back": self._rounds.server.snapshot(),
            "state": state,
        }

    def rounds(self) -> bytes:
        """Return what all rounds came to."""
        for number in range(len(self._ledger) + 1, self.server_round + 1):
            self._ledger.add(self._history.entry(number))
        return self._ledger.to_bytes()

    def load(
        self, sections: Mapping[str, Any], rounds: bytes, server_round: int
    ) -> None:
        """Bring all parts to what was saved; warn of what devices kept.

        Raises
        ------
        SettingError
            If rounds were run already.
        CheckpointError
            If the strategy or the callbacks are others.
        """
        if self._history.reports:
            raise SettingError(
                "this SplitFed has run rounds already; make a new one to resume"
            )
        state = sections["state"]
        self._rounds.server.back.load_state_dict(sections["back"])
        self._rounds.rounds.run.load(state["run"])
        self._strategy.load(state["strategy"])
        _give_back(self.callbacks, state["callbacks"])
        self._ledger = Ledger(rounds)
        for entry in self._ledger:
            self._history.restore(entry)
        arrays = ArrayRecord(sections["front"])
        result = Result(**state["metrics"])
        if state["aggregated"]:
            result.arrays = arrays
        _warn_of_kept(state["run"]["kept"])
        restore_random(state["random"])
        self.progress = Progress(
            arrays, state["configs"], result, server_round, state["stopped_by"]
        )


def _asked(callback: Callback) -> Any:
    """Return the class of a callback, and what it remembers if it says so."""
    ask = getattr(callback, "state_dict", None)
    return type(callback).__name__, None if ask is None else ask()


def _give_back(callbacks: list[Callback], states: list[Any]) -> None:
    """Give callbacks what those of their class and order remembered."""
    left = list(states)
    for callback in callbacks:
        name = type(callback).__name__
        own = next((each for each in left if each[0] == name), None)
        if own is not None:
            left.remove(own)
        if hasattr(callback, "load_state_dict"):
            if own is None or own[1] is None:
                logger.warning("%s remembers no earlier round: it is new here", name)
            else:
                callback.load_state_dict(own[1])
    for name, state in left:
        if state is not None:
            logger.warning("%s of the saved run is not there any more", name)


def _warn_of_kept(kept: Mapping[int, tuple[str, ...]]) -> None:
    """Name what was on devices and is gone with the run that ended."""
    for name, text in KEPT.items():
        devices = sorted(device for device, names in kept.items() if name in names)
        if devices:
            logger.warning(
                "%s start anew on devices %s: they were kept on the devices by the run "
                "that ended, so the next rounds are not bit for bit those it would "
                "have run",
                text,
                ", ".join(map(str, devices)),
            )
