"""Run a model and its halves side by side, and tell where they differ."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from flwr_slfac.cutting.modes import flags_by_mode, set_flags
from flwr_slfac.cutting.randomness import drawn, foreign_states
from flwr_slfac.cutting.refusals import attributes, changed
from flwr_slfac.errors import CutError

# Seeds of a trial, ours: of forward, of what is sent backward, of the changed state.
_FORWARD, _BACKWARD, _STATE = 1, 2, 3
# Numbers of a state are scaled by up to this, ours: no sign changes, no range ends.
_CHANGE = 0.125

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


class Pair:
    """A model and its halves, copied anew for each run."""

    def __init__(
        self,
        model: nn.Module,
        halves: tuple[nn.Module, nn.Module],
    ) -> None:
        self._model = model
        self._halves = halves

    def _copy(self, trial: Trial) -> nn.Module:
        model = copy.deepcopy(self._model)
        # The model's own train() may do more, such as freeze parameters.
        set_flags(model, flags_by_mode(model)[trial.training])
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
        if sets := changed(held, attributes(model)):
            raise CutError(
                f"forward sets `{sets[0]}` {trial}, which the halves would not do. "
                "Register it as a buffer, or return it."
            )
        return found | _state_of(model)

    def joined(self, trial: Trial, x: Tensor) -> Found:
        """Run the halves as training does: detached in between."""
        front, back = (
            copy.deepcopy(half).train(trial.training) for half in self._halves
        )
        if trial.changed:
            _load(self._copy(trial), front, back)
        sent: list[Tensor] = []
        # As they arrive: a leaf's own gradient is laid out as the leaf is.
        arrived: list[Tensor] = []

        def forward(value: Tensor) -> Any:
            sent.append(front(value))
            asks = trial.gradients and sent[0].is_floating_point()
            sent.append(sent[0].detach().requires_grad_(asks))
            if asks:
                sent[1].register_hook(arrived.append)  # type: ignore[no-untyped-call]
            return back(sent[1])

        def backward() -> None:
            if sent[0].requires_grad and arrived:
                sent[0].backward(arrived[0])  # type: ignore[no-untyped-call]

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
    leaves, spec = pytree.tree_flatten(_opened(out))
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


def _opened(out: Any) -> Any:
    """Turn dataclasses, which hide their tensors, into dictionaries."""

    def open_one(value: Any) -> Any:
        if not is_dataclass(value) or isinstance(value, type):
            return value
        fields = {name: _opened(field) for name, field in vars(value).items()}
        return {type(value).__name__: fields}

    return pytree.tree_map(open_one, out, is_leaf=is_dataclass)


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


def differences(whole: Found, joined: Found) -> list[tuple[str, float]]:
    """Name what differs and by how much, infinity if it is not a number."""
    found = ((name, _distance(v, joined.get(name))) for name, v in whole.items())
    return [(name, by) for name, by in found if by > 0]


def _distance(one: Any, other: Any) -> float:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        plain = isinstance(one, bool | int | float | complex | str | pytree.TreeSpec)
        same = type(one) is type(other) and (not plain or one == other)
        return 0.0 if same else float("inf")
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return float("inf")
    if not one.numel() or torch.equal(one, other):
        return 0.0
    apart = (one != other) & ~((one != one) & (other != other))
    if not one.is_floating_point() and not one.is_complex():
        return float((one.double() - other.double()).abs().max())
    gap = (one - other).abs().double()[apart]
    return float(gap.nan_to_num(float("inf")).max()) if gap.numel() else 0.0
