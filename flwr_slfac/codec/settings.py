"""Settings: ``"slfac(theta=0.95)"`` to a codec and back, without eval."""

import ast
import dataclasses
import difflib
from typing import Any

from flwr_slfac.codec.base import Codec
from flwr_slfac.codec.registry import find_codec, known_ids
from flwr_slfac.errors import SettingError

# Our choice: no setting needs as much, and Python's parser stays quick.
_MAX_TEXT = 1000


def parse_codec(text: str) -> Codec:
    """Read a codec and its settings from text.

    Parameters
    ----------
    text : str
        ``name`` or ``name(setting=value, ...)``; a value is a Python literal, a bare
        word where the setting is a word, or, for a codec inside a codec, such a text
        again. At most 1000 characters.

    Returns
    -------
    Codec
        Of the class that is registered, or declared by an installed distribution,
        under this name.

    Raises
    ------
    SettingError
        If the text has another form, the name or a setting is unknown, a value is
        out of range, or the codec of an installed distribution cannot be loaded.

    Examples
    --------
    >>> parse_codec("float16")
    Float16()
    >>> format_codec(parse_codec("float16()"))
    'float16'
    >>> parse_codec("waterfill(basis=dct)").basis
    'dct'
    """
    if len(text) > _MAX_TEXT:
        raise SettingError(
            f"codec setting of {len(text)} characters; at most {_MAX_TEXT}"
        )
    # A codec id may hold "-", which Python names may not.
    name, bracket, rest = text.strip().partition("(")
    try:
        tree = ast.parse("codec" + bracket + rest, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _malformed(text) from error
    return _build(name.strip(), tree, text)


def as_codec(codec: Codec | str) -> Codec:
    """Return a codec that was given as one, or as its text.

    Raises
    ------
    SettingError
        As `parse_codec`.

    Examples
    --------
    >>> as_codec("identity")
    Identity()
    """
    return parse_codec(codec) if isinstance(codec, str) else codec


def format_codec(codec: Codec) -> str:
    """Return the text that `parse_codec` reads back to an equal codec.

    Parameters
    ----------
    codec : Codec
        Only settings that differ from their defaults are printed.
    """
    changed = []
    for f in dataclasses.fields(codec):  # type: ignore[arg-type]
        value = getattr(codec, f.name)
        if value != f.default:
            shown = format_codec(value) if isinstance(value, Codec) else repr(value)
            changed.append(f"{f.name}={shown}")
    return codec.codec_id + (f"({', '.join(changed)})" if changed else "")


def require_bits(bits: int, low: int, high: int) -> None:
    """Raise SettingError unless `bits` is a whole number from `low` to `high`."""
    if type(bits) is not int or not low <= bits <= high:
        raise SettingError(f"bits is {bits!r}; give a whole number {low} to {high}")


def _build(name: str, tree: ast.expr, text: str) -> Codec:
    cls = find_codec(name)
    if cls is None:
        known = known_ids()
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SettingError(
            f"no codec is named {name!r}; {hint}known: {', '.join(known)}"
        )
    declared = dataclasses.fields(cls)  # type: ignore[arg-type]
    words = {f.name for f in declared if isinstance(f.default, str)}
    settings = _settings_in(tree, text, words)
    fields = [f.name for f in declared]
    for key in settings:
        if key not in fields:
            raise SettingError(
                f"codec {name!r} has no setting {key!r}; it has: "
                f"{', '.join(fields) or 'none'}"
            )
    try:
        return cls(**settings)
    except TypeError as error:
        raise SettingError(f"codec {name!r}: {error}") from error


def _settings_in(tree: ast.expr, text: str, words: set[str]) -> dict[str, Any]:
    """Return the keyword arguments of a name or a call; some may be bare words."""
    if isinstance(tree, ast.Name):
        return {}
    if not (
        isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args
    ):
        raise _malformed(text)
    settings = {
        k.arg: _value(k.value, text, bare=k.arg in words)
        for k in tree.keywords
        if k.arg
    }
    if len(settings) != len(tree.keywords):
        raise _malformed(text)
    return settings


def _value(node: ast.expr, text: str, *, bare: bool) -> Any:
    if bare and isinstance(node, ast.Name):
        return node.id
    inner = node.func if isinstance(node, ast.Call) else node
    if isinstance(inner, ast.Name) and inner.id in known_ids():
        return _build(inner.id, node, text)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise _malformed(text) from error


def _malformed(text: str) -> SettingError:
    return SettingError(
        f"cannot read the codec setting {text!r}; write name or name(setting=value, "
        "...), for example 'float16'"
    )
