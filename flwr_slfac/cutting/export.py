"""Trace a forward with torch.export, and mend its graph for other devices."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import Function
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from flwr_slfac.cutting.contexts import CONTEXTS, Context
from flwr_slfac.cutting.names import call_name
from flwr_slfac.cutting.patched import patched
from flwr_slfac.cutting.refusals import (
    attributes,
    changed,
    require_no_hooks,
    user_line,
)
from flwr_slfac.errors import CutError

_ops: Any = torch.ops
# How torch.export writes a `with`: an operation on a graph of its own, after so many
# arguments.
_BLOCKS = {
    "wrap_with_set_grad_enabled": ("set_grad_enabled", 1),
    "wrap_with_autocast": ("autocast", 4),
}


def trace_by_export(root: nn.Module, example: Tensor) -> fx.Graph:
    """Trace with torch.export, for any batch size.

    Parameters
    ----------
    root : nn.Module
        A copy, in the mode to trace; gets the constants of the trace as buffers.
    example : Tensor
        An input, batch first.

    Returns
    -------
    fx.Graph
        Whose nodes know the contexts they were made in.

    Raises
    ------
    CutError
        If forward cannot be traced, or does what the graph would not repeat.
    """
    for name, module in root.named_modules():
        require_no_hooks(name, module)
    # torch.export takes a batch of 1 for a constant.
    batch = example.repeat_interleave(2, 0) if example.shape[:1] == (1,) else example
    free = ({0: torch.export.Dim.DYNAMIC},)
    lost: list[str] = []
    held = attributes(root)
    try:
        with _noting(lost):
            program = torch.export.export(root, (batch,), dynamic_shapes=free)
    except Exception as error:
        reason = "; ".join(lost) or str(error).partition("\n")[0]
        raise CutError(reason) from error
    lost += [f"forward sets `{name}`" for name in changed(held, attributes(root))]
    if lost:
        raise CutError("; ".join(dict.fromkeys(lost)))
    _require_any_batch(program)
    exported: Any = program.module(check_guards=False)
    graph: fx.Graph = exported.graph
    _open_blocks(exported, graph)
    for node in graph.nodes:
        node.meta.setdefault(CONTEXTS, ())
    _keep_constants(root, graph, program)
    # On another device a value may be laid out so that it has no such view.
    for node in graph.find_nodes(op="call_function", target=_ops.aten.view.default):
        node.target = _ops.aten.reshape.default
    *_, output = graph.nodes
    leaves = list(pytree.tree_leaves(output.args[0]))
    output.args = (pytree.tree_unflatten(leaves, program.call_spec.out_spec),)
    graph.set_codegen(fx.graph.CodeGen())
    return graph


@contextmanager
def _noting(lost: list[str]) -> Iterator[None]:
    """Note what forward does that torch.export leaves out."""
    thread = threading.get_ident()
    apply = Function.__dict__["apply"]
    enter = torch.inference_mode.__enter__

    def record(function: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and not _of_torch(function.__module__):
            lost.append(
                f"the backward of the autograd function {function.__name__} would be "
                f"lost{user_line()}"
            )
        return apply.__get__(None, function)(*args, **kwargs)

    def entered(manager: Any) -> Any:
        line = user_line()
        if threading.get_ident() == thread and line and manager.mode:
            lost.append(f"torch.inference_mode would be lost{line}")
        return enter(manager)

    with ExitStack() as stack:
        stack.enter_context(patched(Function, "apply", classmethod(record)))
        stack.enter_context(patched(torch.inference_mode, "__enter__", entered))
        yield


def _of_torch(module: str) -> bool:
    """Whether it is torch's own, except what recomputes a part of the model."""
    return module.startswith("torch.") and module != "torch.utils.checkpoint"


def _require_any_batch(program: Any) -> None:
    """Refuse a trace that holds for some sizes of the batch only."""
    for values in program.range_constraints.values():
        # The least that torch.export assumes itself is 2; a bound is none if it is
        # larger than any batch.
        if values.lower > 2 or values.upper < 2**31:
            raise CutError(
                "forward branches on the size of its batch: the trace of the example "
                f"holds from {values.lower} to {values.upper} examples only"
            )


def _open_blocks(owner: Any, graph: fx.Graph) -> None:
    """Put the nodes of every block in the place of its operation."""
    number = 0
    while blocks := [node for node in graph.nodes if call_name(node) in _BLOCKS]:
        for block in blocks:
            number += 1
            kind, count = _BLOCKS[call_name(block)]
            args = block.args[:count]
            path = str(block.args[count].target)
            outer = block.meta.get(CONTEXTS, ())
            if kind == "autocast":
                # torch.export writes that nothing is cached, whatever forward says.
                args = (*args[:3], True)
            contexts = (*outer, Context(kind, tuple(args), number))
            _inline(graph, block, owner, path, block.args[count + 1 :], contexts)
    for node in list(graph.find_nodes(op="get_attr")):
        if not node.users and str(node.target).startswith("submod"):
            graph.erase_node(node)


def _inline(
    graph: fx.Graph, block: Node, owner: Any, path: str, inputs: Any, contexts: Any
) -> None:
    inner: Any = owner.get_submodule(path)
    places = [n for n in inner.graph.nodes if n.op == "placeholder"]
    env: dict[Node, Any] = dict(zip(places, inputs, strict=True))
    values: Any = ()
    with graph.inserting_before(block):
        for node in inner.graph.nodes:
            if node.op == "output":
                values = fx.map_arg(node.args[0], env.__getitem__)
            elif node.op != "placeholder":
                env[node] = graph.node_copy(node, env.__getitem__)
                env[node].meta[CONTEXTS] = contexts
                if node.op == "get_attr":  # another block, by its name in this one
                    env[node].target = f"{path}.{node.target}"
    for user in list(block.users):
        user.replace_all_uses_with(values[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(block)


def _keep_constants(root: nn.Module, graph: fx.Graph, program: Any) -> None:
    """Put the constants of the trace on the copy."""
    state = {*dict(root.named_parameters(remove_duplicate=False))}
    state |= {*dict(root.named_buffers(remove_duplicate=False))}
    for node in graph.find_nodes(op="get_attr"):
        if node.target in state:
            continue
        if node.target not in program.constants:
            raise CutError(
                f"forward calls an operation on a function ({node.target}), such as "
                "torch.cond, which no half can hold"
            )
        constant = program.constants[node.target]
        if not isinstance(constant, Tensor) or constant.requires_grad:
            raise CutError(
                f"forward uses {type(constant).__name__} `{node.target}`, which is "
                "neither a constant tensor nor a parameter or buffer of the model"
            )
        # Both modes may use one name for different constants.
        name = f"_constant{sum(1 for _ in root.buffers())}"
        root.register_buffer(name, constant, persistent=False)
        node.target = name
