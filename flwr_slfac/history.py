"""What a run came to so far: reports by round, costs by device, files."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr_slfac.lightweight import StepCost
from flwr_slfac.report import Callback, DeviceCost, RoundReport, table_head
from flwr_slfac.split import RoundResult
from flwr_slfac.spool import SpooledList
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
    costs : sequence of DeviceCost
        What each round cost each device that told.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.traffic = Traffic()
        self.reports: list[RoundReport] = []
        self.costs = SpooledList(asdict, _cost_of, _COSTS_IN_MEMORY)
        self._callbacks = list(callbacks)

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

    def evaluated(self, server_round: int, evaluation: Mapping[str, float]) -> None:
        """Enter a round's evaluation; log the round and tell the callbacks."""
        report = self.reports[-1] if self.reports else None
        if report is None or report.server_round != server_round:
            return
        report.count(self.traffic)
        report.evaluation = dict(evaluation)
        if len(self.reports) == 1:
            logger.info("%s", table_head())
        logger.info("%s", report.line())
        for callback in self._callbacks:
            callback.on_round(report)

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
