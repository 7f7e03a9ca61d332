"""Codecs by name: ``"slfac(theta=0.95)"`` to a codec and back, without eval."""

import ast
import dataclasses
import difflib
from typing import Any

from flwr_slfac.codec.base import Codec, registered
from flwr_slfac.errors import SettingError

_MAX_TEXT = 1000


def parse_codec(text: str) -> Codec:
    """Read a codec and its settings from text.

    Parameters
    ----------
    text : str
        ``name`` or ``name(setting=value, ...)``; a value is a Python literal or,
        for a codec inside a codec, such a text again.

    Raises
    ------
    SettingError
        If the text has another form, the name or a setting is unknown, or a value is
        out of range.

    Examples
    --------
    >>> parse_codec("float16")
    Float16()
    >>> format_codec(parse_codec("float16()"))
    'float16'
    """
    if len(text) > _MAX_TEXT:
        raise SettingError(f"codec setting of {len(text)} characters; at most 1000")
    # A codec id may hold "-", which Python names may not.
    name, bracket, rest = text.strip().partition("(")
    try:
        tree = ast.parse("codec" + bracket + rest, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _malformed(text) from error
    return _build(name.strip(), tree, text)


def format_codec(codec: Codec) -> str:
    """Return the text that `parse_codec` reads back to an equal codec.

    Only settings that differ from their defaults are printed.
    """
    changed = []
    for f in dataclasses.fields(codec):  # type: ignore[arg-type]
        value = getattr(codec, f.name)
        if value != f.default:
            shown = format_codec(value) if isinstance(value, Codec) else repr(value)
            changed.append(f"{f.name}={shown}")
    return codec.codec_id + (f"({', '.join(changed)})" if changed else "")


def _build(name: str, tree: ast.expr, text: str) -> Codec:
    known = registered()
    cls = known.get(name)
    if cls is None:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SettingError(
            f"no codec is named {name!r}; {hint}known: {', '.join(sorted(known))}"
        )
    if isinstance(tree, ast.Name):
        settings: dict[str, Any] = {}
    elif (
        isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args
    ):
        settings = {k.arg: _value(k.value, text) for k in tree.keywords if k.arg}
        if len(settings) != len(tree.keywords):
            raise _malformed(text)
    else:
        raise _malformed(text)
    fields = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
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


def _value(node: ast.expr, text: str) -> Any:
    known = registered()
    inner = node.func if isinstance(node, ast.Call) else node
    if isinstance(inner, ast.Name) and inner.id in known:
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
