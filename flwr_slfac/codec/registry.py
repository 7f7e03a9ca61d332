"""Which codec an id names: our own, those that were registered, those installed.

An installed distribution makes its codec known by an entry point of the group
``flwr_slfac.codecs``, as numcodecs does::

    id asked for --registered?--yes--> class
                       no --entry point of that name?--> load, check, register --> class
                                          no --> None

Ours are registered when `flwr_slfac.codec` is imported, so an entry point with one of
their ids is never looked at.
"""

import inspect
import sys
import threading
from dataclasses import is_dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from flwr_slfac.codec.base import Codec
from flwr_slfac.errors import SettingError

ENTRY_POINT_GROUP = "flwr_slfac.codecs"

# Our choice: readable in a frame, and an eighth of what its length byte allows.
_MAX_ID_LENGTH = 32
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")

_REGISTRY: dict[str, type[Codec]] = {}
# A server decodes on several threads; what one of them loads, no other loads, too. A
# module that is loaded may ask for codecs itself.
_LOADING = threading.RLock()
C = TypeVar("C", bound=type[Codec])


def register(cls: C) -> C:
    """Make a codec known to `decode` and to settings by its `codec_id`.

    Parameters
    ----------
    cls : type of Codec
        A concrete codec; returned as it is, so that this works as a decorator.

    Raises
    ------
    SettingError
        If the id is taken by another class, or is not 1 to 32 of ``a-z 0-9 _ -``.
    """
    codec_id = cls.codec_id
    is_short = 0 < len(codec_id) <= _MAX_ID_LENGTH
    if not (is_short and _ID_CHARACTERS.issuperset(codec_id)):
        raise SettingError(
            f"codec id {codec_id!r} is not 1 to 32 characters of a-z, 0-9, _ and -"
        )
    if _REGISTRY.get(codec_id, cls) is not cls:
        raise SettingError(
            f"codec id {codec_id!r} is taken by {_REGISTRY[codec_id].__qualname__}"
        )
    _REGISTRY[codec_id] = cls
    return cls


def registered() -> dict[str, type[Codec]]:
    """Return every known codec class by id, those of entry points last.

    All entry points are loaded. One that cannot be is left out here; asked for by name,
    it says why.
    """
    for name in _entry_points():
        try:
            find_codec(name)
        except SettingError:
            continue
    return dict(_REGISTRY)


def known_ids() -> list[str]:
    """Return the ids of all codecs, sorted; entry points are named, not loaded."""
    return sorted({*_REGISTRY, *_entry_points()})


def find_codec(codec_id: str) -> type[Codec] | None:
    """Return the class that an id names, None if there is none.

    Parameters
    ----------
    codec_id : str
        Any text. An entry point is loaded, which runs its distribution's code, only if
        its name is exactly this and nobody registered the id.

    Raises
    ------
    SettingError
        If an entry point of this name cannot be loaded, is not a concrete codec of this
        id, or is declared by two distributions.
    """
    cls = _REGISTRY.get(codec_id)
    if cls is not None:
        return cls
    with _LOADING:
        return _REGISTRY.get(codec_id) or _declared(codec_id)


def _declared(codec_id: str) -> type[Codec] | None:
    """Return what an entry point declares, None if there is none of this name."""
    declared = _entry_points().get(codec_id, ())
    if not declared:
        return None
    if len(declared) > 1:
        names = " and ".join(map(_distribution, declared))
        raise SettingError(f"codec {codec_id!r} is declared by {names}; uninstall one")
    return _load(declared[0])


def _entry_points() -> dict[str, tuple[EntryPoint, ...]]:
    """Return the installed entry points by name."""
    return _entry_points_on(tuple(sys.path))


# Reading all metadata takes long, and frames with unknown ids could ask for it often:
# it is read again only when the import path changes.
@lru_cache(maxsize=1)
def _entry_points_on(path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points that this import path leads to."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        # A distribution that is on the path twice counts once.
        if all(_place(entry) != _place(other) for other in found.get(entry.name, ())):
            found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def _load(entry: EntryPoint) -> type[Codec]:
    """Import and register what an entry point declares."""
    whose = f"codec {entry.name!r} of distribution {_distribution(entry)}"
    before = set(_REGISTRY)
    try:
        cls: Any = entry.load()
    # A stranger's module may fail in any way; all of them are a setting that is wrong.
    except Exception as error:
        # What the module registered before it failed would make it look whole.
        for added in set(_REGISTRY) - before:
            del _REGISTRY[added]
        raise SettingError(
            f"{whose} cannot be loaded from {entry.value!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not _is_concrete_codec(cls):
        raise SettingError(
            f"{whose} is {cls!r}; declare a concrete dataclass that is a subclass of "
            "flwr_slfac.codec.Codec"
        )
    codec_id = getattr(cls, "codec_id", None)
    if codec_id != entry.name:
        raise SettingError(f"{whose} has codec_id {codec_id!r}; declare it as that")
    try:
        register(cls)
    except SettingError as error:
        raise SettingError(f"{whose}: {error}") from error
    return _REGISTRY[entry.name]


def _is_concrete_codec(thing: object) -> bool:
    return (
        inspect.isclass(thing)
        and issubclass(thing, Codec)
        and not inspect.isabstract(thing)
        and is_dataclass(thing)
    )


def _distribution(entry: EntryPoint) -> str:
    return repr(entry.dist.name) if entry.dist is not None else "unknown"


def _place(entry: EntryPoint) -> tuple[str, str]:
    return _distribution(entry), entry.value
