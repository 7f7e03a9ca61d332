"""The rounds of a run, as Flower's `Strategy.start` runs them, from any round to any.

Flower's own loop goes from the first round to the last. This one does the same calls in
the same order, and can begin after a round that was saved, and end when told to.
"""

import io
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_slfac.checkpoint import Session
from flwr_slfac.run_state import Progress, RunState

logger = logging.getLogger("flwr")

EvaluateFn = Callable[[int, ArrayRecord], "MetricRecord | None"]


class Told(Protocol):
    """Who is told of the run; `History` is one."""

    def started(self, strategy: Strategy) -> None:
        """Be told before the first round."""
        ...

    def finished(self, server_round: int, central: Mapping[str, Any]) -> str:
        """Return the class of a callback that ends the run, or nothing."""
        ...


def run_rounds(
    strategy: Strategy,
    arguments: Mapping[str, Any],
    told: Told,
    run: RunState,
    session: Session,
) -> Result:
    """Run the rounds that are left, and return what all of them came to.

    Parameters
    ----------
    strategy : Strategy
        What trains, evaluates and aggregates.
    arguments : mapping
        Those of Flower's `start`, by name.
    told : Told
        Asked after each round whether the run ends.
    run : RunState
        How far the run has come.
    session : Session
        Saves it after each round.
    """
    progress, num_rounds = run.progress, run.num_rounds
    _log_start(strategy, arguments)
    told.started(strategy)
    start = time.time()
    evaluate_fn: EvaluateFn | None = arguments["evaluate_fn"]
    if evaluate_fn and not progress.server_round:
        found = evaluate_fn(0, progress.arrays)
        logger.info("Initial global evaluation results: %s", found)
        if found is not None:
            progress.result.evaluate_metrics_serverapp[0] = found
    if run.stopped_by:
        logger.info("The run was ended by %s before", run.stopped_by)
        num_rounds = progress.server_round
    for current in range(progress.server_round + 1, num_rounds + 1):
        logger.info("")
        logger.info("[ROUND %s/%s]", current, num_rounds)
        central = _run_round(strategy, arguments, progress, current)
        progress.server_round = current
        stopped_by = told.finished(current, central)
        progress.stopped_by = progress.stopped_by or stopped_by
        # A run does not end while devices hold fronts that nobody has aggregated.
        ends = bool(progress.stopped_by) and run.aggregates
        session.save(last=ends or current == num_rounds)
        if ends:
            logger.info("%s ends the run after this round", progress.stopped_by)
            break
    _log_end(progress.result, time.time() - start)
    return progress.result


def _run_round(
    strategy: Strategy, arguments: Mapping[str, Any], progress: Progress, current: int
) -> Mapping[str, Any]:
    """Train, evaluate on devices and on the server; return the last one's metrics."""
    result = progress.result
    grid: Grid = arguments["grid"]
    config = progress.configs["train_config"]
    messages = strategy.configure_train(current, progress.arrays, config, grid)
    replies = grid.send_and_receive(messages, timeout=arguments["timeout"])
    arrays, metrics = strategy.aggregate_train(current, replies)
    if arrays is not None:
        result.arrays = progress.arrays = arrays
    if metrics is not None:
        logger.info("\t└──> Aggregated MetricRecord: %s", metrics)
        result.train_metrics_clientapp[current] = metrics
    config = progress.configs["evaluate_config"]
    messages = strategy.configure_evaluate(current, progress.arrays, config, grid)
    replies = grid.send_and_receive(messages, timeout=arguments["timeout"])
    metrics = strategy.aggregate_evaluate(current, replies)
    if metrics is not None:
        logger.info("\t└──> Aggregated MetricRecord: %s", metrics)
        result.evaluate_metrics_clientapp[current] = metrics
    if not arguments["evaluate_fn"]:
        return {}
    logger.info("Global evaluation")
    evaluate_fn: EvaluateFn = arguments["evaluate_fn"]
    found = evaluate_fn(current, progress.arrays)
    logger.info("\t└──> MetricRecord: %s", found)
    if found is None:
        return {}
    result.evaluate_metrics_serverapp[current] = found
    return found


def _log_start(strategy: Strategy, arguments: Mapping[str, Any]) -> None:
    arrays = arguments["initial_arrays"]
    logger.info("Starting %s strategy:", type(strategy).__name__)
    logger.info("\t├── Number of rounds: %d", arguments["num_rounds"])
    size = sum(len(array.data) for array in arrays.values()) / 1024**2
    logger.info("\t├── ArrayRecord (%.2f MB)", size)
    for what in ("train", "evaluate"):
        config = arguments[f"{what}_config"] or {}
        # Bytes may be long, or secret.
        shown = (
            f"'{k}': {'<bytes>' if isinstance(v, bytes) else v}"
            for k, v in config.items()
        )
        text = f"{{{', '.join(shown)}}}" if config else "(empty!)"
        logger.info("\t├── ConfigRecord (%s): %s", what, text)
    strategy.summary()
    logger.info("")


def _log_end(result: Result, seconds: float) -> None:
    logger.info("")
    logger.info("Strategy execution finished in %.2fs", seconds)
    logger.info("")
    logger.info("Final results:")
    logger.info("")
    for line in io.StringIO(str(result)):
        logger.info("\t%s", line.strip("\n"))
    logger.info("")
