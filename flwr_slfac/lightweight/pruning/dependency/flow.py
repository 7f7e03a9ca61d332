"""Follow channels through a traced forward: which layer made each, and who reads it.

Each value carries at most one axis of channels: a dimension, and which channel lies at
each of its indices. `rules` say how an operation hands the axis on. What no rule knows
fixes the channels that it reads, so that a gap in the rules costs prunable channels,
never a wrong result.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.fx.node import Node

from flwr_slfac.cutting import Flow, call_name
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.pruning.dependency.channel_sets import ChannelSets, Ids


@dataclass(frozen=True)
class Axis:
    """The dimension of a value that channels lie along, and their ids, one an index."""

    dim: int
    ids: Ids


@dataclass
class Bindings:
    """Which channels lie along which dimension of which parameter or buffer.

    Attributes
    ----------
    buffers : set of str
        Names of all buffers.
    sets : ChannelSets
        Which channels are tied, and which are fixed.
    axes : dict of (str, int) to Ids
        By name and dimension of a tensor: the channel at each index.
    layers : dict of str to Ids
        By weight: the channels that the layer makes.
    scales : set of str
        Names of norm scales.
    read : dict of str to str
        Of tensors that something other than a layer reads: what that is.
    """

    buffers: set[str]
    sets: ChannelSets = field(default_factory=ChannelSets)
    axes: dict[tuple[str, int], Ids] = field(default_factory=dict)
    layers: dict[str, Ids] = field(default_factory=dict)
    scales: set[str] = field(default_factory=set)
    read: dict[str, str] = field(default_factory=dict)

    def bind(self, name: str | None, dim: int, ids: Ids) -> None:
        """Note the channels along a tensor's dimension; a second use ties them."""
        if name is None:
            return
        known = self.axes.setdefault((name, dim), ids)
        self.sets.tie(known, ids)

    def made_by(self, weight: str, dim: int, num: int) -> Ids:
        """Return the ids of a weight's output channels, the same at each call."""
        if weight not in self.layers:
            self.layers[weight] = self.sets.new(num)
            if num == 1:
                self.sets.fix(self.layers[weight], "is its layer's only channel")
            self.bind(weight, dim, self.layers[weight])
        return self.layers[weight]

    def settle(self) -> None:
        """Fix the channels of tensors that something other than a layer reads."""
        for (name, _), ids in self.axes.items():
            if name in self.read:
                self.sets.fix(ids, self.read[name])


@dataclass(frozen=True, eq=False)
class Call:
    """One operation of a trace, whether a module or a function.

    Attributes
    ----------
    node : Node
        In the graph.
    name : str
        By which rules know the operation.
    module : nn.Module or None
        The module that is called, if it is one.
    walk : Walk
        What was found so far.
    result : object
        What the operation returned on the example.
    taken : set of str
        Tensors of the state that a rule has looked at.
    """

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
            a is None or a.dim != first.dim or a.ids.size != first.ids.size
            for a in axes
        ):
            self.stop()
            return None
        for axis in axes[1:]:
            if axis is not None:
                self.walk.bindings.sets.tie(first.ids, axis.ids)
        return first


Rule = Callable[[Call], Axis | None]


class Walk(fx.Interpreter):
    """Run one graph on an example and hand channels on from node to node.

    Parameters
    ----------
    flow : Flow
        Of the graph, as a `Trace` has it.
    bindings : Bindings
        Where channels are noted; the same for the graphs of both modes.
    rules : dict of str to Rule
        By name of the operation.
    names : dict of type to str
        Names of the modules that rules know.
    """

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
        """Run one node and find its channels.

        Raises
        ------
        SettingError
            If it fails on the example, or a rule refuses it.
        """
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
            self.bindings.sets.fix(self.axes[node].ids, reason)

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
        if self.shapes[node][axis.dim] != np.size(axis.ids):
            raise SettingError(
                f"the channels of {self.flow.label(node)} were lost: it has shape "
                f"{self.shapes[node]}, but {np.size(axis.ids)} channels along "
                f"dimension {axis.dim}; use unstructured pruning for this front"
            )


def flow_module(flow: Flow, node: Node) -> nn.Module:
    """Return the module that a node calls."""
    return flow.root.get_submodule(str(node.target))
