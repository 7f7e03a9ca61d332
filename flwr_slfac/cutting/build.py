"""Build the two halves of a planned cut.

::

    Sides of a mode ──copied nodes──► a graph of one half ──► Program: source and names
    Trace.root ──grafted by name──► Half: modules and tensors of that side
                                    with a Program for either mode
"""

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import Node

from flwr_slfac.cutting.contexts import mark_contexts, write_contexts
from flwr_slfac.cutting.flow import Sides
from flwr_slfac.cutting.plan import state_sides
from flwr_slfac.cutting.trace import Trace
from flwr_slfac.cutting.tracer import FRESH
from flwr_slfac.errors import CutError


@dataclass(frozen=True)
class Program:
    """Source of a forward and the names it uses; unlike a function, it pickles.

    Attributes
    ----------
    source : str
        Python, as ``fx.Graph.python_code`` writes it.
    modules : dict of str to str
        Path of the Python module behind each name.
    objects : dict of str to object
        What other names stand for.
    """

    source: str
    modules: dict[str, str]
    objects: dict[str, Any]

    def compile(self) -> Callable[[nn.Module, Tensor], Any]:
        """Return the forward as a function of the half and its input."""
        scope = dict(self.objects)
        scope.update({name: import_module(p) for name, p in self.modules.items()})
        exec(self.source, scope)
        forward: Callable[[nn.Module, Tensor], Any] = scope["forward"]
        return forward


class Half(nn.Module):
    """One side of a cut: a part of the model's module tree, and two forwards.

    Which forward runs is decided by ``training`` of the half itself.

    Parameters
    ----------
    programs : dict of bool to Program
        By mode: True for training.
    sizes : tuple of int or None
        Sizes of its input that ``torch.export`` has fixed: all but the batch. None if
        there are none.
    others : dict of bool to list of str
        By mode: modules that stand in the other one, such as a frozen batch norm.

    Attributes
    ----------
    example_shape : tuple of int or None
        Of the back: shape of the smashed data of the example that was given to `cut`.
    begins_after, ends_after : str
        Of the back, of the front: the outermost module that ends at the cut.
    """

    def __init__(
        self,
        programs: dict[bool, Program],
        sizes: tuple[int, ...] | None,
        others: dict[bool, list[str]],
    ) -> None:
        super().__init__()
        self._programs = programs
        self._sizes = sizes
        self.example_shape: tuple[int, ...] | None = None
        self.begins_after = self.ends_after = ""
        self._others = others
        self._forwards = {mode: p.compile() for mode, p in programs.items()}

    def forward(self, x: Tensor) -> Any:
        """Run the trace of the current mode.

        Parameters
        ----------
        x : Tensor
            Batch first: the input of the front, the smashed data of the back.

        Raises
        ------
        CutError
            If the half was exported for inputs of other sizes.
        """
        if self._sizes is not None and tuple(x.shape[1:]) != self._sizes:
            raise CutError(
                f"This half was exported for inputs of shape (N, "
                f"{', '.join(map(str, self._sizes))}) but got {tuple(x.shape)}. "
                "Cut again with an example of that shape."
            )
        return self._forwards[self.training](self, x)

    def train(self, mode: bool = True) -> "Half":
        """Put every module in the mode that it has in the model in that mode.

        Parameters
        ----------
        mode : bool, optional
            True for training.
        """
        super().train(mode)
        for name in self._others[mode]:
            self.get_submodule(name).training = not mode
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_forwards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._forwards = {mode: p.compile() for mode, p in self._programs.items()}


def build_halves(trace: Trace, plan: dict[bool, Sides]) -> tuple[Half, Half]:
    """Return front and back; they take the tensors of the trace's own copy.

    Raises
    ------
    CutError
        If both halves need one tensor, or a key of the state would be lost.
    """
    fronts = {mode: s.front - {trace.flows[mode].source} for mode, s in plan.items()}
    backs = {mode: s.back for mode, s in plan.items()}
    front_names, back_names = state_sides(trace, plan)
    ends = {mode: s.point for mode, s in plan.items()}
    front = build_part(trace, fronts, front_names, set(), end=ends)
    taken = _leaves(fronts) | front_names
    back = build_part(trace, backs, back_names, taken, start=plan)
    cut_name = trace.flows[False].label(plan[False].point)
    front.ends_after = back.begins_after = cut_name
    lost = trace.persistent ^ (front.state_dict().keys() | back.state_dict().keys())
    if lost:
        raise CutError(f"The halves would not keep these state keys: {sorted(lost)}.")
    return front, back


