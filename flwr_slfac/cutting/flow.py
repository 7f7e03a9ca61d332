"""Data flow of a traced forward: what depends on, changes or aliases what.

An ``fx.Graph`` shows which values a node reads. A cut must know three things more: that
a write in place comes before the reads that see it, that a module's own state changes
(batch norm) where it stands, and what needs of the input its batch size or device only.
"""

import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from flwr_slfac.cutting.memory import shared, written
from flwr_slfac.cutting.names import call_name
from flwr_slfac.cutting.proxies import CustomFunction

# Names of calls that draw random numbers, whose values must not be computed twice.
_RANDOM = re.compile(
    r"rand|dropout|bernoulli|multinomial|poisson|rrelu|sdpa|scaled_dot_product"
    r"|(normal|uniform|exponential|cauchy|geometric)_?$"
)


@dataclass(frozen=True)
class Sides:
    """Which nodes of one graph run on which side of a cut.

    Attributes
    ----------
    point : Node
        Whose value is the smashed data.
    front, back : set of Node
        What runs before the cut, `point` included, and after it. What does not depend
        on the input may be in both.
    read_off : set of Node
        Of the back: sizes of the batch and devices, read off the smashed data.
    crossing : list of Node
        Other values that the back needs of the front, in order; empty in a legal cut.
    """

    point: Node
    front: set[Node]
    back: set[Node]
    read_off: set[Node] = field(default_factory=set)
    crossing: list[Node] = field(default_factory=list)


