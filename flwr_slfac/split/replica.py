"""A server-side model with what trains it: one for all devices, or a copy for each."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from flwr_slfac.split.buffers import (
    numbers_of,
    put_buffers,
    put_numbers,
    unsent_buffers,
)
from flwr_slfac.split.device import has_batch_norm
from flwr_slfac.split.tuning import Tuning

# Of what torch says when a BatchNorm is given one value a channel.
_ONE_VALUE = "Expected more than 1 value per channel"
MakeTuning = Callable[[Iterable[nn.Parameter]], Tuning]
Check = Callable[[torch.Tensor], None]


class Replica:
    """A server-side model, its optimizer and, in float16, the scale of its loss.

    Parameters
    ----------
    module : nn.Module
        The model; trained in place.
    make_tuning : callable
        From its parameters to what trains them.
    precision : torch.dtype or None
        Mixed precision of the forward; torch.float16 wants a scaled loss.
    where : torch.device
        Where the model runs.

    Attributes
    ----------
    num_steps : int
        Steps that it learned from.
    """

    def __init__(
        self,
        module: nn.Module,
        make_tuning: MakeTuning,
        precision: torch.dtype | None,
        where: torch.device,
    ) -> None:
        self.module = module
        self.tuning = make_tuning(module.parameters())
        self._make_tuning, self._precision, self._where = make_tuning, precision, where
        self._scaler = torch.amp.GradScaler(
            where.type, enabled=precision is torch.float16
        )
        self.num_steps = 0

    def copy(self) -> "Replica":
        """Return a replica on a copy of the model, at the same place of the schedule.

        Its optimizer starts without moments, its loss is scaled as here.
        """
        module = copy.deepcopy(self.module)
        other = Replica(module, self._make_tuning, self._precision, self._where)
        other.tuning.load(self.tuning.state(moments=False))
        other._take_scale(self)
        return other

    def go_on_from(self, copies: Sequence["Replica"]) -> None:
        """Take over how far copies have come, but for their weights.

        The schedule is that of the copy that took the most steps, the first of several;
        the scale of the loss is the smallest, at which none of them overflowed.
        """
        longest = max(copies, key=lambda replica: replica.num_steps)
        self.tuning.load(longest.tuning.state(moments=False))
        self._take_scale(min(copies, key=lambda r: r._scaler.get_scale()))

    def state(self) -> dict[str, Any]:
        """Return what training goes on from, but for the model's state dict."""
        return {
            "tuning": self.tuning.state(moments=True),
            "scale": self._scaler.state_dict(),
            "num_steps": self.num_steps,
            "buffers": unsent_buffers(self.module),
            "numbers": numbers_of(self.module),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.tuning.load(state["tuning"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scale"])
        self.num_steps = state["num_steps"]
        put_buffers(self.module, state["buffers"])
        put_numbers(self.module, state["numbers"])

    def settings(self) -> dict[str, Any]:
        """Return what the user set."""
        return {**self.tuning.settings(), "autocast": str(self._precision)}

    def _take_scale(self, other: "Replica") -> None:
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(other._scaler.state_dict())

    def forward(self, inputs: torch.Tensor) -> Any:
        """Return what the model gives for a training batch.

        None if it is one example that a BatchNorm cannot normalise; nothing has then
        changed.
        """
        if len(inputs) > 1 or not has_batch_norm(self.module):
            return self.module(inputs)
        try:
            with self.unless_it_fails():
                return self.module(inputs)
        except ValueError as error:
            if _ONE_VALUE not in str(error):
                raise
        return None

    def learn(
        self,
        loss: torch.Tensor,
        inputs: torch.Tensor,
        check: Check,
        handed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, float]:
        """Take a step down a loss; return a gradient with respect to the inputs.

        Parameters
        ----------
        loss : Tensor
            A scalar, with its graph.
        inputs : Tensor
            A leaf of that graph.
        check : callable
            Given the gradient before the update; raises if that is not to be taken.
        handed : Tensor, optional
            Another scalar of that graph, whose gradient is wanted instead.

        Returns
        -------
        gradient : Tensor
            Of the loss, or of `handed`; of the shape of the inputs. Zeros where the
            loss scale overflowed: nobody takes that step, and the scale shrinks.
        scale : float
            What the loss, and so the gradient, was multiplied with.
        """
        own = None
        if handed is not None and inputs.requires_grad:
            scaled = self._scaler.scale(handed) if self._scales else handed
            (own,) = torch.autograd.grad(
                scaled, inputs, retain_graph=True, allow_unused=True
            )
        scale = self._scaler.get_scale() if self._scales else 1.0
        scaled_loss = self._scaler.scale(loss) if self._scales else loss
        # As it arrives: the leaf's own is laid out as the leaf is.
        arrived: list[torch.Tensor] = []
        if own is None and inputs.requires_grad:
            inputs.register_hook(arrived.append)  # type: ignore[no-untyped-call]
        scaled_loss.backward()  # type: ignore[no-untyped-call]
        gradient = arrived[0] if arrived else own
        gradient = torch.zeros_like(inputs) if gradient is None else gradient
        if not self._scaler.is_enabled():
            check(gradient)
        self._update()
        self.num_steps += 1
        if self._scaler.is_enabled() and not bool(torch.isfinite(gradient).all()):
            gradient = torch.zeros_like(gradient)
        return gradient, scale

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """Undo what forwards in the block did to buffers, should it raise."""
        before = {n: b.detach().clone() for n, b in self.module.named_buffers()}
        try:
            yield
        except Exception:
            own = dict(self.module.named_buffers())
            with torch.no_grad():
                for name, value in before.items():
                    own[name].copy_(value)
            raise

    @property
    def _scales(self) -> bool:
        """Whether losses are scaled: in float16, if there is anything to train."""
        return self._scaler.is_enabled() and self.tuning.optimizer is not None

    def _update(self) -> None:
        """Take the step that the gradients ask for, unless the scale overflowed."""
        if not self._scales or self.tuning.optimizer is None:
            self.tuning.step()
            return
        self._scaler.unscale_(self.tuning.optimizer)
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if all(bool(torch.isfinite(g).all()) for g in gradients):
            self.tuning.step()
        self._scaler.update()
