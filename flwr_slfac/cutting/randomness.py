"""Random states: those that a forward may use, and those it may not."""

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from torch import nn

# The generator behind the functions of Python's `random`.
_PYTHON = cast(Any, random.random).__self__


class _Draws(threading.local):
    """How often this thread drew from Python's `random` while that was watched."""

    number = 0


_DRAWS = _Draws()


@contextmanager
def _counted_draws() -> Iterator[None]:
    """Count this thread's draws from Python's `random`.

    Its state does not tell: other threads, those of Flower for one, draw meanwhile.
    """
    outer = sys.getprofile()

    def count(frame: FrameType, event: Any, arg: Any) -> None:
        if event == "c_call" and getattr(arg, "__self__", None) is _PYTHON:
            _DRAWS.number += 1
        if outer is not None:
            outer(frame, event, arg)

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(outer)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Give back every random state of the process as it was; watch Python's."""
    python, numpy = random.getstate(), np.random.get_state()
    cuda: Any = torch.cuda
    started = cuda.is_available() and cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if started else ()
    try:
        with torch.random.fork_rng(devices=devices), _counted_draws():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def foreign_states(model: nn.Module) -> dict[str, Any]:
    """Return the states of generators that a seed of torch does not set.

    Within `untouched_randomness`, which counts what is drawn from Python's.

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
        "Python's random": _DRAWS.number,
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
