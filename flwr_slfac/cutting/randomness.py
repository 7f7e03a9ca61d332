"""Random states: those that a forward may use, and those it may not."""

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import nn

from flwr_slfac.errors import CutError

T = TypeVar("T")

_NAME = "Python's random"
# The generator behind the functions of Python's `random`.
_PYTHON = cast(Any, random.random).__self__


class _Draws(threading.local):
    """How often this thread drew from Python's `random`; None if nobody counts."""

    number: int | None = None


_DRAWS = _Draws()


@contextmanager
def _counted_draws() -> Iterator[None]:
    """Count this thread's draws from Python's `random`: exact, but slow."""
    outer = sys.getprofile()
    _DRAWS.number = 0

    def count(frame: FrameType, event: Any, arg: Any) -> None:
        if event == "c_call" and getattr(arg, "__self__", None) is _PYTHON:
            _DRAWS.number = (_DRAWS.number or 0) + 1
        if outer is not None:
            outer(frame, event, arg)

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(outer)
        _DRAWS.number = None


def unless_others_draw(work: Callable[[], T]) -> T:
    """Do work that refuses draws from Python's `random`; again, if it is refused.

    Its state tells that somebody drew. That may be another thread, one of Flower's for
    example: the second time this thread's own draws are counted.
    """
    try:
        return work()
    except CutError as error:
        if _NAME not in str(error):
            raise
    with _counted_draws():
        return work()


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Give back every random state of the process as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    cuda: Any = torch.cuda
    started = cuda.is_available() and cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if started else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def foreign_states(model: nn.Module) -> dict[str, Any]:
    """Return the states of generators that a seed of torch does not set.

    Parameters
    ----------
    model : nn.Module
        Whose modules may hold generators of their own.

    Returns
    -------
    dict of str to object
        What can be compared, by what it is called.
    """
    states: dict[str, Any] = {
        _NAME: random.getstate() if _DRAWS.number is None else _DRAWS.number,
        "numpy.random": _of_numpy(np.random.mtrand._rand),
    }
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            name = f"the generator `{f'{path}.{key}'.lstrip('.')}`"
            if isinstance(value, random.Random):
                states[name] = value.getstate()
            elif isinstance(value, np.random.Generator | np.random.RandomState):
                states[name] = _of_numpy(value)
            elif isinstance(value, torch.Generator):
                states[name] = value.get_state().tolist()
    return states


def _of_numpy(generator: Any) -> str:
    bits = getattr(generator, "bit_generator", None)
    state = generator.get_state(legacy=False) if bits is None else bits.state
    return repr({k: _plain(v) for k, v in state.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value.tobytes() if isinstance(value, np.ndarray) else value


def drawn(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Name the generators that were used in between; empty if none was."""
    return " and ".join(k for k, v in before.items() if after.get(k) != v)
