"""Which values a step of a traced forward writes into, and whose memory it hands on."""

import operator
import re
from typing import Any

from torch import fx, nn
from torch.fx.node import Node

from flwr_slfac.cutting.names import call_name
from flwr_slfac.cutting.proxies import CustomFunction, InPlace

# Calls whose result never shares memory with their first argument.
_FRESH = re.compile(
    r"^(add|sub|mul|truediv|matmul|linear|cat|conv\dd|embedding|(batch|layer)_norm"
    r"|size|dim|numel|__len__)$"
)
# Methods such as `__iadd__`, called on a constant of the trace.
_WRITING = re.compile(
    r"^__(setitem|i(add|sub|mul|truediv|floordiv|mod|pow|matmul|and|or|xor|[lr]shift))__$"
)
# Attributes of a tensor that are no view of it.
_FACTS = ("shape", "device", "dtype", "ndim", "requires_grad", "is_cuda", "layout")


def shared(node: Node, root: nn.Module) -> Node | None:
    """Return the argument whose memory a node's value may share."""
    outs = _nodes(node.kwargs.get("out"))
    if outs:
        return outs[0]
    if isinstance(node.target, CustomFunction):
        return next(iter(_nodes(node.args)), None)
    first = node.args[0] if node.args else None
    if not isinstance(first, Node) or node.op == "output":
        return None
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        fresh = any(True for _ in module.parameters())
    elif node.target is getattr:
        fresh = node.args[1] in _FACTS
    else:
        fresh = bool(_FRESH.match(call_name(node)))
    return None if fresh else first


def owner_of(node: Node, root: nn.Module) -> Node:
    """Return the node whose memory a node's value may share."""
    while (whose := shared(node, root)) is not None:
        node = whose
    return node


def written(node: Node, root: nn.Module) -> list[Node]:
    """Return the arguments that a node writes into."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        inplace = getattr(module, "inplace", False) is True
        return _nodes(node.args[:1]) if inplace else []
    if node.op not in ("call_function", "call_method"):
        return []
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        marked = [
            node.args[i] if i < len(node.args) else node.kwargs.get(a.name)
            for i, a in enumerate(schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        ]
        return _nodes(marked)
    name = call_name(node)
    writes = (
        (name.endswith("_") and not name.endswith("__"))
        or node.target is operator.setitem
        or isinstance(node.target, InPlace)
        or bool(_WRITING.match(name))
        or node.kwargs.get("inplace") is True
    )
    return _nodes(node.args[:1] if writes else None) + _nodes(node.kwargs.get("out"))


def _nodes(value: Any) -> list[Node]:
    found: list[Node] = []
    fx.map_arg(value, found.append)
    return found
