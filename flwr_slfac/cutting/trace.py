"""Trace a model in training and in evaluation mode, over one copy of it.

::

    model ──copy──► root ──torch.fx, in either mode──► two graphs ──► a Flow of each
                      └── where that fails, given an example: torch.export
"""

import copy
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, fx, nn

from flwr_slfac.cutting.export import trace_by_export
from flwr_slfac.cutting.flow import Flow
from flwr_slfac.cutting.modes import Flags, flags_by_mode, set_flags
from flwr_slfac.cutting.randomness import unless_others_draw, untouched_randomness
from flwr_slfac.cutting.refusals import require_plain, storage_of
from flwr_slfac.cutting.tracer import CLOSED, FRESH, trace_symbolically
from flwr_slfac.errors import CutError

# Tracing changes classes of torch for a while, which one thread can do at a time.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Trace:
    """A copy of the model, and the data flow of its forward in either mode.

    Attributes
    ----------
    root : nn.Module
        The copy that both graphs run on.
    flows : dict of bool to Flow
        By mode: True for training, False for evaluation.
    state : dict of str to Tensor
        Parameters and buffers of the copy by every name they have, those that are not
        persistent included, constants of the trace not.
    persistent : frozenset of str
        Keys of the copy's ``state_dict``.
    exported : bool
        Whether torch.export made the graphs, which fixes all sizes but the batch.
    flags : dict of bool to dict of str to bool
        ``training`` of every module, by mode of the model.
    refused : str
        Why torch.fx could not trace it; empty if it could.
    """

    root: nn.Module
    flows: dict[bool, Flow]
    state: dict[str, Tensor]
    persistent: frozenset[str]
    exported: bool
    flags: dict[bool, Flags]
    refused: str


def trace_model(
    model: nn.Module, example: Tensor | None, *, closed: bool = False
) -> Trace:
    """Trace a copy with torch.fx, or else, given an example, with torch.export.

    Parameters
    ----------
    model : nn.Module
        Its forward takes one tensor; further arguments keep their defaults. Not
        changed.
    example : Tensor or None
        An input, batch first, of any shape and dtype that the model takes.
    closed : bool (default: False)
        Whether PyTorch's transformer layers may be one step each: before torch.export
        is asked, which looks inside but fixes sizes.

    Returns
    -------
    Trace
        Every module of the copy is in the mode that it has in the model.

    Raises
    ------
    CutError
        If the example is no tensor, forward takes not exactly one, or neither way of
        tracing can follow it; the message says what to change.

    Examples
    --------
    >>> trace = trace_model(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), None)
    >>> [node.op for node in trace.flows[True].nodes], trace.exported
    (['placeholder', 'call_module', 'call_module', 'output'], False)
    """
    if example is not None and not isinstance(example, Tensor):
        raise CutError(f"example must be a tensor, not {type(example).__name__}.")
    try:
        inspect.signature(model.forward).bind(None)
    except TypeError as error:
        raise CutError(
            f"forward of {type(model).__name__} does not take exactly one tensor "
            f"({error}). Wrap the model so that its other inputs have defaults."
        ) from None
    require_plain(model)
    with _ONE_AT_A_TIME, untouched_randomness():
        return unless_others_draw(lambda: _trace(model, example, closed))


def _trace(model: nn.Module, example: Tensor | None, closed: bool) -> Trace:
    try:
        root, flags, graphs = _follow(model, closed)
        reason = ""
    except Exception as error:
        reason = str(error).removesuffix(".") or type(error).__name__
        if example is None:
            raise CutError(
                f"torch.fx cannot trace {type(model).__name__} ({reason}). Pass "
                "example=, a tensor of inputs, to trace it with torch.export."
            ) from error
        root, flags = _copy(model)
        graphs = _export(root, flags, example, reason)
    set_flags(root, {name: m.training for name, m in _modules(model).items()})
    # Without the constants that tracing has put on the copy.
    own = _state(model).keys()
    state = {name: tensor for name, tensor in _state(root).items() if name in own}
    flows = {mode: Flow(graph, root, state) for mode, graph in graphs.items()}
    for flow in flows.values():
        _require_own_constants(flow, state)
    persistent = frozenset(root.state_dict())
    return Trace(root, flows, state, persistent, bool(reason), flags, reason)


def _copy(model: nn.Module) -> tuple[nn.Module, dict[bool, Flags]]:
    try:
        root = copy.deepcopy(model)
    except Exception as error:
        raise CutError(
            f"{type(model).__name__} cannot be copied, and halves are copies ({error})."
        ) from error
    return root, flags_by_mode(root)


def _follow(
    model: nn.Module, closed: bool
) -> tuple[nn.Module, dict[bool, Flags], dict[bool, fx.Graph]]:
    """Trace with torch.fx: through everything, or else with layers left closed."""
    root, flags = _copy(model)
    try:
        return root, flags, _graphs(root, flags, trace_symbolically)
    except Exception:
        if not closed or not any(isinstance(m, CLOSED) for m in model.modules()):
            raise
    root, flags = _copy(model)
    graphs = _graphs(root, flags, partial(trace_symbolically, closed=True))
    return root, flags, graphs


def _graphs(
    root: nn.Module, flags: dict[bool, Flags], trace: Callable[[nn.Module], fx.Graph]
) -> dict[bool, fx.Graph]:
    """Trace a model in either mode."""
    graphs = {}
    for mode in (True, False):
        set_flags(root, flags[mode])
        graphs[mode] = trace(root)
    return graphs


def _export(
    root: nn.Module, flags: dict[bool, Flags], example: Tensor, reason: str
) -> dict[bool, fx.Graph]:
    try:
        return _graphs(root, flags, lambda model: trace_by_export(model, example))
    except CutError as error:
        raise CutError(
            f"Neither torch.fx nor torch.export can trace {type(root).__name__} with "
            f"an example of shape {tuple(example.shape)}: {reason}; torch.export: "
            f"{error}"
        ) from error


def _require_own_constants(flow: Flow, state: dict[str, Tensor]) -> None:
    """Refuse writes into constants that others hold, too."""
    constants = {
        str(n.target): n
        for n in flow.nodes
        if n.op == "get_attr" and n.target not in state
    }
    storages = [storage_of(flow.value_of(n)) for n in constants.values()]
    for node in flow.mutators:
        if node.op != "get_attr" or node.target in state or FRESH not in node.meta:
            continue
        if storages.count(storage_of(flow.value_of(node))) > 1:
            raise CutError(
                f"forward writes into a part of the constant `{node.target}`. Make it "
                "of the input, for example by x.new_zeros()."
            )
        if not node.meta[FRESH] and str(node.target).startswith("_tensor_constant"):
            raise CutError(
                f"forward writes into `{node.target}`, a tensor that is no buffer of "
                "the model. Register it as one."
            )


def _modules(root: nn.Module) -> dict[str, nn.Module]:
    return dict(root.named_modules(remove_duplicate=False))


def _state(root: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have."""
    return {
        **dict(root.named_parameters(remove_duplicate=False)),
        **dict(root.named_buffers(remove_duplicate=False)),
    }


def is_inside(model: nn.Module, at: str) -> bool:
    """Whether a module lies inside one of PyTorch's own transformer layers."""
    parents = [at[:end] for end, letter in enumerate(at) if letter == "."]
    return any(isinstance(model.get_submodule(name), CLOSED) for name in parents)
