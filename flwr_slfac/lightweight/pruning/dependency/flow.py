"""Follow channels through a traced forward: which layer made each, and who reads it.

Each value carries at most one axis of channels: a dimension and the unit of each of its
indices. The rules of `channel_rules` say how an operation hands the axis on. What no
rule knows fixes the channels that it reads, so that a gap in the rules costs
prunable channels, never a wrong result.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.fx.node import Node

from flwr_slfac.cutting import Flow, call_name
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.pruning.dependency.units import Ids, Units


@dataclass(frozen=True)
class Axis:
    """The dimension of a value that channels lie along, and the unit at each index."""

    dim: int
    units: Ids


@dataclass
class Bindings:
    """Which units lie along which dimension of which parameter or buffer.

    ``buffers`` are the names of all buffers, ``axes`` is by name and dimension,
    ``layers`` by weight, ``scales`` are the names of norm scales, ``read`` says of
    tensors that something other than a layer reads what that is.
    """

    buffers: set[str]
    units: Units = field(default_factory=Units)
    axes: dict[tuple[str, int], Ids] = field(default_factory=dict)
    layers: dict[str, Ids] = field(default_factory=dict)
    scales: set[str] = field(default_factory=set)
    read: dict[str, str] = field(default_factory=dict)

    def bind(self, name: str | None, dim: int, units: Ids) -> None:
        """Note the units along a tensor's dimension; a second use ties them."""
        if name is None:
            return
        known = self.axes.setdefault((name, dim), units)
        self.units.tie(known, units)

    def made_by(self, weight: str, dim: int, num: int) -> Ids:
        """Return the units of a weight's output channels, the same at each call."""
        if weight not in self.layers:
            self.layers[weight] = self.units.new(num)
            if num == 1:
                self.units.fix(self.layers[weight], "is its layer's only channel")
            self.bind(weight, dim, self.layers[weight])
        return self.layers[weight]

    def settle(self) -> None:
        """Fix the channels of tensors that something other than a layer reads."""
        for (name, _), units in self.axes.items():
            if name in self.read:
                self.units.fix(units, self.read[name])


@dataclass(frozen=True, eq=False)
class Call:
    """One operation of a trace, whether a module or a function."""

    node: Node
    name: str
    module: nn.Module | None
    walk: "Walk"
    result: Any
    taken: set[str] = field(default_factory=set)

    def arg(self, index: int, key: str, default: Any = None) -> Any:
        """Return an argument, a node if it is computed."""
        if self.module is not None and index:
            return getattr(self.module, key, default)
        if len(self.node.args) > index:
            return self.node.args[index]
        return self.node.kwargs.get(key, default)

    def tensor(self, index: int, key: str) -> str | None:
        """Return the name of the parameter or buffer that is an argument."""
        if self.module is not None:
            own = {**self.module._parameters, **self.module._buffers}
            return None if own.get(key) is None else f"{self.node.target}.{key}"
        given = self.arg(index, key)
        if not isinstance(given, Node) or given.op != "get_attr":
            return None
        self.taken.add(str(given.target))
        return str(given.target)

    def axis(self, index: int = 0, key: str = "input") -> Axis | None:
        """Return the channels of an argument."""
        given = self.arg(index, key)
        return self.walk.axes.get(given) if isinstance(given, Node) else None

    def shape(self, given: Any) -> tuple[int, ...]:
        """Return the shape of an argument that is a tensor, else ()."""
        return self.walk.shapes.get(given, ()) if isinstance(given, Node) else ()

    @property
    def label(self) -> str:
        """What to call this operation in a message."""
        if self.module is not None:
            return f"`{self.node.target}` ({type(self.module).__name__})"
        return f"{self.name} at {self.walk.flow.label(self.node)}"

    def stop(self) -> None:
        """Fix all channels that this operation reads."""
        for node in self.node.all_input_nodes:
            self.walk.fix(node, f"is read by {self.label}")

    def tied(self, axes: "list[Axis | None]") -> Axis | None:
        """Tie the channels of all operands, or fix them all if they do not match."""
        first = axes[0]
        if first is None or any(
            a is None or a.dim != first.dim or a.units.size != first.units.size
            for a in axes
        ):
            self.stop()
            return None
        for axis in axes[1:]:
            if axis is not None:
                self.walk.bindings.units.tie(first.units, axis.units)
        return first


Rule = Callable[[Call], Axis | None]


class Walk(fx.Interpreter):
    """Run one graph on an example and hand channels on from node to node."""

    def __init__(
        self,
        flow: Flow,
        bindings: Bindings,
        rules: dict[str, Rule],
        names: dict[type, str],
    ) -> None:
        super().__init__(flow.root, graph=flow.output.graph)
        self.flow = flow
        self.bindings = bindings
        self.rules = rules
        self.names = names
        self.axes: dict[Node, Axis] = {}
        self.shapes: dict[Node, tuple[int, ...]] = {}
        self.values: dict[Node, Any] = {}
        self.num_sizes: dict[Any, int] = {}  # length of a value that is a shape
        self.state = {
            **dict(flow.root.named_parameters()),
            **dict(flow.root.named_buffers()),
        }

    def run_node(self, n: Node) -> Any:
        """Run one node and find its channels."""
        try:
            result = super().run_node(n)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise SettingError(
                f"the front's channels cannot be found: {self.flow.label(n)} fails on "
                f"the example ({reason}); give an example that the front accepts"
            ) from error
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        elif isinstance(result, int | float):
            self.values[n] = result
        if n.op in ("call_module", "call_function", "call_method"):
            axis = self._hand_on(n, result)
            if axis is not None and isinstance(result, Tensor):
                self._require_fit(n, axis)
            if axis is not None:
                self.axes[n] = axis
        return result

    def fix(self, node: Node, reason: str) -> None:
        """Fix the channels that lie along a value, or along a tensor of the state."""
        if node.op == "get_attr":
            self.bindings.read.setdefault(str(node.target), reason)
        elif node in self.axes:
            self.bindings.units.fix(self.axes[node].units, reason)

    def _hand_on(self, node: Node, result: Any) -> Axis | None:
        module = None
        if node.op == "call_module":
            module = flow_module(self.flow, node)
            # A hook may do anything, also compute the weight.
            hooked = module._forward_hooks or module._forward_pre_hooks
            name = "" if hooked else self.names.get(type(module), "")
        else:
            name = call_name(node)
            if name.endswith("_") and not name.startswith("_"):
                name = name[:-1]
        call = Call(node, name, module, self, result)
        rule = self.rules.get(name)
        if rule is None:
            call.stop()
            return None
        axis = rule(call)
        for read in node.all_input_nodes:
            if read.op == "get_attr" and str(read.target) not in call.taken:
                self.fix(read, f"is read by {call.label}")
        return axis

    def _require_fit(self, node: Node, axis: Axis) -> None:
        if self.shapes[node][axis.dim] != np.size(axis.units):
            raise SettingError(
                f"the channels of {self.flow.label(node)} were lost: it has shape "
                f"{self.shapes[node]}, but {np.size(axis.units)} channels along "
                f"dimension {axis.dim}; use unstructured pruning for this front"
            )


def flow_module(flow: Flow, node: Node) -> nn.Module:
    """Return the module that a node calls."""
    return flow.root.get_submodule(str(node.target))