class Flow:
    """What each node of a traced graph depends on, changes and may share.

    Parameters
    ----------
    graph : fx.Graph
        Of one input.
    root : nn.Module
        Whose modules and attributes the graph names.
    state : mapping of str to Tensor
        Parameters and buffers of `root` by name.

    Attributes
    ----------
    nodes : list of Node
        In the order in which they run.
    order : dict of Node to int
        Place of each in `nodes`.
    source, output : Node
        The input, and what returns the result.
    deps : dict of Node to set of Node
        What each needs directly: the values it reads, and the last write into them.
    exits : dict of str to list of Node
        By module: the values that leave its last call.
    """

    def __init__(
        self, graph: fx.Graph, root: nn.Module, state: Mapping[str, Tensor]
    ) -> None:
        self.nodes = list(graph.nodes)
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.root = root
        self.source = next(n for n in self.nodes if n.op == "placeholder")
        self.output = self.nodes[-1]
        self.deps: dict[Node, set[Node]] = {}
        self.base: dict[Node, Node] = {}  # whose memory a value may share
        self.mutators: dict[Node, list[Node]] = {}  # by base, in order
        self.free: set[Node] = set()  # needs nothing of the input but batch, device
        self.effects: set[Node] = set()  # changes the state of a module
        attributes: dict[str, Node] = {}
        for node in self.nodes:
            if node.op == "get_attr":
                self.base[node] = attributes.setdefault(str(node.target), node)
            else:
                whose = shared(node, root)
                self.base[node] = node if whose is None else self.base[whose]
            self.deps[node] = {d for n in node.all_input_nodes for d in self._now(n)}
            writes_state = False
            for target in {self.base[n]: None for n in written(node, root)}:
                self.mutators.setdefault(target, []).append(node)
                writes_state |= target.op == "get_attr" and target.target in state
            if writes_state or (node.op == "call_module" and not node.users):
                self.effects.add(node)
            elif self._is_free(node):
                self.free.add(node)
        self.exits = self._exits()

    def _now(self, node: Node) -> Iterator[Node]:
        """Yield a value and the last step that wrote into it since it was made."""
        yield node
        for mutator in self.mutators.get(self.base[node], [])[-1:]:
            if node.op == "get_attr" or self.order[mutator] > self.order[node]:
                yield mutator

    def _is_free(self, node: Node) -> bool:
        if node.op == "get_attr" or self.stands_for(node):
            return True
        return (
            node.op in ("call_function", "call_method")
            and not isinstance(node.target, CustomFunction)
            and not _RANDOM.search(call_name(node))
            and all(dep in self.free for dep in self.deps[node])
        )

    def stands_for(self, node: Node) -> Node | None:
        """Return the tensor whose batch size or device this node reads."""
        first = node.args[0] if node.args else None
        if not isinstance(first, Node) or first in self.free:
            return None
        rest = (*node.args[1:], *node.kwargs.values())
        if node.target is operator.getitem and rest == (0,) and first.args:
            shape = first.target is getattr and first.args[1] == "shape"
            size = first.target == "size" and not (first.args[1:] or first.kwargs)
            whole = first.args[0] if shape or size else None
            return whole if isinstance(whole, Node) else None
        size = node.target == "size" or node.target is torch.ops.aten.sym_size.int
        device = node.target is getattr and rest == ("device",)
        return first if (size and rest == (0,)) or device else None

    def _exits(self) -> dict[str, list[Node]]:
        """Values that leave the last call of each module."""
        scopes: dict[str, tuple[tuple[str, ...], set[Node]]] = {}
        for node in self.nodes:
            stack = list((node.meta.get("nn_module_stack") or {}).items())
            for depth, (_, (path, _)) in enumerate(stack, 1):
                call = tuple(key for key, _ in stack[:depth])
                if path not in scopes or scopes[path][0] != call:
                    scopes[path] = (call, set())
                scopes[path][1].add(node)
        exits = {}
        for path, (_, scope) in scopes.items():
            steps = sorted(scope - self.free, key=self.order.__getitem__)
            exits[path] = [n for n in steps if not scope.issuperset(n.users)]
        for node in self.nodes:
            if node.op == "call_module":
                exits[str(node.target)] = self._parts(node)
        return exits

    def _parts(self, node: Node) -> list[Node]:
        """Split the result of a torch.nn module that returns a tuple."""
        module = self.root.get_submodule(str(node.target))
        several = isinstance(module, nn.RNNBase | nn.MultiheadAttention)
        if several or getattr(module, "return_indices", False):
            return [n for n in node.users if n.users]
        return [node] if node.users else []

    def ancestors(self, nodes: Iterable[Node]) -> set[Node]:
        """Return the nodes and all that they depend on."""
        seen: set[Node] = set()
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack.extend(self.deps[node])
        return seen

    def split(self, point: Node) -> Sides:
        """Split the graph after ``point``; a side effect stays where it stands.

        Returns
        -------
        Sides
            Also of a cut that is not legal: see `Sides.crossing`.
        """
        before = {n for n in self.effects if self.order[n] <= self.order[point]}
        front = self.ancestors({point, self.source, *before})
        # Export writes reassigned buffers back at the end, far from their module.
        for effect in self.effects - before:
            needs = self.ancestors({effect})
            if point not in needs and (needs & front) - self.free:
                before.add(effect)
        front |= self.ancestors(before)
        sides = Sides(point, front, set())
        stack = [self.output, *(self.effects - before - front)]
        while stack:
            node = stack.pop()
            if node in sides.back or node is point or node in sides.crossing:
                continue
            whole = self.stands_for(node)
            if node in front and node not in self.free:
                sides.crossing.append(node)
                continue
            sides.back.add(node)
            if whole in front and whole is not point:
                sides.read_off.add(node)
            else:
                stack.extend(self.deps[node])
        sides.crossing.sort(key=self.order.__getitem__)
        return sides

    def mutates(self, point: Node, part: set[Node]) -> bool:
        """Whether some of these nodes would write into a value that they are given."""
        return any(n in part for n in self.mutators.get(self.base[point], []))

    def value_of(self, node: Node) -> Any:
        """Return what a node reads off the root."""
        return operator.attrgetter(str(node.target))(self.root)

    def label(self, node: Node) -> str:
        """Name a value by the outermost module that ends with it, if any."""
        names = [path for path, ends in self.exits.items() if ends == [node] and path]
        if names:
            return f"`{min(names, key=lambda name: name.count('.'))}`"
        if node is self.source:
            return "the input"
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        where = f" in `{stack[-1][0]}`" if stack and stack[-1][0] else ""
        return f"`{node.name}`{where}"
