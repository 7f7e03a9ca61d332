"""Functions that a setting names: one of ours, or ``module:function`` of one's own."""

import importlib
from collections.abc import Collection, Mapping
from typing import TypeVar

from flwr_slfac import SettingError

F = TypeVar("F")


def require_function(setting: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is none of those known, nor ``module:function``.

    Raises
    ------
    SettingError
        If it is not.
    """
    if name not in known and name.count(":") != 1:
        raise SettingError(
            f"{setting} is {name!r}; use one of {', '.join(known)}, or "
            "'module:function'"
        )


def find_function(setting: str, name: str, known: Mapping[str, F]) -> F:
    """Return a function by name.

    Raises
    ------
    SettingError
        If it cannot be found.
    """
    require_function(setting, name, known)
    if name in known:
        return known[name]
    module, _, function = name.partition(":")
    try:
        found: F = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(f"{setting} {name!r} cannot be found: {error}") from error
    return found
