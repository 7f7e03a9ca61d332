"""Trace a forward with torch.fx, and refuse what its graph would not hold.

::

    forward ──values, buffers──► proxies ──► nodes, each with its contexts
            ──numbers of the state──► refused: they would be constants
            ──attributes, random numbers──► refused: they would be those of the trace
"""

import inspect
import operator
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import Function
from torch.utils import _pytree as pytree

from flwr_slfac.cutting.contexts import CONTEXTS, Recorder
from flwr_slfac.cutting.memory import owner_of, written
from flwr_slfac.cutting.patched import patched
from flwr_slfac.cutting.proxies import CustomFunction, TracedBuffer, TracedValue
from flwr_slfac.cutting.randomness import drawn, foreign_states
from flwr_slfac.cutting.refusals import (
    attributes,
    changed,
    require_no_hooks,
    storage_of,
    user_line,
)
from flwr_slfac.cutting.watch import StateWatch
from flwr_slfac.errors import CutError

# Names under which torch.fx keeps constants on the traced module.
_CONSTANTS = ("_tensor_constant", "_torchbind_obj")
# Of torch.nn: layers that branch on their input, so that torch.fx cannot look inside.
CLOSED = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_NONE = nn.Module()  # holds no generator of its own
# Of a node that reads a constant: whether forward makes it anew each time.
FRESH = "flwr_slfac_fresh"


def trace_symbolically(root: nn.Module, *, closed: bool = False) -> fx.Graph:
    """Trace with torch.fx.

    Parameters
    ----------
    root : nn.Module
        A copy, in the mode to trace; gets the constants of the trace as attributes.
    closed : bool (default: False)
        Take layers of the `CLOSED` kinds as one step each.

    Returns
    -------
    fx.Graph
        Whose nodes know the contexts they were made in.

    Raises
    ------
    CutError
        If forward does what the graph would not repeat; the line is named.
    """
    graphs, steps = [], []
    for gradients in (True, False):
        tracer = _Tracer(root, gradients, CLOSED if closed else ())
        with tracer.watching():
            graphs.append(tracer.trace(root))
        steps.append(_steps(graphs[-1], root))
    if steps[0] != steps[1]:
        apart = zip(graphs[0].nodes, *steps, strict=False)
        node = next(n for n, step, again in apart if step != again)
        raise CutError(
            f"forward is not the same each time, first at `{node.name}`. It may "
            "branch on torch.is_grad_enabled(), draw from a generator that is not "
            "torch's, or count its calls"
        )
    return graphs[0]


def _steps(graph: fx.Graph, root: nn.Module) -> list[tuple[Any, ...]]:
    """Return what a graph does, so that it can be compared."""
    places = {node: i for i, node in enumerate(graph.nodes)}

    def read(node: fx.Node) -> Any:
        target = str(node.target)
        if node.op == "get_attr" and target.startswith(_CONSTANTS):
            return _content(operator.attrgetter(target)(root))
        return node.target

    def inputs(node: fx.Node) -> str:
        return repr(fx.map_arg((node.args, node.kwargs), lambda n: f"%{places[n]}"))

    return [(node.op, read(node), inputs(node)) for node in graph.nodes]


