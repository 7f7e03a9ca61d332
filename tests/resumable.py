"""Runs of `SplitFed` in one process that can be broken off and resumed."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from torch.nn import CrossEntropyLoss
from torch.optim import SGD

from flwr_slfac import Device, RoundReport, SplitFed, client_app
from flwr_slfac.checkpoint import SECTIONS, CheckpointFolder, Saved, pack
from tests.grid_in_process import GridInProcess, process_of_a_run
from tests.split import builders

NUM_DEVICES = 3
SIZES = (20, 12, 16)


class BrokenOffError(Exception):
    """Ends a run as a power cut would."""


class BreaksOff:
    """A callback that breaks off before the checkpoint of a round."""

    def __init__(self, server_round: int) -> None:
        self._round = server_round

    def on_round(self, report: RoundReport) -> None:
        if report.server_round == self._round:
            raise BrokenOffError


@dataclass
class Case:
    """What a run is made of; the parts with state are made anew for each run."""

    strategy: Callable[[], Strategy] = FedAvg
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: Mapping[str, Any] = field(default_factory=dict)
    num_rounds: int = 4
    model: Callable[[], Any] = builders.halves

    def run(
        self,
        checkpoint: Path | None = None,
        *,
        breaks_off_in: int = 0,
        torch_seed: int = 0,
        callbacks: tuple[Any, ...] = (),
        **settings: Any,
    ) -> "Outcome":
        """Run to the end, or until it is broken off in a round."""
        torch.manual_seed(torch_seed)
        np.random.seed(torch_seed)
        front, back = self.model()
        own = {"up": "identity", "down": "identity", **self.settings}
        if isinstance(own.get("loss"), type):
            own["loss"] = own["loss"]()
        num_rounds = settings.pop("num_rounds", self.num_rounds)
        start = settings.pop("start", {})
        if breaks_off_in:
            callbacks = (*callbacks, BreaksOff(breaks_off_in))
        split = SplitFed(
            self.strategy(),
            **{
                "back": back,
                "loss": CrossEntropyLoss(),
                "optimizer": partial(SGD, lr=0.05, momentum=0.9),
                **own,
                "callbacks": callbacks,
                "checkpoint": checkpoint,
                **settings,
            },
        )
        grid = GridInProcess(client_app(self._device), NUM_DEVICES)
        seen: list[int] = []

        def central(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            seen.append(server_round)
            total = sum(float(a.numpy().astype(float).sum()) for a in arrays.values())
            return MetricRecord({"total": total})

        arrays = ArrayRecord(front.state_dict())
        try:
            with process_of_a_run():
                result = split.start(
                    grid, arrays, num_rounds=num_rounds, evaluate_fn=central, **start
                )
        except BrokenOffError:
            result = None
        return Outcome(split, result, seen)

    def _device(self, context: Context) -> Device:
        partition = int(context.node_config["partition-id"])
        return Device(
            self.model()[0],
            train_set=builders.data(SIZES[partition], partition),
            test_set=builders.data(10, 50 + partition),
            **{"optimizer": partial(SGD, lr=0.05), "batch_size": 8, **self.device},
        )


@dataclass
class Outcome:
    """A run that ended, or was broken off."""

    split: SplitFed
    result: Result | None
    central_rounds: list[int]

    def state(self) -> dict[str, Any]:
        """Return all that must be the same bits, times left out."""
        assert self.result is not None
        arrays = self.result.arrays
        return {
            "front": {n: (a.dtype, a.shape, a.data) for n, a in arrays.items()},
            "kept front": self.split.arrays == arrays,
            "back": {
                n: (str(t.dtype), t.numpy().tobytes())
                for n, t in self.split.back_state().items()
            },
            "traffic": untimed(self.split.traffic.rows()),
            "reports": untimed(self.split.reports),
            "costs": untimed(self.split.costs),
            "train": metrics(self.result.train_metrics_clientapp),
            "evaluate": metrics(self.result.evaluate_metrics_clientapp),
            "central": metrics(self.result.evaluate_metrics_serverapp),
        }


def untimed(rows: Any) -> list[dict[str, Any]]:
    """Return records without what a clock says."""
    return [
        {k: repr(v) for k, v in dataclasses.asdict(row).items() if not timed(k)}
        for row in rows
    ]


def metrics(by_round: Mapping[int, MetricRecord]) -> dict[int, dict[str, str]]:
    """Return metrics by round, without what a clock says."""
    return {
        r: {k: repr(v) for k, v in record.items() if not timed(k)}
        for r, record in by_round.items()
    }


def timed(name: str) -> bool:
    """Say whether a number is of seconds."""
    return name in ("seconds", "train_s", "compute_s", "train-seconds")


def assert_same_run(one: Outcome, other: Outcome) -> None:
    """Assert that two runs came to the same bits."""
    a, b = one.state(), other.state()
    assert a.keys() == b.keys()
    assert not [name for name in a if a[name] != b[name]]


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """Assert that the newest checkpoints of two runs hold the same, times left out."""
    a, b = (newest(path).sections for path in (one, other))
    for name in SECTIONS:
        texts, tensors = zip(
            pack(untimed_metrics(a[name])), pack(untimed_metrics(b[name])), strict=True
        )
        assert texts[0] == texts[1]
        assert tensors[0].keys() == tensors[1].keys()
        raw = [{n: bits(t) for n, t in each.items()} for each in tensors]
        assert not [n for n in raw[0] if raw[0][n] != raw[1][n]]


def bits(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def newest(path: Path) -> Saved:
    """Return the newest checkpoint of a run."""
    return next(iter(CheckpointFolder(path).whole(SECTIONS)))


def untimed_metrics(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section without the seconds in its metrics."""
    if "metrics" not in section:
        return section
    plain = {name: metrics(by_round) for name, by_round in section["metrics"].items()}
    return {**section, "metrics": plain}
