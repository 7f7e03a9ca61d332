"""Callbacks that keep the best models of a run, and that end it when it is done."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from flwr.app import ArrayRecord

from flwr_slfac.checkpoint import CheckpointFolder, Saving, pack
from flwr_slfac.counts import require_count
from flwr_slfac.errors import SettingError
from flwr_slfac.report import RoundReport

logger = logging.getLogger("flwr")

Mode = Literal["max", "min"]


class Models(Protocol):
    """What has the models of a run; `SplitFed` is one."""

    arrays: ArrayRecord | None
    saving: Saving

    def back_state(self) -> dict[str, torch.Tensor]:
        """Return the server-side model's state dict."""
        ...


class _Watch:
    """The best value of a metric so far.

    Parameters
    ----------
    metric : str
        Of `RoundReport.evaluation`, or a name of `RoundReport.scalars`.
    mode : {"max", "min"}
        What is better.
    min_delta : float
        By how much a value must be better, at the least.
    """

    def __init__(self, metric: str, mode: Mode, min_delta: float = 0.0) -> None:
        if mode not in get_args(Mode):
            raise SettingError(f"mode is {mode!r}; use 'max' or 'min'")
        if not min_delta >= 0:
            raise SettingError(f"min_delta is {min_delta!r}; give 0 or more")
        self.metric, self.mode, self.min_delta = metric, mode, min_delta
        self.best: float | None = None
        self.best_round = 0

    def look(self, report: RoundReport) -> bool | None:
        """Say whether a round is the best so far; None if it has no such metric.

        Raises
        ------
        SettingError
            If the round was evaluated, and has no such metric.
        """
        value = self._value_of(report)
        if value is None:
            return None
        sign = 1 if self.mode == "max" else -1
        if math.isnan(value):
            return False
        if self.best is not None and sign * (value - self.best) <= self.min_delta:
            return False
        self.best, self.best_round = value, report.server_round
        return True

    def _value_of(self, report: RoundReport) -> float | None:
        values = {**report.scalars(), **report.evaluation}
        if self.metric in values:
            return float(values[self.metric])
        central = self.metric.startswith("central/")
        if not (report.central if central else report.evaluation):
            return None
        raise SettingError(
            f"round {report.server_round} has no metric {self.metric!r}; there are "
            f"{', '.join(values)}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, and of what."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises
        ------
        SettingError
            If another metric was watched.
        """
        for name in ("metric", "mode", "min_delta"):
            if state[name] != getattr(self, name):
                raise SettingError(
                    f"the saved run watched {name}={state[name]!r}, this one "
                    f"{getattr(self, name)!r}; resume with the same, or leave the "
                    "callback out"
                )
        vars(self).update(state)


class SaveBest:
    """Keeps the models of the best round so far, for `load_checkpoint`.

    Parameters
    ----------
    folder : str or Path
        Where they are kept; not that of ``SplitFed(checkpoint=...)``. A run that starts
        anew wants it empty, unless it was told ``resume=True``.
    metric : str (default: "accuracy")
        Of the federated evaluation, or a name of `RoundReport.scalars`, such as
        ``"central/accuracy"`` of `evaluate_fn` or ``"train/loss"``. Rounds without it
        are passed over.
    mode : {"max", "min"} (default: "max")
        What is better.

    Attributes
    ----------
    best : float or None
        The best value so far.
    best_round : int
        Its round; 0 before there is one.

    Raises
    ------
    SettingError
        If the mode is not known.
    """

    def __init__(
        self, folder: str | Path, metric: str = "accuracy", mode: Mode = "max"
    ) -> None:
        self._folder = CheckpointFolder(Path(folder), keep=1)
        self._watch = _Watch(metric, mode)
        self._models: Models | None = None

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return self._watch.best

    @property
    def best_round(self) -> int:
        """Round of the best value; 0 before there is one."""
        return self._watch.best_round

    def on_start(self, strategy: Models) -> None:
        """Take note of whose models these are.

        Raises
        ------
        SettingError
            If the folder is taken.
        """
        self._models = strategy
        own = strategy.saving.folder
        if own is not None and own.path == self._folder.path:
            raise SettingError(
                f"SaveBest and the run's own checkpoints both go to {own.path}; give "
                "SaveBest another folder"
            )
        if self._folder.all() and not self.best_round and not strategy.saving.resume:
            raise SettingError(
                f"{self._folder.path} holds the best models of another run; give "
                "SaveBest another folder, or remove it"
            )

    def on_round(self, report: RoundReport) -> None:
        """Keep the models if the round is the best so far."""
        models = self._models
        if models is None or models.arrays is None or not self._watch.look(report):
            return
        sections = {
            "front": models.arrays.to_torch_state_dict(),
            "back": models.back_state(),
        }
        facts = {"settings": {}, "metrics": pack(report.scalars())[0]}
        path = self._folder.save(report.server_round, sections, b"", facts)
        logger.info("Best %s so far, %s: %s", self._watch.metric, self.best, path)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered of earlier rounds."""
        return self._watch.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises
        ------
        SettingError
            If another metric was watched.
        """
        self._watch.load_state_dict(state)


class StopEarly:
    """Ends the run when a metric has not become better for some rounds.

    Parameters
    ----------
    metric : str (default: "loss")
        As in `SaveBest`; rounds without it do not count.
    patience : int (default: 5)
        So many rounds in a row that are no better end the run.
    mode : {"min", "max"} (default: "min")
        What is better.
    min_delta : float (default: 0)
        Better by no more than this is no better.

    Raises
    ------
    SettingError
        If a setting is out of range.

    Examples
    --------
    >>> stop = StopEarly(patience=2)
    >>> losses = [1.0, 0.5, 0.7, 0.6]
    >>> reports = [RoundReport(r, 1, {}, 0, {"loss": x}) for r, x in enumerate(losses)]
    >>> [stop.on_round(report) for report in reports]
    [False, False, False, True]
    """

    def __init__(
        self,
        metric: str = "loss",
        patience: int = 5,
        mode: Mode = "min",
        min_delta: float = 0.0,
    ) -> None:
        require_count("patience", patience)
        self._watch = _Watch(metric, mode, min_delta)
        self._patience = patience
        self._waited = 0

    def on_round(self, report: RoundReport) -> bool:
        """Return whether the run ends after this round."""
        better = self._watch.look(report)
        if better is not None:
            self._waited = 0 if better else self._waited + 1
        return self._waited >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered of earlier rounds."""
        return {**self._watch.state_dict(), "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises
        ------
        SettingError
            If another metric was watched.
        """
        watched = dict(state)
        self._waited = watched.pop("waited")
        self._watch.load_state_dict(watched)
