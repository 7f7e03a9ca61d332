"""Trace a model in training and in evaluation mode, over one copy of it.

::

    model ──copy──► root ──torch.fx, in either mode──► two graphs ──► a Flow of each
                      └── where that fails, given an example: torch.export
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from flwr_slfac.cutting.flow import Flow
from flwr_slfac.errors import CutError


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
    """

    root: nn.Module
    flows: dict[bool, Flow]
    state: dict[str, Tensor]
    persistent: frozenset[str]
    exported: bool


def trace_model(model: nn.Module, example: Tensor | None) -> Trace:
    """Trace a copy with torch.fx, or else, given an example, with torch.export.

    Parameters
    ----------
    model : nn.Module
        Its forward takes one tensor; further arguments keep their defaults. Not
        changed.
    example : Tensor or None
        An input, batch first, of any shape and dtype that the model takes.

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
    root = copy.deepcopy(model)
    modes = {module: module.training for module in root.modules()}
    try:
        graphs = {mode: _fx_graph(root.train(mode)) for mode in (True, False)}
    except Exception as error:
        if example is None:
            raise CutError(
                f"torch.fx cannot trace {type(model).__name__} ({error}). Pass "
                "example=, a tensor of inputs, to trace it with torch.export."
            ) from error
        root = copy.deepcopy(model)
        modes = {module: module.training for module in root.modules()}
        graphs = {m: _export_graph(root.train(m), example) for m in (True, False)}
        exported = True
    else:
        exported = False
    for module, mode in modes.items():
        module.training = mode
    # Without the constants that tracing has put on the copy.
    own = _state(model).keys()
    state = {name: tensor for name, tensor in _state(root).items() if name in own}
    flows = {mode: Flow(graph, root, state) for mode, graph in graphs.items()}
    return Trace(root, flows, state, frozenset(root.state_dict()), exported)


def _state(root: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have."""
    return {
        **dict(root.named_parameters(remove_duplicate=False)),
        **dict(root.named_buffers(remove_duplicate=False)),
    }


class _Tracer(fx.Tracer):
    """Trace one input, and into torch.nn's containers as into any other."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, nn.MultiheadAttention) or not any(m.children())
        return super().is_leaf_module(m, module_qualified_name) and whole

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]


def _fx_graph(root: nn.Module) -> fx.Graph:
    """Trace with torch.fx, and refuse what a graph cannot show."""
    before = {name: (id(t), t._version) for name, t in _state(root).items()}
    with torch.random.fork_rng(devices=[]):
        drawn = torch.get_rng_state()
        graph = _Tracer().trace(root)
        if not torch.equal(drawn, torch.get_rng_state()):
            raise CutError("forward draws random numbers outside of the trace")
    if before != {name: (id(t), t._version) for name, t in _state(root).items()}:
        raise CutError("forward changes a buffer outside of the trace")
    return graph


def _export_graph(root: nn.Module, example: Tensor) -> fx.Graph:
    """Trace with torch.export, any batch size, and mend the graph for other devices."""
    # torch.export takes a batch of 1 for a constant.
    batch = example.repeat_interleave(2, 0) if example.shape[:1] == (1,) else example
    free = ({0: torch.export.Dim.DYNAMIC},)
    try:
        program = torch.export.export(root, (batch,), dynamic_shapes=free)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CutError(
            f"Neither torch.fx nor torch.export can trace {type(root).__name__} with "
            f"an example of shape {tuple(example.shape)}: {reason}"
        ) from error
    exported: Any = program.module(check_guards=False)
    graph: fx.Graph = exported.graph
    state = _state(root)
    for node in graph.find_nodes(op="get_attr"):
        if node.target not in state:
            # Both modes may use one name for different constants.
            name = f"_constant{sum(1 for _ in root.buffers())}"
            root.register_buffer(name, program.constants[node.target], persistent=False)
            node.target = name
    # On another device a value may be laid out so that it has no such view.
    for node in graph.find_nodes(
        op="call_function", target=torch.ops.aten.view.default
    ):
        node.target = torch.ops.aten.reshape.default
    *_, output = graph.nodes
    leaves = list(pytree.tree_leaves(output.args[0]))
    output.args = (pytree.tree_unflatten(leaves, program.call_spec.out_spec),)
    graph.set_codegen(fx.graph.CodeGen())
    return graph
