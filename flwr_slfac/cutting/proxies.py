"""What stands for a tensor while torch.fx traces a forward.

torch.fx records what is called on a value. Left alone it takes ``z += 1`` for
``z = z + 1``, which an alias of z tells apart, forgets what is set on a tensor, and
computes at once with buffers and with functions that define a backward of their own.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torch.fx.proxy import Attribute

from flwr_slfac.cutting.names import call_name
from flwr_slfac.cutting.refusals import asked_by_user, user_line
from flwr_slfac.errors import CutError

_INPLACE = (
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"),
    *("iand", "ior", "ixor", "ilshift", "irshift"),
)


# Operations that return several tensors, and attributes that are none.
_TUPLES = frozenset(
    [
        *("chunk", "split", "unbind", "tensor_split", "meshgrid", "broadcast_tensors"),
        *("sort", "topk", "var_mean", "std_mean", "svd", "eigh", "qr", "slogdet"),
    ]
)
_FACTS: dict[str, type] = {
    "shape": torch.Size,
    "ndim": int,
    "dtype": torch.dtype,
    "device": torch.device,
    "requires_grad": bool,
}


@dataclass(frozen=True)
class InPlace:
    """An operator such as ``+=``, as a function: numbers come back, tensors change.

    Attributes
    ----------
    name : str
        As in the module ``operator``. A graph of torch.fx would write that function
        as a statement, which sets a number that others still read.
    """

    name: str

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, target: Any, value: Any) -> Any:
        """Return the target, changed."""
        return getattr(operator, self.name)(target, value)


@dataclass(frozen=True)
class CustomFunction:
    """The ``apply`` of a ``torch.autograd.Function``, with its own backward.

    Attributes
    ----------
    function : type
        A subclass of ``torch.autograd.Function``.
    """

    function: Any

    @property
    def __name__(self) -> str:
        return f"apply_{self.function.__name__}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the function."""
        return self.function.apply(*args, **kwargs)


class TracedValue(fx.Proxy):
    """A value of the forward, which knows that it may be written to."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # What `isinstance` in a forward is told; torch.fx itself asks for the proxy.
        return kind_of(self) if asked_by_user() else type(self)

    def __getattr__(self, k: str) -> Attribute:
        return TracedAttribute(self, k)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("node", "tracer", "root", "attr", "_node", "held"):
            raise CutError(
                f"forward sets `{name}` of a tensor outside of the trace{user_line()}"
            )
        object.__setattr__(self, name, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy(
            "call_function", operator.setitem, (self, key, value), {}
        )


class TracedAttribute(TracedValue, Attribute):
    """An attribute of a value, or a method of it that is about to be called."""


class TracedBuffer(TracedValue):
    """A buffer of the model: its sizes are known, its numbers may yet be loaded."""

    def __init__(self, node: Node, tracer: Any, held: Tensor) -> None:
        super().__init__(node, tracer)
        self.held = held

    @property
    def shape(self) -> torch.Size:
        """The sizes."""
        return self.held.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.held.ndim

    def size(self, dim: int | None = None) -> Any:
        """Return the sizes, or one of them."""
        return self.held.size() if dim is None else self.held.size(dim)

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.held.dim()

    def numel(self) -> int:
        """Return the number of elements."""
        return self.held.numel()

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Iterator[fx.Proxy]:
        values: Any = self
        return (values[i] for i in range(len(self)))


def kind_of(value: fx.Proxy) -> type:
    """Return the type that a traced value will have, as far as its step tells."""
    node = value.node
    name = call_name(node)
    if name in _TUPLES:
        return tuple
    if node.op == "call_module":
        tracer: Any = value.tracer
        module = tracer.root.get_submodule(str(node.target))
        several = isinstance(module, nn.RNNBase | nn.MultiheadAttention)
        if several or getattr(module, "return_indices", False):
            return tuple
    if node.target is getattr:
        return _FACTS.get(str(node.args[1]), Tensor)
    if name == "size":
        return int if len(node.args) + len(node.kwargs) > 1 else torch.Size
    if name in ("dim", "numel", "len"):
        return int
    inputs = [kind_of(fx.Proxy(n, value.tracer)) for n in node.all_input_nodes]
    if name == "getitem" and inputs[0] in (torch.Size, int):
        return torch.Size if isinstance(node.args[1], slice) else int
    return int if inputs and all(kind is int for kind in inputs) else Tensor


def _in_place(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def write(self: fx.Proxy, value: Any) -> fx.Proxy:
        return self.tracer.create_proxy(
            "call_function", InPlace(name), (self, value), {}
        )

    return write


for _name in _INPLACE:
    setattr(TracedValue, f"__{_name}__", _in_place(_name))
