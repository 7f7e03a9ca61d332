"""Which gradient and autocast contexts each step of a forward runs in.

::

    with torch.no_grad(): h = self.a(x)      a forward
    a (no_grad, 1)                           a node, and the contexts it was made in
    with context_1(): a = self.a(x)          the forward of a half
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.node import Node

from flwr_slfac.cutting.patched import patched
from flwr_slfac.cutting.refusals import user_line
from flwr_slfac.errors import CutError

# Where a node keeps the contexts it was made in, outermost first.
CONTEXTS = "flwr_slfac_contexts"


@dataclass(frozen=True)
class Context:
    """One ``with`` statement of a forward; unlike a context manager, it pickles.

    Attributes
    ----------
    kind : str
        Name of the context manager in ``torch``.
    args : tuple
        What it is made with.
    number : int
        Its place among those that the forward enters: two blocks stay two, since
        autocast keeps the weights that it has cast until its block ends.
    """

    kind: str
    args: tuple[Any, ...]
    number: int

    def __call__(self) -> AbstractContextManager[Any]:
        """Return the context manager."""
        make: Callable[..., AbstractContextManager[Any]] = getattr(torch, self.kind)
        return make(*self.args)

    @property
    def gradients(self) -> bool | None:
        """Whether gradients are recorded inside; None if it does not say."""
        if self.kind == "autocast":
            return None
        if self.kind == "inference_mode":
            return not self.args[0]
        return bool(self.args[0]) if self.args else self.kind == "enable_grad"


# What each context manager was made with, read off the object.
_ARGS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "no_grad": lambda _: (),
    "enable_grad": lambda _: (),
    "set_grad_enabled": lambda made: (made.mode,),
    "inference_mode": lambda made: (made.mode,),
    "autocast": lambda made: (
        made.device,
        made.fast_dtype,
        made._enabled,
        made._cache_enabled,
    ),
}


_backends: Any = torch.backends
# What else a forward may set for a while, and no half would.
_SETTINGS: dict[str, Callable[[], Any]] = {
    "the default dtype": torch.get_default_dtype,
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "the precision of float32": torch.get_float32_matmul_precision,
    "the kernels of attention": lambda: (
        _backends.cuda.flash_sdp_enabled(),
        _backends.cuda.mem_efficient_sdp_enabled(),
        _backends.cuda.math_sdp_enabled(),
        _backends.mha.get_fastpath_enabled(),
    ),
    "cuDNN": lambda: (_backends.cudnn.enabled, _backends.cudnn.deterministic),
}


class Recorder:
    """Knows in which contexts the traced forward is at any time.

    Parameters
    ----------
    gradients : bool
        Whether they are on when forward begins.
    """

    def __init__(self, gradients: bool) -> None:
        self._gradients = gradients
        self._settings = {name: read() for name, read in _SETTINGS.items()}
        self._stack: list[Context] = []
        self._num_entered = 0
        self._thread = threading.get_ident()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Follow the contexts that this thread enters."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(self._gradients))
            for kind in _ARGS:
                stack.enter_context(self._follow(kind))
            stack.enter_context(patched(saved_tensors_hooks, "__enter__", _refused))
            yield
            self.now()

    @contextmanager
    def _follow(self, kind: str) -> Iterator[None]:
        made = getattr(torch, kind)
        enter, leave = made.__enter__, made.__exit__

        def entered(manager: Any) -> Any:
            result = enter(manager)
            if threading.get_ident() == self._thread:
                self._num_entered += 1
                args = _ARGS[kind](manager)
                self._stack.append(Context(kind, args, self._num_entered))
            return result

        def left(manager: Any, *error: Any) -> Any:
            if threading.get_ident() == self._thread:
                self._stack.pop()
            return leave(manager, *error)

        with patched(made, "__enter__", entered), patched(made, "__exit__", left):
            yield

    def now(self) -> tuple[Context, ...]:
        """Return the contexts of the next step.

        Raises
        ------
        CutError
            If gradients were switched by a call instead of a block, or something else
            is set for a while.
        """
        for name, read in _SETTINGS.items():
            if read() != self._settings[name]:
                raise CutError(
                    f"forward sets {name} for a while{user_line()}, which no half "
                    "would do; set it before training"
                )
        said = [c.gradients for c in self._stack if c.gradients is not None]
        if torch.is_grad_enabled() != (said[-1] if said else self._gradients):
            raise CutError(
                f"forward switches gradients by a call{user_line()}; write "
                "`with torch.set_grad_enabled(...):` around what it is for"
            )
        return tuple(self._stack)


_save = saved_tensors_hooks.__enter__


def _refused(hooks: Any) -> Any:
    # Those of checkpoint and save_on_cpu, which are other classes, change no number.
    if type(hooks) is saved_tensors_hooks:
        raise CutError(f"forward has saved_tensors_hooks{user_line()}; no half would")
    return _save(hooks)


@contextmanager
def entered(node: Node) -> Iterator[None]:
    """Enter the contexts of a node."""
    with ExitStack() as stack:
        for context in node.meta.get(CONTEXTS, ()):
            stack.enter_context(context())
        yield


def enter_context(number: int) -> None:
    """Stand for the head of a ``with`` block in a graph."""


def leave_context() -> None:
    """Stand for the end of a ``with`` block in a graph."""


def mark_contexts(graph: fx.Graph) -> dict[str, Any]:
    """Mark where the contexts of a graph's nodes begin and end.

    Returns
    -------
    dict of str to Context
        By the name that `write_contexts` gives them.
    """
    names: dict[str, Any] = {}
    inside: tuple[Context, ...] = ()
    for node in list(graph.nodes):
        wanted = node.meta.get(CONTEXTS)
        if node.op == "output":
            wanted = ()
        elif wanted is None or node.op in ("get_attr", "placeholder"):
            continue
        with graph.inserting_before(node):
            same = sum(1 for a, b in zip(inside, wanted, strict=False) if a == b)
            for _ in inside[same:]:
                graph.call_function(leave_context)
            for context in wanted[same:]:
                graph.call_function(enter_context, (context.number,))
                names[f"context_{context.number}"] = context
        inside = wanted
    return names


def write_contexts(source: str) -> str:
    """Turn the marks in a forward's source into ``with`` blocks.

    Examples
    --------
    >>> marked = ["a = f.enter_context(3)", "b = c", "d = f.leave_context()"]
    >>> print(write_contexts(chr(10).join(marked)))
    with context_3():
        b = c
    """
    lines, depth = [], 0
    for line in source.splitlines():
        if re.match(r"\s*\w+ = [\w.]*leave_context\(\)", line):
            depth -= 1
            continue
        head = re.match(r"(\s*)\w+ = [\w.]*enter_context\((\d+)\)", line)
        text = f"{head[1]}with context_{head[2]}():" if head else line
        lines.append("    " * depth + text)
        depth += head is not None
    return "\n".join(lines)
