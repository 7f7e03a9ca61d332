"""What a run came to so far: reports by round, costs by device, files."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr_slfac.lightweight import StepCost
from flwr_slfac.progress import lines_of
from flwr_slfac.report import Callback, DeviceCost, RoundReport, table_head
from flwr_slfac.split import Link, RoundResult
from flwr_slfac.spool import SpooledList
from flwr_slfac.status import RunStatus
from flwr_slfac.traffic import Traffic

logger = logging.getLogger("flwr")

# Our choice: those of some dozen rounds of a hundred devices; the rest is in a file.
_COSTS_IN_MEMORY = 2000


class History:
    """Reports of a run's rounds.

    Parameters
    ----------
    callbacks : sequence of Callback
        Told of every round.

    Attributes
    ----------
    traffic : Traffic
        Everything that crossed.
    reports : list of RoundReport
        One a round.
    status : RunStatus
        How the run stands.
    costs : sequence of DeviceCost
        What each round cost each device that told.
    callbacks : list of Callback
        Told of every round.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.traffic = Traffic()
        self.reports: list[RoundReport] = []
        self.status = RunStatus(self.traffic, self.reports)
        self.costs = SpooledList(asdict, _cost_of, _COSTS_IN_MEMORY)
        self.callbacks = list(callbacks)
        self._headed = False

    def trained(self, server_round: int, result: RoundResult) -> None:
        """Enter what a round of training came to."""
        self.costs.extend(
            [
                DeviceCost.of(server_round, device, cost, self.traffic)
                for device, cost in sorted(result.costs.items())
            ]
        )
        report = RoundReport(
            server_round,
            num_devices=len(result.finished),
            lost=result.lost,
            loss=result.loss,
            train_s=result.wall_s,
            compute_s=result.compute_s,
            num_steps=result.num_steps,
        )
        report.count(self.traffic)
        self.reports.append(report)

    def train_metrics(self) -> dict[str, float]:
        """Return what the last round adds to a strategy's metrics of training."""
        if not self.reports:
            return {}
        report = self.reports[-1]
        return {
            **{f"bytes-{name}": num for name, num in report.num_bytes.items()},
            "compression-ratio": report.compression_ratio,
            "num-lost": len(report.lost),
            "train-seconds": report.train_s,
        }

    def evaluated(self, server_round: int, evaluation: Mapping[str, Any]) -> None:
        """Enter a round's evaluation and log the round."""
        report = self.reports[-1] if self.reports else None
        if report is None or report.server_round != server_round:
            return
        report.count(self.traffic)
        report.evaluation = _numbers(evaluation)
        if not self._headed:
            logger.info("%s", table_head())
        self._headed = True
        logger.info("%s", report.line())

    def started(self, strategy: Any) -> None:
        """Tell the callbacks that want to know of the strategy before a run."""
        for callback in self.callbacks:
            if (tell := getattr(callback, "on_start", None)) is not None:
                tell(strategy)

    def around(self, link: Link, server_round: int) -> Link:
        """Return a round's link with what callbacks put between it and the devices."""
        for callback in self.callbacks:
            if (put := getattr(callback, "on_link", None)) is not None:
                link = put(link, server_round)
        return link

    @contextmanager
    def running(self) -> Iterator[None]:
        """Log how the run stands; tell the callbacks that want to know of its end."""
        try:
            with lines_of(self.status):
                yield
        finally:
            for callback in reversed(self.callbacks):
                if (tell := getattr(callback, "on_end", None)) is not None:
                    tell()

    def finished(self, server_round: int, central: Mapping[str, Any]) -> str:
        """Tell the callbacks of a round; return the class of one that ends the run."""
        report = self.reports[-1] if self.reports else None
        if report is None or report.server_round != server_round:
            return ""
        report.central = _numbers(central)
        said = [(type(c).__name__, c.on_round(report)) for c in self.callbacks]
        return next((name for name, answer in said if answer is True), "")

    def entry(self, server_round: int) -> dict[str, Any]:
        """Return what a round came to, for `restore`."""
        report = next(
            (r for r in reversed(self.reports) if r.server_round == server_round), None
        )
        costs: list[DeviceCost] = []
        for number in range(len(self.costs) - 1, -1, -1):
            cost = self.costs[number]
            if cost.server_round < server_round:
                break
            if cost.server_round == server_round:
                costs.insert(0, cost)
        return {
            "traffic": [
                asdict(row) for row in self.traffic.rows(server_round=server_round)
            ],
            "report": None if report is None else asdict(report),
            "costs": [asdict(cost) for cost in costs],
        }

    def restore(self, entry: Mapping[str, Any]) -> None:
        """Enter what a round of an earlier run came to."""
        self.traffic.restore(entry["traffic"])
        self.costs.extend([_cost_of(fields) for fields in entry["costs"]])
        if entry["report"] is not None:
            self.reports.append(RoundReport(**entry["report"]))

    def write(self, folder: Path) -> None:
        """Write ``rounds.json``, ``traffic.csv`` and ``traffic.json`` into a folder.

        With lightweight training ``devices.json`` too.
        """
        self.traffic.write(folder / "traffic")
        rounds = [asdict(report) for report in self.reports]
        (folder / "rounds.json").write_text(json.dumps(rounds, indent=1))
        if self.costs:
            costs = [asdict(cost) for cost in self.costs]
            (folder / "devices.json").write_text(json.dumps(costs, indent=1))


def _cost_of(fields: Mapping[str, Any]) -> DeviceCost:
    return DeviceCost(**{**fields, "step": StepCost(**fields["step"])})


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are one number each."""
    return {k: float(v) for k, v in metrics.items() if not isinstance(v, list)}