def build_part(
    trace: Trace,
    parts: dict[bool, set[Node]],
    names: set[str],
    taken: set[str],
    *,
    start: dict[bool, Sides] | None = None,
    end: dict[bool, Node] | None = None,
) -> Half:
    """Build what runs, in either mode, from a cut (or the input) to a value (or all).

    Parameters
    ----------
    trace : Trace
        Of the model.
    parts : dict of bool to set of Node
        What runs, by mode.
    names : set of str
        Parameters and buffers that it is given.
    taken : set of str
        Modules and tensors that another half was given: they are copied.
    start, end
        The cut that it begins after, and the value that it returns.
    """
    programs = {
        mode: _program(
            trace,
            mode,
            part,
            None if start is None else start[mode],
            None if end is None else end[mode],
        )
        for mode, part in parts.items()
    }
    entry = trace.flows[False].source if start is None else start[False].point
    others: dict[bool, list[str]] = {True: [], False: []}
    half = Half(programs, _fixed_sizes(entry) if trace.exported else None, others)
    half.training = trace.root.training
    _graft(trace.root, half, "", _leaves(parts), names, taken)
    nodes = set().union(*parts.values())
    for name in sorted(str(n.target) for n in nodes if n.op == "get_attr"):
        _place_constant(trace.root, half, name)
    within = [name for name, _ in half.named_modules() if name in trace.flags[True]]
    for mode, flags in trace.flags.items():
        others[mode] += [name for name in within if name and flags[name] != mode]
    return half


def _leaves(parts: dict[bool, set[Node]]) -> set[str]:
    """Return the modules that are called in either mode."""
    nodes = set[Node]().union(*parts.values())
    return {str(n.target) for n in nodes if n.op == "call_module"}


def _fixed_sizes(node: Node) -> tuple[int, ...] | None:
    """Return all sizes but the first, unless the batch is among them."""
    sizes = tuple(node.meta["val"].shape[1:])
    return sizes if all(type(size) is int for size in sizes) else None


def _program(
    trace: Trace, mode: bool, part: set[Node], start: Sides | None, end: Node | None
) -> Program:
    """Write the forward of one half in one mode."""
    flow = trace.flows[mode]
    entry, read_off = (start.point, start.read_off) if start else (flow.source, set())
    graph = fx.Graph()
    x = graph.placeholder("x")
    if start and flow.mutates(entry, part):
        x = graph.call_method("clone", (x,))
    env = {entry: x}
    for node in sorted(part, key=flow.order.__getitem__):
        if node in read_off:
            if node.target is getattr:
                env[node] = graph.call_function(getattr, (x, "device"))
            else:
                env[node] = graph.call_method("size", (x, 0))
            continue
        base = flow.base[node]
        if node.meta.get(FRESH) and base in flow.mutators and base in env:
            env[node] = env[base]
            continue
        env[node] = graph.node_copy(node, env.__getitem__)
        if node.meta.get(FRESH) and base in flow.mutators:
            # Forward makes it anew and writes into it; another call must not see that.
            env[node] = graph.call_method("clone", (env[node],))
        if trace.exported and node.kwargs.get("device") is not None:
            # Export bakes the device of the example in; follow the input instead.
            with graph.inserting_before(env[node]):
                device = graph.call_function(getattr, (x, "device"))
            env[node].update_kwarg("device", device)
    if end is not None:
        graph.output(env[end])
    objects = mark_contexts(graph)
    code = graph.python_code("self")
    known = code.globals
    modules = {n: v.__name__ for n, v in known.items() if isinstance(v, ModuleType)}
    objects |= {n: v for n, v in known.items() if n not in modules}
    return Program(write_contexts(code.src), modules, objects)


def _graft(
    source: nn.Module,
    target: nn.Module,
    prefix: str,
    leaves: set[str],
    names: set[str],
    taken: set[str],
) -> None:
    """Put the named leaves and tensors of ``source`` into ``target``."""
    for key, parameter in source._parameters.items():
        if prefix + key in names:
            target.register_parameter(key, parameter)
    for key, buffer in source._buffers.items():
        if prefix + key in names and buffer is not None:
            own = buffer.clone() if prefix + key in taken else buffer
            lasting = key not in source._non_persistent_buffers_set
            target.register_buffer(key, own, persistent=lasting)
    for key, child in source._modules.items():
        path = prefix + key
        if child is not None and path in leaves:
            own_child = copy.deepcopy(child) if path in taken else child
            target.add_module(key, own_child)
        elif child is not None and any(
            name.startswith(f"{path}.") for name in leaves | names
        ):
            box = nn.Module()
            box.training = child.training
            target.add_module(key, box)
            _graft(child, box, f"{path}.", leaves, names, taken)


def _place_constant(root: nn.Module, half: nn.Module, name: str) -> None:
    """Register a traced constant, so that ``.to`` moves it with the half."""
    *parents, key = name.split(".")
    for parent in parents:
        if parent not in half._modules:
            half.add_module(parent, nn.Module())
        half = half.get_submodule(parent)
    if not hasattr(half, key):
        value = operator.attrgetter(name)(root)
        half.register_buffer(key, value.clone(), persistent=False)