def _content(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return type(value)
    kind = (value.shape, value.dtype, value.device)
    if value.is_meta:
        return kind
    numbers = value.detach().resolve_conj().resolve_neg().cpu().reshape(-1).contiguous()
    return *kind, numbers.view(torch.uint8).numpy().tobytes()


def _require_undrawn(before: Any, after: Any, who: str) -> None:
    if names := drawn(before, after):
        raise CutError(
            f"{who} draws from {names}, which a trace does once and for ever. Draw "
            "tensors from torch's default generator"
        )


class _Tracer(fx.Tracer):
    """Trace one input, and into torch.nn's containers as into any other."""

    def __init__(
        self, root: nn.Module, gradients: bool, closed: tuple[type, ...]
    ) -> None:
        super().__init__()
        self.closed = (nn.MultiheadAttention, *closed)
        self.contexts = Recorder(gradients)
        self.watch = StateWatch(root)
        self.constants: list[tuple[Tensor, int, str]] = []
        self.modules = set(root.modules())
        self.model = root
        self.buffers = {id(b): name for name, b in root.named_buffers()}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what a graph does not: contexts, custom functions, what forward sets."""
        require_no_hooks("", self.model)
        state = {n: (id(t), t._version) for n, t in self._state().items()}
        held, generators = attributes(self.model), foreign_states(self.model)
        with ExitStack() as stack:
            stack.enter_context(self.contexts.recording())
            stack.enter_context(patched(Function, "apply", self._apply()))
            stack.enter_context(patched(nn.Module, "__setattr__", self._setattr()))
            stack.enter_context(self.watch)
            yield
        if state != {n: (id(t), t._version) for n, t in self._state().items()}:
            raise CutError("forward changes a buffer outside of the trace")
        _require_undrawn(generators, foreign_states(self.model), "forward")
        after = attributes(self.model)
        names = [n for n in changed(held, after) if not n.startswith(_CONSTANTS)]
        if names:
            raise CutError(f"forward changes `{names[0]}` outside of the trace")
        for constant, version, line in self.constants:
            if constant._version != version:
                raise CutError(f"forward changes a constant after its use{line}")

    def _state(self) -> dict[str, Tensor]:
        return {
            **dict(self.model.named_parameters()),
            **dict(self.model.named_buffers()),
        }

    def _apply(self) -> Any:
        """Return an ``apply`` of custom functions that records itself."""
        apply, thread = Function.__dict__["apply"], threading.get_ident()

        def record(function: Any, *args: Any, **kwargs: Any) -> Any:
            leaves = pytree.tree_leaves((args, kwargs))
            traced = any(isinstance(leaf, fx.Proxy) for leaf in leaves)
            if threading.get_ident() != thread or not traced:
                return apply.__get__(None, function)(*args, **kwargs)
            return self._custom(function, args, kwargs)

        return classmethod(record)

    def _custom(self, function: Any, args: Any, kwargs: Any) -> fx.Proxy:
        name = f"the autograd function {function.__name__}"
        for step in (function.forward, function.setup_context):
            if "mark_dirty" in inspect.unwrap(step).__code__.co_names:
                raise CutError(f"{name} writes into its input{user_line()}")
        if function.__module__.startswith("torch.utils.checkpoint"):
            raise CutError(
                "torch.utils.checkpoint with use_reentrant=True hides its steps"
                f"{user_line()}; set use_reentrant=False"
            )
        try:
            return self.create_proxy(
                "call_function", CustomFunction(function), args, kwargs
            )
        except NotImplementedError as error:
            raise CutError(f"{name} has an {error}{user_line()}") from None

    def _setattr(self) -> Any:
        """Return a ``__setattr__`` of modules that refuses what forward sets."""
        plain, thread = nn.Module.__setattr__, threading.get_ident()

        def refuse(module: nn.Module, name: str, value: Any) -> None:
            if (
                threading.get_ident() == thread
                and module in self.modules
                and not name.startswith(_CONSTANTS)
            ):
                path = self.path_of_module(module)
                buffer = name in module._buffers
                remedy = "write into it, as `copy_` does" if buffer else "return it"
                raise CutError(
                    f"forward sets `{f'{path}.{name}'.lstrip('.')}` outside of the "
                    f"trace{user_line()}; {remedy}"
                )
            plain(module, name, value)

        return refuse

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inner = [c for name, c in m.named_children() if name != "parametrizations"]
        plain = not inner or isinstance(m, self.closed)
        parametrized = nn.utils.parametrize.is_parametrized(m)
        kind = type(m).__mro__[1] if parametrized else type(m)
        named = kind.__module__.startswith(("torch.nn.", "torch.ao.nn."))
        return plain and named and not isinstance(m, nn.Sequential)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        require_no_hooks(path, m)
        before = foreign_states(_NONE)
        result = super().call_module(m, forward, args, kwargs)
        _require_undrawn(before, foreign_states(_NONE), f"forward of `{path}`")
        return result

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return TracedValue(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[CONTEXTS] = self.contexts.now()
        for target in written(node, self.model):
            owner = owner_of(target, self.model)
            if FRESH in owner.meta:
                constant = operator.attrgetter(str(owner.target))(self.model)
                self.watch.written[storage_of(constant)] = constant
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        name = self.buffers.get(id(attr_val))
        if name is None or not isinstance(attr_val, Tensor):
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy(
                "get_attr",
                name,
                (),
                {},
                proxy_factory_fn=lambda node: TracedBuffer(node, self, attr_val),
            )
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, dict) and type(a) is not dict:
            # torch.fx would make a plain dictionary of it.
            pairs = tuple((key, self.create_arg(value)) for key, value in a.items())
            return self.create_node("call_function", type(a), (pairs,), {})
        arg: Any = super().create_arg(a)
        known = isinstance(a, nn.Parameter) or id(a) in self.buffers
        if isinstance(a, Tensor) and not known:
            self._note_constant(a)
            arg.meta[FRESH] = storage_of(a) in self.watch.made
        return arg

    def _note_constant(self, constant: Tensor) -> None:
        storage = storage_of(constant)
        shared = self.watch.names.get(storage)
        if constant.requires_grad or shared is not None:
            what = "requires a gradient" if shared is None else f"is part of `{shared}`"
            raise CutError(
                f"forward uses a tensor that {what} but is no parameter or buffer"
                f"{user_line()}"
            )
        if self.watch.written.get(storage, constant) is not constant:
            raise CutError(f"forward writes into a part of a constant{user_line()}")
        self.constants.append((constant, constant._version, user_line()))

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]
