"""An optimizer and its scheduler, whose progress can be carried between rounds."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from flwr_slfac.split.control_variates import ControlVariates
from flwr_slfac.split.device import OptimizerFactory, SchedulerFactory, TrainedFront


class Tuning:
    """Optimizer, scheduler and gradient clipping of one half.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        What is trained.
    optimizer, scheduler, scheduler_per, clip_norm
        As in `Device`.
    control : bool (default: False)
        Whether gradients have control variates.

    Raises
    ------
    SettingError
        If there are none for this optimizer.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        scheduler_per: Literal["round", "step"],
        clip_norm: float | None,
        *,
        control: bool = False,
    ) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        # A half without trainable weights (a frozen or empty front) has no optimizer.
        self.optimizer = optimizer(self._parameters) if self._parameters else None
        self.scheduler = (
            scheduler(self.optimizer) if scheduler and self.optimizer else None
        )
        self._per = scheduler_per
        self._clip_norm = clip_norm
        self._control = ControlVariates(self.optimizer, clip_norm) if control else None

    def zero_grad(self) -> None:
        """Drop all gradients."""
        if self.optimizer:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Clip, update the weights, and advance a scheduler that goes per step."""
        if not self.optimizer:
            return
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        if self._control:
            self._control.apply()
        self.optimizer.step()
        if self.scheduler and self._per == "step":
            self.scheduler.step()

    @contextmanager
    def carried(self) -> Iterator[None]:
        """Put a mean in the weights' place, within."""
        if self._control:
            self._control.leave()
        yield
        if self._control:
            self._control.arrive()

    def start_round(self, server_round: int) -> None:
        """Bring a scheduler that goes per round to this round (from 1)."""
        if self._control:
            self._control.start_round()
        if not self.scheduler or self._per != "round":
            return
        with warnings.catch_warnings():
            # torch warns when no optimizer step lies between two scheduler steps.
            warnings.simplefilter("ignore", UserWarning)
            while self.scheduler.last_epoch < server_round - 1:
                self.scheduler.step()

    def state(self, *, moments: bool) -> dict[str, Any]:
        """Return hyperparameters and schedule, and the moments if asked."""
        if not self.optimizer:
            return {}
        optimizer = self.optimizer.state_dict()
        if not moments:
            optimizer["state"] = {}
        schedule = self.scheduler.state_dict() if self.scheduler else None
        control = {"control": self._control.state()} if self._control else {}
        return {"optimizer": optimizer, "scheduler": schedule, **control}

    def load(self, state: dict[str, Any], *, moments: bool = True) -> None:
        """Go on from a state that `state` returned; without its moments if asked."""
        if not state or not self.optimizer:
            return
        optimizer = state["optimizer"]
        if not moments:
            optimizer = {**optimizer, "state": {}}
        self.optimizer.load_state_dict(optimizer)
        _undo_casts(self.optimizer, optimizer["state"])
        if self.scheduler and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self._control and moments and "control" in state:
            self._control.load(state["control"])

    def settings(self) -> dict[str, Any]:
        """Return what the user set, as it is before the first step."""
        if not self.optimizer:
            return {"optimizer": None, "scheduler": None}
        groups = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimizer.param_groups
        ]
        schedule = None
        if self.scheduler:
            schedule = [type(self.scheduler).__name__, self.scheduler.state_dict()]
        return {
            "optimizer": [type(self.optimizer).__name__, groups],
            "scheduler": schedule,
            "scheduler_per": self._per,
            "clip_norm": self._clip_norm,
        }


def tuning_of(
    device: TrainedFront, parameters: Iterable[nn.Parameter], *, control: bool = False
) -> Tuning:
    """Return what trains the front of a device."""
    d = device
    how = d.optimizer, d.scheduler, d.scheduler_per, d.clip_norm
    return Tuning(parameters, *how, control=control)


def _undo_casts(optimizer: torch.optim.Optimizer, moments: dict[Any, Any]) -> None:
    """Give moments the dtype they had; torch loads them in that of their weights."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for index, weight in enumerate(weights):
        loaded = optimizer.state.get(weight, {})
        for name, value in moments.get(index, {}).items():
            now = loaded.get(name)
            if not isinstance(value, torch.Tensor) or not isinstance(now, torch.Tensor):
                continue
            if now.dtype is not value.dtype:
                loaded[name] = value.to(now.device, copy=True)
