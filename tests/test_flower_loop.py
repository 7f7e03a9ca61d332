"""Our loop over rounds is Flower's."""

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_slfac.checkpoint import Saving
from flwr_slfac.flower_loop import run_rounds
from flwr_slfac.history import History
from flwr_slfac.run_state import RunState
from tests.grid_in_process import GridInProcess


class Told(Strategy):
    """A strategy that notes what it is called with, and makes something of it.

    Parameters
    ----------
    loop : callable
        What runs its rounds.
    """

    def __init__(self, loop: Callable[..., Result]) -> None:
        self.loop = loop
        self.calls: list[Any] = []

    def start(self, *args: Any, **kwargs: Any) -> Result:
        return self.loop(self, *args, **kwargs)

    def _note(self, name: str, server_round: int, *what: Any) -> None:
        self.calls.append((name, server_round, *map(repr, what)))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._note("configure_train", server_round, arrays, dict(config))
        config["seen"] = server_round
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self._note("aggregate_train", server_round, list(replies))
        if server_round == 2:
            return None, None
        arrays = ArrayRecord({"w": Array(np.full(2, float(server_round)))})
        return arrays, MetricRecord({"loss": 1 / server_round})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._note("configure_evaluate", server_round, arrays, dict(config))
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        self._note("aggregate_evaluate", server_round, list(replies))
        return None if server_round == 2 else MetricRecord({"acc": 0.5})

    def summary(self) -> None:
        self._note("summary", 0)


def ours(strategy: Strategy, grid: Grid, **kwargs: Any) -> Result:
    """Run the rounds of a strategy in our loop."""
    arguments = {
        "grid": grid,
        **{"timeout": 3600.0, "evaluate_fn": None},
        **{"train_config": None, "evaluate_config": None},
        **kwargs,
    }
    saving, history = Saving(None, 1, 3, resume=False), History()
    run = RunState(None, history, None, arguments)  # type: ignore[arg-type]
    with saving.session(run) as session:
        return run_rounds(strategy, arguments, history, run, session)


@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("configured", [False, True])
def test_calls_results_and_log_are_those_of_flower(
    evaluates: bool, configured: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The same calls in the same order with the same arguments, to the last line."""
    found = []
    for loop in (Strategy.start, ours):
        strategy = Told(loop)
        caplog.clear()

        def central(
            server_round: int, arrays: ArrayRecord, strategy: Told = strategy
        ) -> MetricRecord | None:
            strategy.calls.append(("central", server_round, repr(arrays)))
            return None if server_round == 3 else MetricRecord({"c": server_round})

        settings: dict[str, Any] = {}
        if evaluates:
            settings["evaluate_fn"] = central
        if configured:
            settings["train_config"] = ConfigRecord({"lr": 0.1, "name": "a"})
        with caplog.at_level(logging.INFO, "flwr"):
            result = strategy.start(
                GridInProcess(ClientApp(), 2),
                initial_arrays=ArrayRecord({"w": Array(np.zeros(2))}),
                num_rounds=4,
                **settings,
            )
        text = re.sub(r"in [0-9.]+s", "in some time", caplog.text)
        text = re.sub(r"\w+\.py:\d+", "", text)
        found.append((strategy.calls, result, text))
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]
    assert found[0][2] == found[1][2]
