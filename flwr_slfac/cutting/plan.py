"""Find out what lies on which side of a cut, and whether the cut is legal.

::

    Trace ──split each mode's Flow after a module──► Sides of both modes: a plan
          ──state_sides──► parameters and buffers of the front, and of the back
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torch.utils.flop_counter import FlopCounterMode

from flwr_slfac.cutting.contexts import entered
from flwr_slfac.cutting.flow import Flow, Sides
from flwr_slfac.cutting.modes import set_flags
from flwr_slfac.cutting.trace import Trace
from flwr_slfac.errors import CutError


@dataclass(frozen=True)
class Values:
    """What one forward pass of the example in evaluation mode shows.

    Attributes
    ----------
    flops : dict of Node to int
        Floating-point operations of each node, as `torch.utils.flop_counter` counts.
    shapes : dict of Node to tuple of int
        Of nodes whose value is a tensor.
    sizes : dict of Node to int
        Values of nodes that are whole numbers.
    """

    flops: dict[Node, int]
    shapes: dict[Node, tuple[int, ...]]
    sizes: dict[Node, int]


class _Meter(fx.Interpreter):
    """Run a graph and note the FLOPs and the shape of every node."""

    def __init__(
        self, module: nn.Module, graph: fx.Graph, counter: FlopCounterMode
    ) -> None:
        super().__init__(module, graph=graph)
        self.counter = counter
        self.values = Values({}, {}, {})

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        start = self.counter.get_total_flops()
        with entered(n):
            result = super().run_node(n)
        self.values.flops[n] = self.counter.get_total_flops() - start
        if isinstance(result, Tensor):
            self.values.shapes[n] = tuple(result.shape)
        elif isinstance(result, int):
            self.values.sizes[n] = result
        return result


def measure(trace: Trace, example: Tensor) -> Values:
    """Run the example once through a copy of the model in evaluation mode.

    Raises
    ------
    CutError
        If the model cannot run on the example.
    """
    root = copy.deepcopy(trace.root)
    set_flags(root, trace.flags[False])
    graph = trace.flows[False].output.graph
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        FlopCounterMode(display=False) as counter,
    ):
        meter = _Meter(root, graph, counter)
        try:
            meter.run(example.clone())
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise CutError(
                f"The model cannot run on an example of shape {tuple(example.shape)} "
                f"and {example.dtype}: {reason}"
            ) from error
    return meter.values


def plan_cut(trace: Trace, at: str, values: Values | None) -> dict[bool, Sides]:
    """Split both graphs after ``at``, or say why that is no legal cut.

    Parameters
    ----------
    trace : Trace
        Of the model.
    at : str
        Name of a module.
    values : Values or None
        What an example showed; without it shapes are not checked.

    Returns
    -------
    dict of bool to Sides
        By mode, as `Trace.flows`.

    Raises
    ------
    CutError
        If the module is not called, returns several values or no tensor of a batch,
        is the model's end, or anything else crosses the cut.
    """
    plan = {}
    for mode, flow in trace.flows.items():
        exits = flow.exits.get(at, [])
        if not exits:
            raise CutError(_not_called(trace, flow, at))
        if len(exits) > 1:
            several = ", ".join(flow.label(n) for n in exits)
            raise CutError(f"{at!r} returns several values: {several}.")
        sides = plan[mode] = flow.split(exits[0])
        if sides.crossing:
            also = ", ".join(flow.label(n) for n in sides.crossing)
            raise CutError(
                f"A cut after {at!r} is crossed not only by `{at}` but also by {also}, "
                "and only one tensor can be sent."
            )
        if not sides.back - flow.free - {flow.output}:
            raise CutError(f"Nothing is left to compute after {at!r}.")
    sides = plan[False]
    if values is not None:
        shape = values.shapes.get(sides.point)
        if shape is None:
            raise CutError(f"{at!r} does not return a tensor.")
        if any(values.sizes.get(n, shape[0]) != shape[0] for n in sides.read_off):
            raise CutError(
                f"The output of {at!r} has no batch in dimension 0: {shape}."
            )
    state_sides(trace, plan)
    return plan


def _not_called(trace: Trace, flow: Flow, at: str) -> str:
    """Say why nothing of a module leaves it."""
    for node in flow.nodes:
        if node.op == "call_module" and at.startswith(f"{node.target}."):
            return f"{at!r} is inside `{node.target}`, which is traced as one step."
    module = trace.root.get_submodule(at)
    for name, other in trace.root.named_modules():
        if other is module and name != at:
            return f"{at!r} is the same module as {name!r}; use that name."
    return f"{at!r} is never called in forward, or its output is not used."


def _used(trace: Trace, nodes: Iterable[Node]) -> Iterator[str]:
    """Yield the names of the tensors that the nodes read."""
    for node in nodes:
        if node.op == "get_attr" and node.target in trace.state:
            yield str(node.target)
        elif node.op == "call_module":
            start = f"{node.target}."
            yield from (name for name in trace.state if name.startswith(start))


def state_sides(trace: Trace, plan: dict[bool, Sides]) -> tuple[set[str], set[str]]:
    """Give every parameter and buffer its side; unused ones go to the back.

    Returns
    -------
    front, back : set of str
        Names. A constant that both sides read is in both.

    Raises
    ------
    CutError
        If both halves need one tensor of the state.
    """
    state = trace.state
    front = {n for s in plan.values() for n in _used(trace, s.front)}
    back = {n for s in plan.values() for n in _used(trace, s.back)}
    owners = {id(state[name]): name for name in sorted(front, reverse=True)}
    for name in sorted(back):
        owner = owners.get(id(state[name]))
        # Constants, for example a table of frequencies, may lie on both sides.
        if owner is not None and {owner, name} & trace.persistent:
            same = [repr(n) for n, t in state.items() if t is state[name]]
            raise CutError(
                f"Both halves would need the tensor {' = '.join(same)}. Cut elsewhere"
                f"{' or untie the two' if len(same) > 1 else ''}."
            )
    front |= {name for name in state if id(state[name]) in owners} - back
    return front, back | (state.keys() - front)


def num_params(trace: Trace, names: Iterable[str]) -> int:
    """Return the number of parameters that names stand for, tied ones once."""
    tensors = {id(trace.state[name]): trace.state[name] for name in names}
    return sum(t.numel() for t in tensors.values() if isinstance(t, nn.Parameter))


def legal_plans(
    trace: Trace, values: Values | None
) -> list[tuple[list[str], dict[bool, Sides]]]:
    """Return the names that end at each legal point, outermost first.

    Returns
    -------
    list of (list of str, dict of bool to Sides)
        Names and plan of each point, from input to output.
    """
    found: dict[tuple[Node, ...], tuple[list[str], dict[bool, Sides]] | None] = {}
    exits = [flow.exits for flow in trace.flows.values()]
    for name, _ in trace.root.named_modules():
        ends = [e.get(name, []) for e in exits]
        if not name or any(len(end) != 1 for end in ends):
            continue
        key = tuple(end[0] for end in ends)
        if key not in found:
            try:
                found[key] = ([], plan_cut(trace, name, values))
            except CutError:
                found[key] = None
        if entry := found[key]:
            entry[0].append(name)
    legal = [entry for entry in found.values() if entry]
    for names, _ in legal:
        names.sort(key=lambda name: name.count("."))
    order = trace.flows[False].order
    return sorted(legal, key=lambda entry: order[entry[1][False].point])


def neighbours(trace: Trace, at: str, values: Values | None) -> str:
    """Name the legal cuts around the point where ``at`` ends."""
    flow = trace.flows[False]
    legal = legal_plans(trace, values)
    if not legal:
        return "This model has no legal cut."
    if not flow.exits.get(at):
        return f"Legal cuts: {', '.join(repr(names[0]) for names, _ in legal)}."
    here = flow.order[flow.exits[at][-1]]
    places = [(flow.order[plan[False].point], names[0]) for names, plan in legal]
    before = [f"{name!r} before" for place, name in places if place < here]
    after = [f"{name!r} after" for place, name in places if place > here]
    return f"Nearest legal cuts: {', '.join(before[-1:] + after[:1])} it."
