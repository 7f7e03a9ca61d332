"""What a Flower strategy remembers from round to round, found by looking at it.

A strategy has no method for that. What it remembers lies in its attributes: those that
are others than before the first round are stored, those that are not are settings and
stay as the user made them. What changed and cannot be stored is refused by name.
"""

import hashlib
import inspect
import json
import logging
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy

from flwr_slfac.checkpoint import pack, storable
from flwr_slfac.errors import CheckpointError
from flwr_slfac.flower_parts import chain

logger = logging.getLogger("flwr")

_REMEDY = (
    "give its class the methods state_dict() and load_state_dict(state), or leave "
    "checkpoint= out"
)


@dataclass(frozen=True)
class _Held:
    """One thing that a strategy holds.

    Parameters
    ----------
    owner : object
        Of whose attributes it is one.
    name : str
        Its name there.
    value : object
        What it is.
    asked : bool
        Whether it is asked for its state, by ``state_dict()``.
    """

    owner: Any
    name: str
    value: Any
    asked: bool = False

    @property
    def state(self) -> Any:
        """What is stored of it."""
        return self.value.state_dict() if self.asked else self.value

    def put(self, state: Any) -> None:
        """Bring it back to what was stored."""
        if self.asked:
            self.value.load_state_dict(state)
        else:
            vars(self.owner)[self.name] = state


class StrategyState:
    """What a strategy, and those that it wraps, remember from round to round.

    Parameters
    ----------
    strategy : Strategy
        As it is before the first round.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        held = dict(_held_by(strategy))
        self._before = {place: _print_of(each) for place, each in held.items()}
        self._owners = {*_names(strategy), *map(_owner, held)}
        opaque = [place for place, mark in self._before.items() if not mark]
        if opaque:
            logger.warning(
                "checkpoints hold nothing of %s, and cannot tell whether it changes: "
                "if training depends on what is in there, %s",
                ", ".join(opaque),
                _REMEDY,
            )

    def state(self) -> dict[str, Any]:
        """Return what changed since the first round, by place.

        Raises
        ------
        CheckpointError
            If something changed that cannot be stored.
        """
        held = dict(_held_by(self._strategy))
        changed = {
            place: each
            for place, each in held.items()
            if place not in self._before or _print_of(each) != self._before[place]
        }
        for place, each in changed.items():
            if _owner(place) not in self._owners:
                raise CheckpointError(
                    f"{_owner(place)} is made during the run, and a resumed run would "
                    f"not have it before; make it in __init__, or {_REMEDY}"
                )
            if not storable(each.state):
                kind = type(each.value)
                raise CheckpointError(
                    f"{place} changes from round to round and is a "
                    f"{kind.__module__}.{kind.__qualname__}, which a checkpoint cannot "
                    f"store; {_REMEDY}"
                )
        gone = [place for place in self._before if place not in held]
        return {"held": {p: e.state for p, e in changed.items()}, "gone": gone}

    def load(self, state: Mapping[str, Any]) -> None:
        """Bring the strategy to what `state` returned.

        Raises
        ------
        CheckpointError
            If it has no place for something.
        """
        held = dict(_held_by(self._strategy))
        owners = {_owner(place): each.owner for place, each in held.items()}
        owners.update(_names(self._strategy))
        for place, value in state["held"].items():
            where, name = _owner(place), place.rpartition(".")[2]
            if place in held:
                held[place].put(value)
            elif where in owners:
                vars(owners[where])[name] = value
            else:
                raise CheckpointError(f"the strategy has no {where} for {place}")
        for place in state["gone"]:
            if place in held:
                vars(held[place].owner).pop(held[place].name, None)

    def settings(self) -> dict[str, Any]:
        """Return what the strategies were built with, by place."""
        found: dict[str, Any] = {}
        for name, each in _names(self._strategy).items():
            found[name] = type(each).__qualname__
            for parameter in _parameters(type(each)):
                value = vars(each).get(parameter)
                if callable(value) or isinstance(value, bool | int | float | str):
                    found[f"{name}.{parameter}"] = value
        return found


def _owner(place: str) -> str:
    return place.rpartition(".")[0] or place


def _parameters(cls: type) -> list[str]:
    """Return what a class, and those that it extends, are built with."""
    inits = [vars(each)["__init__"] for each in cls.__mro__ if "__init__" in vars(each)]
    inits = [each for each in inits if inspect.isfunction(each)]
    return sorted(
        {name for each in inits for name in inspect.signature(each).parameters}
    )


def _names(strategy: Strategy) -> dict[str, Strategy]:
    """Return a strategy and those that it wraps by a name for each."""
    found: dict[str, Strategy] = {}
    for each in chain(strategy):
        name = type(each).__name__
        while name in found:
            name += "'"
        found[name] = each
    return found


def _held_by(strategy: Strategy) -> Iterator[tuple[str, _Held]]:
    """Yield what strategies hold, by place: ``"FedAdam.m_t"``."""
    seen: set[int] = set()
    for name, each in _names(strategy).items():
        if _has_state_dict(each):
            yield name, _Held(None, name, each, asked=True)
        else:
            yield from _attributes(each, name, seen)


def _attributes(owner: Any, where: str, seen: set[int]) -> Iterator[tuple[str, _Held]]:
    """Yield the attributes of an object, and those of plain objects in them."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    for name, value in list(vars(owner).items()):
        place = f"{where}.{name}"
        # A grid is handed to a strategy anew in each round.
        if isinstance(value, Strategy) or hasattr(value, "push_messages"):
            continue
        if _has_state_dict(value):
            yield place, _Held(owner, name, value, asked=True)
        elif storable(value) or not _is_data(value, ()):
            yield place, _Held(owner, name, value)
        else:
            yield from _attributes(value, place, seen)


def _has_state_dict(value: Any) -> bool:
    methods = ("state_dict", "load_state_dict")
    return not isinstance(value, type) and all(
        callable(getattr(value, name, None)) for name in methods
    )


class _Plain:
    """An object of attributes only, to compare others with."""


def _is_data(value: Any, around: tuple[int, ...]) -> bool:
    """Say whether an object is of attributes only, all of which can be stored."""
    kind = type(value)
    # What is made in C, extends a container or has slots is larger than its attributes.
    if kind.__basicsize__ != _Plain.__basicsize__ or not hasattr(value, "__dict__"):
        return False
    own_pickling = ("__reduce__", "__reduce_ex__", "__getstate__")
    if any(name in vars(c) for c in kind.__mro__[:-1] for name in own_pickling):
        return False
    if isinstance(value, type) or callable(value) or id(value) in around:
        return False
    inside = (*around, id(value))
    return all(storable(v) or _is_data(v, inside) for v in vars(value).values())


def _print_of(held: _Held) -> str:
    """Return a mark that changes when a thing does; empty where that is not known."""
    state = held.state
    try:
        if storable(state):
            packed, tensors = pack(state)
            digest = hashlib.sha256(json.dumps(packed).encode())
            for tensor in tensors.values():
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            return digest.hexdigest()
        if inspect.isroutine(state) or isinstance(state, type):
            return f"{getattr(state, '__qualname__', '')} {id(state)}"
        return hashlib.sha256(pickle.dumps(state)).hexdigest()
    except Exception:  # whatever an object's own pickling raises
        return ""
