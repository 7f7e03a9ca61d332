"""See `rans`, and `choice` for how the others are called."""

from typing import Any

def rans_encode(
    states: Any, counts: Any, frequencies: Any, symbols: Any, words: Any, end: int
) -> int: ...
def rans_decode(
    states: Any, counts: Any, frequencies: Any, words: Any, start: int, out: Any
) -> int: ...
def pack_digits(
    values: Any,
    itemsize: int,
    limit: int,
    per_symbol: int,
    is_signed: bool,
    symbols: Any,
    counts: Any,
) -> int: ...
def unpack_digits(
    symbols: Any, limit: int, per_symbol: int, is_signed: bool, values: Any
) -> int: ...
def split(
    matrix: Any,
    itemsize: int,
    order: Any,
    rows: Any,
    starts: Any,
    runs: Any,
    offset: int,
    classes: int,
    out: Any,
) -> None: ...
def join(
    values: Any,
    itemsize: int,
    order: Any,
    rows: Any,
    starts: Any,
    runs: Any,
    offset: int,
    classes: int,
    out: Any,
) -> None: ...
