"""Prove on an example that the joined halves are the model, bit for bit.

::

    model ─► copy ─► outputs, gradients, buffers ─┐
                                                  ├─► the same bits, or CutError
    halves ─► copies ─► the same, cut in between ─┘

A trial does so in training or in evaluation mode; a second one in each mode has other
numbers in the state, which shows what the trace has made a constant, another size of
the batch, and in evaluation no gradients.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from flwr_slfac.cutting.modes import Flags, set_flags
from flwr_slfac.cutting.randomness import drawn, foreign_states, untouched_randomness
from flwr_slfac.cutting.refusals import attributes, changed
from flwr_slfac.errors import CutError

NO_EXAMPLE = (
    "the halves were not run beside the model, in training or in evaluation: cut() was "
    "given no example",
)
# Seeds of a trial, ours: of forward, of what is sent backward, of the changed state.
_FORWARD, _BACKWARD, _STATE = 1, 2, 3
# Numbers of a state are scaled by up to this, ours: no sign changes, no range ends.
_CHANGE = 0.125
# Kernels that add in no fixed order differ from run to run by about as much.
_NOISE = 10.0

Found = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """How one comparison is made.

    Attributes
    ----------
    training : bool
        The mode.
    changed : bool
        Whether the state is another than that of the model, and the batch one larger.
    gradients : bool
        Whether a backward pass follows.
    """

    training: bool
    changed: bool
    gradients: bool

    def __str__(self) -> str:
        mode = "training" if self.training else "evaluation"
        state = ", with another state loaded and a larger batch" if self.changed else ""
        return f"in {mode}{state}{'' if self.gradients else ', without gradients'}"


TRIALS = (
    Trial(training=True, changed=False, gradients=True),
    Trial(training=True, changed=True, gradients=True),
    Trial(training=False, changed=False, gradients=True),
    Trial(training=False, changed=True, gradients=False),
)


def prove(
    model: nn.Module,
    flags: dict[bool, Flags],
    halves: tuple[nn.Module, nn.Module],
    example: Tensor,
) -> tuple[str, ...]:
    """Compare the joined halves with the model.

    Parameters
    ----------
    model : nn.Module
        Not changed; neither is any random state.
    flags : dict of bool to dict of str to bool
        ``training`` of the model's modules, by mode.
    halves : (nn.Module, nn.Module)
        Front and back. Not changed.
    example : Tensor
        An input, batch first.

    Returns
    -------
    tuple of str
        What could not be compared, and why; empty if all could.

    Raises
    ------
    CutError
        If outputs, gradients of parameters or of the input, or buffers differ.
    """
    tensors = [*model.parameters(), *model.buffers(), example]
    if any(t.is_meta for t in tensors):
        return ("values: the model or the example is on the meta device",)
    unproven: list[str] = []
    with untouched_randomness(), _exact():
        for trial in TRIALS:
            unproven += _try(_Pair(model, flags, halves), trial, example)
    return tuple(unproven)


@contextmanager
def _exact() -> Iterator[None]:
    """Switch off kernels that give other bits: PyTorch's fused attention layers.

    The whole model takes them in evaluation without gradients, a half may not.
    """
    fused, cudnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    torch.backends.mha.set_fastpath_enabled(False)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with torch.inference_mode(False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        cudnn.benchmark, cudnn.deterministic = before


def _try(pair: "_Pair", trial: Trial, example: Tensor) -> list[str]:
    """Make one trial; return what could not be compared in it."""
    batch = example.repeat_interleave(2, 0) if example.shape[:1] == (1,) else example
    inputs = [torch.cat([batch, batch[:1]])] if trial.changed else []
    reason = ""
    for x in [*inputs, batch]:
        try:
            whole = pair.whole(trial, x)
        except CutError:
            raise
        except Exception as error:
            reason = reason or f"the model fails on {len(x)} examples {trial}: {error}"
            continue
        try:
            joined = pair.joined(trial, x)
        except Exception as error:
            raise CutError(
                f"The joined halves fail {trial}, where the model does not: {error}"
            ) from error
        worst = _differences(whole, joined)
        if worst:
            noise = dict(_differences(whole, pair.whole(trial, x)))
            worst = [(n, by) for n, by in worst if not by <= _NOISE * noise.get(n, 0.0)]
            if not worst:
                reason = f"bits {trial}: the model's own differ from run to run"
        if worst:
            raise CutError(_message(worst, trial))
        break
    return [reason] if reason else []


def _message(worst: list[tuple[str, float]], trial: Trial) -> str:
    named = ", ".join(
        f"{name} by {by:.3g}" if by < float("inf") else name for name, by in worst[:3]
    )
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    return (
        f"The joined halves are not the model {trial}. These differ: {named}{more}. "
        "Its forward does something that a trace does not hold, such as a branch on "
        "values or on torch.is_grad_enabled(), or a context of its own. Write it in "
        "tensors, or move it into a module of torch.nn."
    )


class _Pair:
    """A model and its halves, copied anew for each run."""

    def __init__(
        self,
        model: nn.Module,
        flags: dict[bool, Flags],
        halves: tuple[nn.Module, nn.Module],
    ) -> None:
        self._model = model
        self._flags = flags
        self._halves = halves

    def _copy(self, trial: Trial) -> nn.Module:
        model = copy.deepcopy(self._model)
        set_flags(model, self._flags[trial.training])
        if trial.changed:
            _change(model)
        return model

    def whole(self, trial: Trial, x: Tensor) -> Found:
        """Run the model.

        Raises
        ------
        CutError
            If its forward draws from generators that are not torch's, or sets
            attributes of its modules.
        """
        model = self._copy(trial)
        held, generators = attributes(model), foreign_states(model)
        found = _pass(model, x, trial, None)
        if names := drawn(generators, foreign_states(model)):
            raise CutError(
                f"forward draws from {names} {trial}, and a trace holds one draw for "
                "ever. Draw tensors from torch's default generator."
            )
        if names := changed(held, attributes(model)):
            raise CutError(
                f"forward sets `{names[0]}` {trial}, which the halves would not do. "
                "Register it as a buffer, or return it."
            )
        return found | _state_of(model)

    def joined(self, trial: Trial, x: Tensor) -> Found:
        """Run the halves as training does: detached in between."""
        front, back = (copy.deepcopy(half).train(trial.training) for half in self._halves)
        if trial.changed:
            _load(self._copy(trial), front, back)
        sent: list[Tensor] = []

        def forward(value: Tensor) -> Any:
            sent.append(front(value))
            asks = trial.gradients and sent[0].is_floating_point()
            sent.append(sent[0].detach().requires_grad_(asks))
            return back(sent[1])

        def backward() -> None:
            if sent[0].requires_grad and sent[1].grad is not None:
                sent[0].backward(sent[1].grad)  # type: ignore[no-untyped-call]

        found = _pass(forward, x, trial, backward)
        return found | _state_of(front) | _state_of(back)


def _pass(
    forward: Callable[[Tensor], Any],
    x: Tensor,
    trial: Trial,
    then: Callable[[], None] | None,
) -> Found:
    """Run forward and, if asked, backward with fixed seeds."""
    leaf = x.detach().clone()
    floats = leaf.is_floating_point() or leaf.is_complex()
    torch.manual_seed(_FORWARD)
    with torch.set_grad_enabled(trial.gradients):
        leaf.requires_grad_(trial.gradients and floats)
        out = forward(leaf.clone())
    leaves, spec = pytree.tree_flatten(out)
    found: Found = {"the structure of the output": spec}
    several = len(leaves) > 1
    for i, value in enumerate(leaves):
        kept = value.detach().clone() if isinstance(value, Tensor) else value
        found[f"output {i}" if several else "the output"] = kept
    if trial.gradients:
        ends = [v for v in leaves if isinstance(v, Tensor) and v.requires_grad]
        if ends:
            torch.autograd.backward(ends, [_cotangent(v) for v in ends])
        if then is not None:
            then()
        found["the gradient of the input"] = leaf.grad
    return found


def _cotangent(value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(_BACKWARD)
    kind = torch.complex64 if value.is_complex() else torch.float32
    drawn_numbers = torch.randn(value.shape, generator=generator, dtype=kind)
    return drawn_numbers.to(value)


def _change(model: nn.Module) -> None:
    """Give a model other numbers of the same sign, as a checkpoint may hold."""
    generator = torch.Generator().manual_seed(_STATE)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                factor = torch.rand(tensor.shape, generator=generator) * _CHANGE + 1
                tensor.copy_(tensor * factor.to(tensor))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _load(model: nn.Module, *halves: nn.Module) -> None:
    state = _tensors(model)
    with torch.no_grad():
        for half in halves:
            for name, tensor in _tensors(half).items():
                if name in state:
                    tensor.copy_(state[name])


def _state_of(module: nn.Module) -> Found:
    found: Found = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found[f"the gradient of `{name}`"] = parameter.grad
        found[f"`{name}`"] = parameter.detach()
    for name, buffer in module.named_buffers(remove_duplicate=False):
        found[f"the buffer `{name}`"] = buffer
    return found


def _differences(whole: Found, joined: Found) -> list[tuple[str, float]]:
    """Name what differs and by how much, infinity if it is not a number."""
    found = ((name, _distance(v, joined.get(name))) for name, v in whole.items())
    return [(name, by) for name, by in found if by > 0]


def _distance(one: Any, other: Any) -> float:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return 0.0 if type(one) is type(other) and one == other else float("inf")
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return float("inf")
    if not one.numel() or torch.equal(one, other):
        return 0.0
    apart = (one != other) & ~((one != one) & (other != other))
    if not one.is_floating_point() and not one.is_complex():
        return float((one.double() - other.double()).abs().max())
    gap = (one - other).abs().double()[apart]
    return float(gap.nan_to_num(float("inf")).max()) if gap.numel() else 0.0
