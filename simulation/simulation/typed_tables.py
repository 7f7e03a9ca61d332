"""A table of a TOML file as a dataclass, or an error that names file, line and key."""

import difflib
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from flwr_slfac import SettingError
from simulation.errors import ScenarioError

T = TypeVar("T")
# Our choice: three names fit a line; laxer than difflib's 0.6, which misses prefixes.
_NUM_SUGGESTED, _LEAST_LIKENESS = 3, 0.5
UNITS = (
    *("_bit_per_s", "_byte_per_s", "_flop_per_s", "_dbm_per_hz", "_bytes"),
    *("_hz", "_dbm", "_db", "_s", "_j", "_w", "_m"),
)


@dataclass(frozen=True)
class Source:
    """Where a table is from.

    Parameters
    ----------
    path : Path
        The file.
    lines : dict of str to int
        Line of each dotted key.
    """

    path: Path
    lines: dict[str, int]

    def error(self, key: str, reason: str) -> ScenarioError:
        """Return an error at a dotted key, or at the table that should have it."""
        place = key
        while place and place not in self.lines:
            place = place.rpartition(".")[0]
        return ScenarioError(self.path, self.lines.get(place), key, reason)


def read_dataclass(
    kind: type[T], table: Any, name: str, source: Source, also: Iterable[str] = ()
) -> T:
    """Make a dataclass of a table; keys are its fields.

    Parameters
    ----------
    kind : type
        A dataclass of numbers, texts, booleans, tuples of them, and dicts of numbers.
    table : object
        What the file holds under `name`.
    name : str
        Dotted name of the table, for errors.
    source : Source
        Where it is from.
    also : iterable of str
        Keys that were taken out of the table before, to be named beside its own.

    Raises
    ------
    ScenarioError
        If a key is unknown or missing, lacks its unit, has the wrong type, or the value
        is refused by the dataclass.
    """
    if not isinstance(table, dict):
        raise source.error(name, f"is {table!r}; make it a table, [{name}]")
    hints = typing.get_type_hints(kind)
    known = {f.name: hints[f.name] for f in fields(kind) if f.init}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise source.error(f"{name}.{key}", _unknown(key, [*known, *also]))
    own = {
        key: _value(known[key], value, f"{name}.{key}", source)
        for key, value in table.items()
    }
    for field in fields(kind):  # type: ignore[arg-type]
        no_default = field.default is MISSING and field.default_factory is MISSING
        if field.name not in own and field.init and no_default:
            raise source.error(f"{name}.{field.name}", "is missing; it has no default")
    return checked(lambda: kind(**own), name, list(own), source)


def checked(make: Callable[[], T], name: str, keys: list[str], source: Source) -> T:
    """Return what `make` makes; what it refuses is an error at the key it names."""
    try:
        return make()
    except ScenarioError:
        raise
    except SettingError as error:
        text = str(error)
        named = [(text.index(key), -len(key), key) for key in keys if key in text]
        key = f"{name}.{min(named)[2]}" if named else name
        raise source.error(key, f"is refused: {error}") from error


def _unknown(key: str, known: list[str]) -> str:
    """Say what is wrong with a key: no unit, or not known."""
    with_unit = [k for k in known if any(k == key + unit for unit in UNITS)]
    stem = next((key[: -len(unit)] for unit in UNITS if key.endswith(unit)), None)
    other = [k for k in known if stem and any(k == stem + unit for unit in UNITS)]
    if with_unit:
        return f"has no unit; write {' or '.join(with_unit)}"
    if other:
        return f"has another unit than it needs; write {' or '.join(other)}"
    close = difflib.get_close_matches(key, known, _NUM_SUGGESTED, _LEAST_LIKENESS)
    names = ", ".join(close or known)
    return f"is not known; {'close' if close else 'known'}: {names}"


def _value(hint: Any, value: Any, key: str, source: Source) -> Any:
    """Return a value in the type of its field.

    Raises
    ------
    ScenarioError
        If it is of another.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise source.error(key, f"is {value!r}; give a list")
        return tuple(_value(parts[0], item, key, source) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise source.error(key, f"is {value!r}; give a table")
        return {k: _value(parts[1], v, f"{key}.{k}", source) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise source.error(key, f"is {value!r}; give {_NAMES[hint]}")


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
}
