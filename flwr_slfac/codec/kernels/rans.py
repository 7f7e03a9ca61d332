r"""Interleaved range asymmetric numeral systems (rANS, Duda 2013), by NumPy.

::

    symbol i --> lane i % L, whose state grows by what the symbol costs
    a state beyond 32 bits --16 bits--> words, which all lanes share

A state x codes a symbol of frequency f, whose slots begin at c, as
``x // f * 2**14 + c + x % f``; it is kept in [2**16, 2**32). Decoding undoes this in
the opposite order, so symbols are coded last to first. Lanes let a processor work on
many symbols at once, and NumPy on L. The compiled functions have the same parameters
and give the same bytes.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["LOWER_BOUND", "NUM_SYMBOLS", "SCALE_BITS", "decode", "encode"]

# Frequencies of a segment add up to 2**14, our choice: a table of all slots is 16 KiB,
# half of what a core's first cache holds.
SCALE_BITS = 14
# A symbol is a byte.
NUM_SYMBOLS = 256
# States are at least this; below, 16 bits more come from the words.
LOWER_BOUND = 2**16
_SCALE = 1 << SCALE_BITS
# Up to so many lanes plain integers are quicker than arrays (our choice).
_FEW_LANES = 4
# NumPy takes longer to convert a plain integer than to add a few.
_MASK, _SHIFT = np.array(_SCALE - 1, np.uint32), np.array(SCALE_BITS, np.uint32)
_LEAST, _WORD = np.array(LOWER_BOUND, np.uint32), np.array(16, np.uint32)

Array = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]
Frequencies = npt.NDArray[np.uint16]
Symbols = npt.NDArray[np.uint8]


def encode(
    states: Array,
    counts: Counts,
    frequencies: Frequencies,
    symbols: Symbols,
    words: Symbols,
    end: int,
) -> int:
    """Code symbols, last to first; words grow towards the front.

    Parameters
    ----------
    states : ndarray (L,)
        Of the lanes; changed.
    counts : ndarray (S,)
        Symbols of each segment.
    frequencies : ndarray (S, 256)
        Of the symbols of each segment: they add up to 2**14, and no symbol has all.
    symbols : ndarray (sum of counts,)
        Symbol i is coded on lane ``i % L``.
    words : ndarray (n,)
        Bytes; what comes is written before `end`, where there must be room for a word
        a symbol and one more.
    end : int
        Where the last word ends.

    Returns
    -------
    int
        Where the first word begins now.
    """
    of_symbol = _flat_index(counts, symbols)
    starts = np.cumsum(frequencies, axis=1, dtype=np.uint32) - frequencies
    f = frequencies.astype(np.uint32).reshape(-1)[of_symbol]
    c = starts.astype(np.uint32).reshape(-1)[of_symbol]
    if not f.all():
        raise ValueError("a symbol has no frequency")
    if len(states) <= _FEW_LANES:
        coded = _encode_few(states, f.tolist(), c.tolist())
    else:
        coded = _encode_many(states, f, c)
    begin = end - 2 * coded.size
    words[begin:end] = coded.astype("<u2").view(np.uint8)
    return begin


def decode(
    states: Array,
    counts: Counts,
    frequencies: Frequencies,
    words: Symbols,
    start: int,
    out: Symbols,
) -> int:
    """Undo `encode`.

    Parameters
    ----------
    states, counts, frequencies
        See `encode`.
    words : ndarray (n,)
        Bytes, from anywhere.
    start : int
        Where the first word begins.
    out : ndarray (sum of counts,)
        Symbols; any words give symbols of the segment's.

    Returns
    -------
    int
        Where the next word begins; -1 if words run out.
    """
    sizes = frequencies.astype(np.int64)
    symbol_of = np.repeat(
        np.tile(np.arange(NUM_SYMBOLS, dtype=np.uint8), len(sizes)), sizes.reshape(-1)
    )
    starts = (np.cumsum(sizes, axis=1) - sizes).reshape(-1)
    rest = words[start:]
    queue = rest[: rest.size // 2 * 2].view("<u2").astype(np.uint32)
    few = _decode_few if len(states) <= _FEW_LANES else _decode_many
    used = few(states, counts, sizes.reshape(-1), starts, symbol_of, queue, out)
    return start + 2 * used if used >= 0 else -1


def _flat_index(counts: Counts, symbols: Symbols) -> npt.NDArray[np.int64]:
    """Return the index of each symbol into tables of all segments, end to end."""
    index = np.repeat(np.arange(len(counts)) * NUM_SYMBOLS, counts)
    index += symbols
    return index


def _encode_few(states: Array, f: list[int], c: list[int]) -> npt.NDArray[np.uint32]:
    lanes, num_lanes = states.tolist(), len(states)
    coded = []
    for i in range(len(f) - 1, -1, -1):
        x, frequency = lanes[i % num_lanes], f[i]
        if x >= frequency << 32 - SCALE_BITS:
            coded.append(x & 0xFFFF)
            x >>= 16
        quotient, rest = divmod(x, frequency)
        lanes[i % num_lanes] = (quotient << SCALE_BITS) + rest + c[i]
    states[:] = lanes
    return np.array(coded[::-1], np.uint32)


def _encode_many(states: Array, f: Array, c: Array) -> npt.NDArray[np.uint32]:
    limits, gains = f << np.uint32(32 - SCALE_BITS), _SCALE - f
    coded = []
    for start in range((f.size - 1) // len(states) * len(states), -1, -len(states)):
        step = slice(start, start + len(states))
        part = f[step]
        x = states[: part.size]
        full = (x >= limits[step]).nonzero()[0]
        if full.size:
            large = x[full]
            coded.append(large)
            x[full] = large >> _WORD
        # The same as quotient * 2**14 + rest + start, with one product less.
        x += x // part * gains[step]
        x += c[step]
    # Words are the low 16 bits, which the narrower type keeps.
    return np.concatenate([np.zeros(0, np.uint32), *coded[::-1]])


def _decode_few(
    states: Array,
    counts: Counts,
    sizes: Counts,
    starts: Counts,
    symbol_of: Symbols,
    queue: Array,
    out: Symbols,
) -> int:
    lanes, num_lanes, at, lane = states.tolist(), len(states), 0, 0
    words, table = queue.tolist(), symbol_of.tobytes()
    f, c = sizes.tolist(), starts.tolist()
    found = bytearray()
    for segment, count in enumerate(counts.tolist()):
        slots, symbols = segment << SCALE_BITS, segment * NUM_SYMBOLS
        for _ in range(count):
            x = lanes[lane]
            slot = x & _SCALE - 1
            symbol = table[slots + slot]
            found.append(symbol)
            index = symbols + symbol
            x = f[index] * (x >> SCALE_BITS) + slot - c[index]
            if x < LOWER_BOUND:
                if at == len(words):
                    return -1
                x = x << 16 | words[at]
                at += 1
            lanes[lane] = x
            lane = (lane + 1) % num_lanes
    states[:] = lanes
    out[:] = np.frombuffer(found, np.uint8)
    return at


def _decode_many(
    states: Array,
    counts: Counts,
    sizes: Counts,
    starts: Counts,
    symbol_of: Symbols,
    queue: Array,
    out: Symbols,
) -> int:
    num_lanes, at = len(states), 0
    f, c = sizes.astype(np.uint32), starts.astype(np.uint32)
    slots = np.repeat(np.arange(len(counts)) << SCALE_BITS, counts)
    # Tables of segments, end to end: where each symbol's begins, then its own index.
    indices = np.repeat(np.arange(len(counts)) * NUM_SYMBOLS, counts)
    scratch = np.empty(num_lanes, np.uint32)
    for start in range(0, out.size, num_lanes):
        step = slice(start, start + num_lanes)
        index = indices[step]
        x, slot = states[: index.size], scratch[: index.size]
        np.bitwise_and(x, _MASK, out=slot)
        index += symbol_of.take(slots[step] + slot)
        np.right_shift(x, _SHIFT, out=x)
        x *= f.take(index)
        x += slot
        x -= c.take(index)
        needy = (x < _LEAST).nonzero()[0]
        if needy.size:
            if at + needy.size > queue.size:
                return -1
            x[needy] = x[needy] << _WORD | queue[at : at + needy.size]
            at += needy.size
    out[:] = indices & NUM_SYMBOLS - 1
    return at
