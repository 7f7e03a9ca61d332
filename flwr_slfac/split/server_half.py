"""The server's side of a step: back, loss, backward, update, under any scheme."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from flwr_slfac.errors import SettingError
from flwr_slfac.split.crossing import Batch
from flwr_slfac.split.device import (
    OptimizerFactory,
    SchedulerFactory,
    has_batch_norm,
    require_positive,
)
from flwr_slfac.split.joined import JoinedBatch
from flwr_slfac.split.outputs import are_finite, described
from flwr_slfac.split.own_losses import Loss, own_losses
from flwr_slfac.split.place import seed_for, seeded
from flwr_slfac.split.replica import MakeTuning, Replica
from flwr_slfac.split.scheme import Scheme, require_scheme
from flwr_slfac.split.step_checks import StepChecks
from flwr_slfac.split.tuning import Tuning
from flwr_slfac.states import weighted_average

logger = logging.getLogger("flwr")

Metric = Callable[[Any, torch.Tensor], "torch.Tensor | float"]
_ALL_DEVICES = -1  # in place of a partition id, for noise that is nobody's own


class ServerHalf:
    """Trains the back on smashed data and hands out cut-layer gradients.

    Parameters
    ----------
    back : nn.Module
        The server-side model, ``cut(model, at=...).back``; trained in place.
    loss : callable
        From (outputs, targets) to a scalar, as a rule the mean over the batch. The
        outputs are what the back gives; under ``parallel`` with several devices their
        tensors (in tuples, lists, dicts, dataclasses) begin with the batch. Weights of
        classes, ignored targets and sums are followed: see `step`.
    optimizer, scheduler, scheduler_per, clip_norm
        As in `Device`, for the back. The optimizer's state lives as long as the run,
        except under ``sflv1``, where each copy starts a round afresh.
    scheme : {"sequential", "sflv1", "sflv2", "parallel"}
        See `flwr_slfac.split.scheme`.
    metrics : dict of str to callable, optional
        Each from (outputs, targets) to a mean over the batch.
    autocast : torch.dtype, optional
        Run the back in mixed precision: torch.bfloat16, or torch.float16 with loss
        scaling.
    device : torch.device or str (default: "cpu")
        Where the back runs.
    """

    def __init__(
        self,
        back: nn.Module,
        loss: Loss,
        optimizer: OptimizerFactory,
        *,
        scheme: Scheme = "parallel",
        scheduler: SchedulerFactory | None = None,
        scheduler_per: str = "round",
        clip_norm: float | None = None,
        metrics: Mapping[str, Metric] | None = None,
        autocast: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        _require_settings(scheme, scheduler_per, clip_norm, autocast)
        self.scheme = scheme
        self.where = torch.device(device)
        self.loss = loss
        self.metrics = dict(metrics or {})
        self._autocast = autocast
        make_tuning: MakeTuning = partial(
            Tuning,
            optimizer=optimizer,
            scheduler=scheduler,
            scheduler_per="step" if scheduler_per == "step" else "round",
            clip_norm=clip_norm,
        )
        self._main = Replica(back.to(self.where), make_tuning, autocast, self.where)
        self._copies: dict[int, Replica] = {}
        self._seed = 0
        self._round = 0
        self._checked = False
        self._checks = StepChecks()

    @property
    def back(self) -> nn.Module:
        """The server-side model."""
        return self._main.module

    @property
    def replica(self) -> Replica:
        """The server-side model with what trains it, from round to round."""
        return self._main

    @property
    def min_batch(self) -> int:
        """Smallest batch of one device that the back can train on."""
        alone = self.scheme != "parallel"
        return 2 if alone and has_batch_norm(self.back) else 1

    def begin_round(self, server_round: int, seed: int) -> None:
        """Start a round."""
        self._round, self._seed = server_round, seed
        self._copies = {}
        self._main.tuning.start_round(server_round)
        self.back.train()

    def step(
        self, step: int, batches: Mapping[int, Batch]
    ) -> dict[int, tuple[torch.Tensor, float]]:
        """Learn from one step's smashed data.

        Parameters
        ----------
        step : int
            The step of the round, from 0.
        batches : mapping of int to Batch
            By partition id.

        Returns
        -------
        dict of int to (Tensor, float)
            For each device the gradient of its own loss with respect to its
            activations, in their shape and dtype, and that loss: the loss function of
            its own outputs and targets. A device whose targets are all ignored has
            none: zeros, and NaN; nor has one that is alone in a step, under
            ``parallel``, with one example that a BatchNorm cannot normalise. Under
            ``parallel`` the back itself takes the step of the loss of the joined batch;
            where it couples examples (BatchNorm), the gradient is that of the mean of
            all own losses, weighted by examples, as multiple of the device's share.

        Raises
        ------
        SettingError
            If the loss does not take the targets.
        DivergedError
            If a loss is NaN or infinite; names the device, round and step.
        """
        order = sorted(batches)
        if self.scheme == "parallel":
            ordered = {k: batches[k] for k in order}
            return self._update(self._main, step, ordered, _ALL_DEVICES)
        answers = {}
        for device in order:
            replica = self._main
            if self.scheme == "sflv1":
                if device not in self._copies:
                    self._copies[device] = self._main.copy()
                replica = self._copies[device]
            answers.update(
                self._update(replica, step, {device: batches[device]}, device)
            )
        return answers

    def end_round(self, num_examples: Mapping[int, int]) -> None:
        """Finish a round: under sflv1, average the copies of the devices named.

        Parameters
        ----------
        num_examples : mapping of int to int
            Weight of each device that finished the round, by partition id.
        """
        finished = [k for k in sorted(self._copies) if k in num_examples]
        if finished:
            states = [self._copies[k].module.state_dict() for k in finished]
            weights = [num_examples[k] for k in finished]
            self.back.load_state_dict(weighted_average(states, weights))
            self._main.go_on_from([self._copies[k] for k in finished])
        self._copies = {}

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Return the loss and metrics of one test batch.

        No loss if it is NaN though outputs are numbers: all targets are ignored.
        """
        self.back.eval()
        with torch.no_grad(), self._precision():
            outputs = self.back(batch.activations)
            loss = self._call_loss(outputs, batch.targets)
            results = {"loss": float(loss)}
            if math.isnan(results["loss"]) and are_finite(outputs):
                results = {}
            for name, metric in self.metrics.items():
                results[name] = float(metric(outputs, batch.targets))
        return results

    def fault(self, step: int, device: int, batch: Batch) -> str:
        """Return why a device's batch cannot be trained on alone; empty if it can.

        Tried in evaluation mode, where a batch of one is large enough for BatchNorm;
        nothing is changed.
        """
        replica = self._copies.get(device, self._main)
        joined, at = JoinedBatch.of({device: batch}), self._at(step)
        replica.module.eval()
        try:
            with replica.unless_it_fails(), self._precision():
                outputs = replica.module(joined.inputs.clone())
                loss = self._call_loss(outputs, joined.targets)
                own = own_losses(self.loss, loss, outputs, joined)
                self._checks.require_finite(own, at)
                if joined.inputs.requires_grad:
                    gradients = torch.autograd.grad(
                        loss, joined.inputs, allow_unused=True, materialize_grads=True
                    )
                    self._checks.require_finite_gradient(joined, own, at, *gradients)
        except Exception as error:  # whatever a back or a loss of the user's raises
            return f"{type(error).__name__}: {error}"
        finally:
            replica.module.train()
        return ""

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return a copy of the back's state, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.back.state_dict().items()}

    def _update(
        self, replica: Replica, step: int, batches: Mapping[int, Batch], noise: int
    ) -> dict[int, tuple[torch.Tensor, float]]:
        """One update of one server-side model on the joined batches."""
        joined, at = JoinedBatch.of(batches), self._at(step)
        replica.tuning.zero_grad()
        with replica.unless_it_fails():
            seed = seed_for(self._seed, self._round, noise, step, "back")
            with seeded(seed, self.where), self._precision():
                # A copy, because the back may begin with an operation in place.
                outputs = replica.forward(joined.inputs.clone())
                if outputs is None:
                    return self._checks.left_out(joined, at)
                loss = self._call_loss(outputs, joined.targets)
            with self._precision():
                own = own_losses(self.loss, loss, outputs, joined)
            self._checks.require_finite(own, at)
            check = partial(self._checks.require_finite_gradient, joined, own, at)
            gradient, scale = replica.learn(loss, joined.inputs, check, own.mean)
        answers = {}
        for device, part in joined.by_device(gradient):
            # The mean divides by everybody's examples; a device is handed the gradient
            # of its own loss, so that it learns at the rate the user set.
            factor = joined.num_examples / joined.sizes[device] / scale
            if device in own.undefined:
                part = torch.zeros_like(part)
            value = own.values[device]
            answers[device] = (part if factor == 1 else part * factor, value)
        return answers

    def _call_loss(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        try:
            loss = self.loss(outputs, targets)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if self._checked:
                raise
            raise SettingError(
                f"the loss does not take these targets: {error} (outputs "
                f"{described(outputs)}, targets {described(targets)} on "
                f"{targets.device})"
            ) from error
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise SettingError("the loss must return one scalar tensor")
        self._checked = True
        return loss

    def _at(self, step: int) -> str:
        return f"round {self._round}, step {step}"

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self.where.type,
            dtype=self._autocast or torch.bfloat16,
            enabled=self._autocast is not None,
        )


def _require_settings(
    scheme: str,
    scheduler_per: str,
    clip_norm: float | None,
    autocast: torch.dtype | None,
) -> None:
    require_scheme(scheme)
    require_positive("clip_norm", clip_norm)
    if scheduler_per not in ("round", "step"):
        raise SettingError(f"scheduler_per is {scheduler_per!r}; use 'round' or 'step'")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise SettingError(
            f"autocast is {autocast}; use torch.bfloat16, torch.float16 or None"
        )
