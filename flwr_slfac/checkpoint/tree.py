"""Nested values as JSON and named tensors, and back, bit-exactly and without pickle.

What JSON says itself (text, whole numbers, finite numbers, bool, None, lists) stays as
it is; all else is an object with one tag::

    {"$dict": [[key, value], ...]}       keys keep their type
    {"$tensor": name, ...}               the values are in a file of tensors
    {"$float": "nan"}                    what JSON has no word for
    {"$kind": "record", "value": ...}    of a class that was registered here
"""

import math
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from flwr_slfac.checkpoint.arrays import array_of, of_array, of_tensor, tensor_of
from flwr_slfac.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
_PLAIN = (bool, int, str, type(None))
_FACTORIES: dict[str, Callable[[], Any] | None] = {
    "None": None,
    **{each.__name__: each for each in (list, dict, set, int, float)},
}


def pack(value: Any, what: str = "state") -> tuple[Any, Tensors]:
    """Turn a nested value into what JSON can say, and tensors by name.

    Parameters
    ----------
    value : nested dicts, lists, tuples, sets, numbers, texts, bytes, arrays, tensors
        Also generators of random numbers, and what `register_kind` made known.
    what : str
        Its name in errors.

    Raises
    ------
    CheckpointError
        If it holds anything else; says where.

    Examples
    --------
    >>> text, tensors = pack({"lr": 0.1, 0: (torch.ones(2), None)})
    >>> unpack(text, tensors)
    {'lr': 0.1, 0: (tensor([1., 1.]), None)}
    """
    packing = _Packing(what)
    try:
        return packing.pack(value, ()), packing.tensors
    except RecursionError as error:
        raise CheckpointError(
            f"{what} is nested too deeply, or holds itself"
        ) from error


def unpack(packed: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return what `pack` was given.

    Raises
    ------
    CheckpointError
        If these are not what `pack` returned.
    """
    try:
        return _unpack(packed, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"a stored value cannot be read: {error!r}") from error


def storable(value: Any) -> bool:
    """Say whether `pack` takes a value."""
    try:
        pack(value)
    except CheckpointError:
        return False
    return True


_KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {}


def register_kind(
    kind: str, cls: type, to_plain: Callable[[Any], Any], of_plain: Callable[[Any], Any]
) -> None:
    """Make objects of a class known; of the class itself, not of its subclasses.

    Parameters
    ----------
    kind : str
        Its name in files; never used for something else.
    cls : type
        The class.
    to_plain, of_plain : callable
        From an object to something that `pack` takes, and back.
    """
    _KINDS[kind] = cls, to_plain, of_plain


class _Packing:
    """One value on its way into JSON and tensors."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.tensors: Tensors = {}

    def pack(self, value: Any, path: tuple[str, ...]) -> Any:
        cls = type(value)
        if cls in _PLAIN:
            return value
        if cls is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if cls is list:
            return self._items(value, path)
        tagged = self._tensor(value, path) or self._container(value, path)
        if tagged is not None:
            return tagged
        for kind, (own, to_plain, _) in _KINDS.items():
            if cls is own:
                return {"$kind": kind, "value": self.pack(to_plain(value), path)}
        where = "/".join(path)
        raise CheckpointError(
            f"{self._what}{f' at {where!r}' if where else ''} holds a "
            f"{cls.__module__}.{cls.__qualname__}, which a checkpoint cannot store; "
            "known are numbers, text, bytes, arrays, tensors, Flower's records, "
            "generators of random numbers, and lists, tuples, sets and dicts of them"
        )

    def _items(self, values: Any, path: tuple[str, ...]) -> list[Any]:
        return [self.pack(v, (*path, str(i))) for i, v in enumerate(values)]

    def _pairs(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> list[Any]:
        return [
            [self.pack(k, (*path, str(k))), self.pack(v, (*path, str(k)))]
            for k, v in value.items()
        ]

    def _tensor(self, value: Any, path: tuple[str, ...]) -> dict[str, Any] | None:
        """Return the tag of a tensor or of what is stored as one; None for others."""
        found = of_tensor(value) or of_array(value)
        if found is None:
            return None
        tag, tensor = found
        name = "/".join(path) or "value"
        while name in self.tensors:
            name += "+"
        self.tensors[name] = tensor
        (kind, about), *_ = tag.items()
        return {kind: name, **about}

    def _container(self, value: Any, path: tuple[str, ...]) -> dict[str, Any] | None:
        """Return the tag of a container but a list, or of a generator."""
        cls = type(value)
        if cls is dict:
            return {"$dict": self._pairs(value, path)}
        if cls is tuple:
            return {"$tuple": self._items(value, path)}
        if cls in (OrderedDict, Counter):
            return {f"${cls.__name__}": self._pairs(value, path)}
        if cls in (set, frozenset):
            # Of any order, but the same one each time.
            return {f"${cls.__name__}": self._items(sorted(value, key=repr), path)}
        if cls is deque:
            return {"$deque": self._items(value, path), "most": value.maxlen}
        if cls is defaultdict:
            factory = getattr(value.default_factory, "__name__", "None")
            if _FACTORIES.get(factory, self) is value.default_factory:
                return {"$defaultdict": self._pairs(value, path), "of": factory}
        state = _generator_state(value)
        if state is None:
            return None
        return {"$random": cls.__name__, "state": self.pack(state, path)}


def _generator_state(value: Any) -> Any:
    """Return the state of a generator of random numbers; None for anything else."""
    if type(value) is random.Random:
        return value.getstate()
    if type(value) is np.random.Generator:
        return dict(value.bit_generator.state)
    if type(value) is np.random.RandomState:
        return value.get_state(legacy=True)
    if type(value) is torch.Generator and value.device.type == "cpu":
        return value.get_state()
    return None


def _generator(name: str, state: Any) -> Any:
    if name == "Random":
        generator = random.Random()
        generator.setstate(state)
        return generator
    if name == "Generator" and isinstance(state, dict):
        bits = getattr(np.random, state["bit_generator"])()
        bits.state = state
        return np.random.Generator(bits)
    if name == "RandomState":
        of_numpy = np.random.RandomState()
        of_numpy.set_state(state)
        return of_numpy
    of_torch = torch.Generator()
    of_torch.set_state(state)
    return of_torch


_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
}
_MAPPINGS: dict[str, Callable[[dict[Any, Any]], Any]] = {
    "$dict": dict,
    "$OrderedDict": OrderedDict,
    "$Counter": Counter,
}


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value))
    inside = value[tag]
    if tag == "$float":
        return float(inside)
    if tag in _CONTAINERS:
        return _CONTAINERS[tag]([_unpack(v, tensors) for v in inside])
    if tag in (*_MAPPINGS, "$defaultdict"):
        pairs = {_unpack(k, tensors): _unpack(v, tensors) for k, v in inside}
        if tag == "$defaultdict":
            return defaultdict(_FACTORIES[value["of"]], pairs)
        return _MAPPINGS[tag](pairs)
    if tag == "$deque":
        return deque([_unpack(v, tensors) for v in inside], value["most"])
    if tag == "$random":
        return _generator(inside, _unpack(value["state"], tensors))
    if tag == "$kind":
        return _KINDS[inside][2](_unpack(value["value"], tensors))
    if tag == "$tensor":
        return tensor_of(tensors[inside], value)
    return array_of(tag, tensors[inside], value)
