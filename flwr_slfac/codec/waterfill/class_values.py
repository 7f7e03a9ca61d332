"""How the coefficients of each class become symbols, stream by stream."""

from collections.abc import Iterator

import numpy as np

from flwr_slfac.codec.waterfill.digits import (
    LARGE,
    QUINARY,
    SMALL,
    TERNARY,
    Digits,
    Ints,
)
from flwr_slfac.codec.waterfill.energies import NUM_CLASSES
from flwr_slfac.codec.waterfill.stream_reader import StreamReader
from flwr_slfac.codec.waterfill.stream_writer import StreamWriter

# Classes up to which a class's coefficients are mostly within 1, 2 and 7 steps.
_LAST_TERNARY, _LAST_QUINARY, _LAST_SMALL = 6, 8, 12
# From here on, with a deviation of 2**4.5 steps, the lowest bit is as good as random;
# every second class has one such bit more.
_FIRST_WITH_LOW_BITS = 17


def digits_of(number: int) -> Digits:
    """Return how to cut the coefficients of a class into symbols."""
    if number <= _LAST_TERNARY:
        return TERNARY
    if number <= _LAST_QUINARY:
        return QUINARY
    return SMALL if number <= _LAST_SMALL else LARGE


def num_low_bits(number: int) -> int:
    """Return how many bits of a class's coefficients are as good as random."""
    return max(0, (number - _FIRST_WITH_LOW_BITS) // 2 + 1)


def kinds() -> Ints:
    """Return the largest digit, digits a symbol and low bits of all classes (60, 3)."""
    rows = [(digits_of(i), num_low_bits(i)) for i in range(NUM_CLASSES)]
    return np.array([(d.limit, d.per_symbol, low) for d, low in rows], np.int64)


def write_values(writer: StreamWriter, classes: list[tuple[int, Ints]]) -> None:
    """Code the levels of classes: their low bits as they are, the rest by models."""
    parts, low_bits = [], []
    for number, values in classes:
        if num_low := num_low_bits(number):
            raised = values.astype(np.int64) + (1 << num_low >> 1)
            values = raised >> num_low
            low_bits.append((raised - (values << num_low), num_low))
        parts.append((values, digits_of(number)))
    writer.bulk(parts)
    for values, num_low in low_bits:
        writer.raw(values, num_low)


def read_levels(reader: StreamReader, counts: list[tuple[int, int]]) -> Iterator[Ints]:
    """Undo `write_values`, for classes and their numbers of values."""
    parts = [(count, digits_of(number)) for number, count in counts]
    for (number, count), values in zip(counts, reader.bulk(parts), strict=True):
        if num_low := num_low_bits(number):
            low = reader.raw(count, num_low)
            low -= 1 << num_low >> 1
            low += values.astype(np.int64) << num_low
            yield low
        else:
            yield values
