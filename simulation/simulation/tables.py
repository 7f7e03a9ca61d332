"""TOML files as tables that know the line of every key."""

import re
import sys
from pathlib import Path
from typing import Any

from simulation.errors import ScenarioError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_HEADER = re.compile(r"^\s*\[+\s*([^\]]+?)\s*\]+")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+)\s*=")


def read_table(
    path: Path, text: str | None = None
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return what a TOML file holds, and the line of each dotted key and table.

    Parameters
    ----------
    path : Path
        The file.
    text : str, optional
        What is in it, where that was read elsewhere.

    Returns
    -------
    content : dict
        As `tomllib` reads it.
    lines : dict of str to int
        By dotted name (``channel.latency_s``), from 1; of arrays of tables the last.

    Raises
    ------
    ScenarioError
        If the file cannot be read or is no TOML.
    """
    try:
        text = path.read_text(encoding="utf-8") if text is None else text
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(path, None, "cannot be read:", str(error)) from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found.group(1)) if found else None
        raise ScenarioError(path, line, "is no TOML:", str(error)) from error
    return content, _lines(text)


def _lines(text: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _plain(header.group(1))
            lines[table] = number
        elif key := _KEY.match(line):
            name = _plain(key.group(1))
            lines[f"{table}.{name}" if table else name] = number
    return lines


def _plain(name: str) -> str:
    return ".".join(part.strip(" \"'") for part in name.split("."))
