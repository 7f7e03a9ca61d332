"""The server's side of a step: back, loss, backward, update, under any scheme."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from flwr_slfac.errors import DivergedError, SettingError
from flwr_slfac.split.device import (
    OptimizerFactory,
    SchedulerFactory,
    has_batch_norm,
    require_positive,
)
from flwr_slfac.split.noise import seed_for, seeded
from flwr_slfac.split.scheme import Scheme, require_scheme
from flwr_slfac.split.tuning import Tuning
from flwr_slfac.states import weighted_average

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Metric = Callable[[torch.Tensor, torch.Tensor], "torch.Tensor | float"]
_ALL_DEVICES = -1


@dataclass(frozen=True)
class Batch:
    """One device's decoded smashed data."""

    activations: torch.Tensor
    targets: torch.Tensor
    num_examples: int


@dataclass
class _Replica:
    """A server-side model with what trains it."""

    module: nn.Module
    tuning: Tuning
    scaler: "torch.amp.GradScaler | None" = None


class ServerHalf:
    """Trains the back on smashed data and hands out cut-layer gradients.

    Parameters
    ----------
    back : nn.Module
        The server-side model, ``cut(model, at=...).back``; trained in place.
    loss : callable
        From (outputs, targets) to a scalar, the mean over the batch.
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
        require_scheme(scheme)
        require_positive("clip_norm", clip_norm)
        if scheduler_per not in ("round", "step"):
            raise SettingError(
                f"scheduler_per is {scheduler_per!r}; use 'round' or 'step'"
            )
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise SettingError(
                f"autocast is {autocast}; use torch.bfloat16, torch.float16 or None"
            )
        self.scheme = scheme
        self.where = torch.device(device)
        self._loss = loss
        self._metrics = dict(metrics or {})
        self._autocast = autocast
        self._make_tuning: Callable[[Iterable[nn.Parameter]], Tuning] = partial(
            Tuning,
            optimizer=optimizer,
            scheduler=scheduler,
            scheduler_per="step" if scheduler_per == "step" else "round",
            clip_norm=clip_norm,
        )
        self._main = self._replica(back.to(self.where))
        self._copies: dict[int, _Replica] = {}
        self._seed = 0
        self._round = 0
        self._checked = False

    @property
    def back(self) -> nn.Module:
        """The server-side model."""
        return self._main.module

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
            For each device the gradient of its own mean loss with respect to its
            activations, in their shape and dtype, and that loss.

        Raises
        ------
        SettingError
            If the loss does not take the targets.
        DivergedError
            If a loss is NaN or infinite; names the device, round and step.
        """
        order = sorted(batches)
        if self.scheme == "parallel":
            joined = {k: batches[k] for k in order}
            return self._update(self._main, step, joined, _ALL_DEVICES)
        answers = {}
        for device in order:
            replica = self._main
            if self.scheme == "sflv1":
                replica = self._copies.get(device) or self._new_copy(device)
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
            # The schedule goes on from the device that took the most steps.
            longest = self._copies[max(finished, key=lambda k: num_examples[k])]
            self._main.tuning.load(longest.tuning.state(moments=False))
        self._copies = {}

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Return the loss and metrics of one test batch."""
        self.back.eval()
        with torch.no_grad(), self._precision():
            outputs = self.back(batch.activations)
            loss = self._call_loss(outputs, batch.targets)
            results = {"loss": float(loss)}
            for name, metric in self._metrics.items():
                results[name] = float(metric(outputs, batch.targets))
        return results

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return a copy of the back's state, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.back.state_dict().items()}

    def _update(
        self, replica: _Replica, step: int, batches: dict[int, Batch], noise: int
    ) -> dict[int, tuple[torch.Tensor, float]]:
        """One update of one server-side model on the joined batches."""
        sizes = [b.num_examples for b in batches.values()]
        inputs = _join({k: b.activations for k, b in batches.items()}, "activations")
        targets = _join({k: b.targets for k, b in batches.items()}, "targets")
        inputs = inputs.detach().requires_grad_(inputs.is_floating_point())
        replica.tuning.zero_grad()
        seed = seed_for(self._seed, self._round, noise, step, "back")
        with seeded(seed, self.where), self._precision():
            # A copy, because the back may begin with an operation in place.
            outputs = replica.module(inputs.clone())
            loss = self._call_loss(outputs, targets)
        losses = self._losses_by_device(loss, outputs, targets, list(batches), sizes)
        self._require_finite(losses, step)
        scale = self._backward(replica, loss)
        gradient = torch.zeros_like(inputs) if inputs.grad is None else inputs.grad
        if replica.scaler is not None and not bool(torch.isfinite(gradient).all()):
            # The loss scale overflowed: nobody takes this step, the scale shrinks.
            gradient = torch.zeros_like(gradient)
        answers = {}
        for device, size, part in zip(
            batches, sizes, torch.split(gradient, sizes), strict=True
        ):
            # The joint mean divides by everybody's examples; a device is handed the
            # gradient of its own mean, so that it learns at the rate the user set.
            factor = sum(sizes) / size / scale
            answers[device] = (part if factor == 1 else part * factor, losses[device])
        return answers

    def _backward(self, replica: _Replica, loss: torch.Tensor) -> float:
        """Backward and update; return the factor that the loss was scaled by."""
        scaler = replica.scaler
        if scaler is None or replica.tuning.optimizer is None:
            loss.backward()  # type: ignore[no-untyped-call]
            replica.tuning.step()
            return 1.0
        scale = scaler.get_scale()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(replica.tuning.optimizer)
        gradients = [p.grad for p in replica.module.parameters() if p.grad is not None]
        if all(bool(torch.isfinite(g).all()) for g in gradients):
            replica.tuning.step()
        scaler.update()
        return scale

    def _losses_by_device(
        self,
        loss: torch.Tensor,
        outputs: torch.Tensor,
        targets: torch.Tensor,
        devices: list[int],
        sizes: list[int],
    ) -> dict[int, float]:
        if len(devices) == 1:
            return {devices[0]: float(loss.detach())}
        rows_per_example = len(outputs) // sum(sizes)
        rows = [n * rows_per_example for n in sizes]
        with torch.no_grad(), self._precision():
            return {
                device: float(self._loss(o, t))
                for device, o, t in zip(
                    devices,
                    torch.split(outputs.detach(), rows),
                    torch.split(targets, sizes),
                    strict=True,
                )
            }

    def _call_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        try:
            loss = self._loss(outputs, targets)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if self._checked:
                raise
            raise SettingError(
                f"the loss does not take these targets: {error} (outputs "
                f"{tuple(outputs.shape)} {outputs.dtype}, targets "
                f"{tuple(targets.shape)} {targets.dtype} on {targets.device})"
            ) from error
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise SettingError("the loss must return one scalar tensor")
        self._checked = True
        return loss

    def _require_finite(self, losses: Mapping[int, float], step: int) -> None:
        bad = {k: v for k, v in losses.items() if not math.isfinite(v)}
        if bad:
            named = ", ".join(f"{v} on device {k}" for k, v in bad.items())
            raise DivergedError(
                f"the loss is {named}, round {self._round}, step {step}; lower the "
                "learning rate, clip gradients, or look at that device's data"
            )

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self.where.type,
            dtype=self._autocast or torch.bfloat16,
            enabled=self._autocast is not None,
        )

    def _replica(self, module: nn.Module) -> _Replica:
        scaler = None
        if self._autocast is torch.float16:
            kind = self.where.type
            scaler = torch.amp.GradScaler(kind)
        return _Replica(module, self._make_tuning(module.parameters()), scaler)

    def _new_copy(self, device: int) -> _Replica:
        replica = self._replica(copy.deepcopy(self.back))
        replica.tuning.load(self._main.tuning.state(moments=False))
        self._copies[device] = replica
        return replica


def _join(tensors: dict[int, torch.Tensor], what: str) -> torch.Tensor:
    """Concatenate what devices sent; refuse what does not belong together."""
    first, *others = tensors
    like = tensors[first]
    for device in others:
        tensor = tensors[device]
        if (tensor.shape[1:], tensor.dtype) != (like.shape[1:], like.dtype):
            raise SettingError(
                f"scheme 'parallel' joins what devices send, but the {what} of device "
                f"{first} are {_describe(like)} per example, those of device {device} "
                f"{_describe(tensor)}; make their data alike, or use 'sflv1' or 'sflv2'"
            )
    return torch.cat(list(tensors.values())) if others else like


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape[1:])}"
