r"""All symbols of a frame as one string of 16-bit words, by interleaved rANS.

::

    batches of symbols, in order
    |------------- body: L lanes -------------|-- tail: one lane --|
                                                        |
    states of the body's lanes at its end <--- words of the tail, 16 bits each

Decoding begins with L states of 32 bits, of which 16 say nothing but that a state is in
range. So the body is coded from states that carry the tail, and what a state does not
need of its upper 16 bits is not sent: a lane costs half a byte. Layout, little-endian::

    1 byte         log2 of L; 128 more if there is a tail
    4 bytes        with a tail: number of symbols in the body
    L / 2 bytes    bit lengths of the upper halves of states, less 1
    ...            states, packed: upper halves below their first bit, lower halves
    ...            words of the body
    ...            words of the tail that its states had no room for

One lane has no tail, and its state takes 4 bytes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels import LOWER_BOUND, SCALE_BITS, rans
from flwr_slfac.codec.packing import BitReader, BitWriter
from flwr_slfac.errors import DecodeError

__all__ = ["Frequencies", "Symbols", "WordReader", "WordWriter"]

Symbols = npt.NDArray[np.uint8]
Frequencies = npt.NDArray[np.uint16]
_Batch = tuple[Symbols, npt.NDArray[np.int64], Frequencies]

# Our choice: a lane costs about 4 bits, so lanes take a hundredth of a frame at most;
# but where symbols cost little, no lane has many of them. With 256 lanes each step of
# NumPy works on enough, and states are still in a core's first cache.
_BITS_PER_LANE, _SYMBOLS_PER_LANE = 600, 2048
_FEWEST_LANES, _MOST_LANES = 8, 256
# Our choice: longer tails, on one lane, would slow the reference.
_LONGEST_TAIL, _TAIL_SHARE = 2048, 64
# Costs of symbols are in 256ths of a bit: our choice.
_COST_BITS = 8
# A limit of the format: of what is claimed, before anything is allocated.
_MOST_LOG_LANES = 10
_HAS_TAIL = 128
_STATE = np.dtype("<u4")
_WORD = np.dtype("<u2")


class WordWriter:
    """Collects batches of symbols; `finish` codes all of them."""

    def __init__(self) -> None:
        self._batches: list[_Batch] = []

    def add(
        self, symbols: Symbols, counts: Sequence[int], frequencies: Frequencies
    ) -> None:
        """Add a batch, which `WordReader.read` returns in one piece.

        Parameters
        ----------
        symbols : ndarray (n,)
            One segment after the other.
        counts : sequence of int
            Symbols of each segment; their sum is n.
        frequencies : ndarray (S, 256)
            Of each segment's symbols, see `kernels`.
        """
        self._batches.append((symbols, np.array(counts, np.int64), frequencies))

    def finish(self) -> bytes:
        """Return the words of all batches."""
        total = sum(symbols.size for symbols, _, _ in self._batches)
        costs = [_costs_of(batch) for batch in self._batches]
        log_lanes = _log_lanes(costs, total)
        if not log_lanes:
            return b"\0" + _code_one_lane(self._batches)
        body, tail = _split(self._batches, costs, 1 << log_lanes)
        carried = _code_one_lane(tail)
        room = _WORD.itemsize << log_lanes
        inside = np.frombuffer(carried[:room].ljust(room, b"\0"), _WORD)
        states = inside + np.uint32(LOWER_BOUND)
        words = _code(body, states)
        num_body = sum(symbols.size for symbols, _, _ in body)
        head = bytes([log_lanes | _HAS_TAIL]) + num_body.to_bytes(4, "little")
        return head + _pack_states(states) + words + carried[room:]


def _costs() -> npt.NDArray[np.int64]:
    """Return about the bits of symbols, by frequency, in 256ths.

    That is 14 less log2 of a frequency, along chords between powers of two.
    """
    f = np.arange(1 << SCALE_BITS)
    log = np.frexp(np.maximum(f, 1))[1].astype(np.int64) - 1
    above = (f - (1 << log) << _COST_BITS) >> log
    costs: npt.NDArray[np.int64] = (SCALE_BITS - log << _COST_BITS) - above
    return costs


_COSTS = _costs()


def _costs_of(batch: _Batch) -> npt.NDArray[np.int64]:
    """Return the cost of each symbol of a batch."""
    symbols, counts, frequencies = batch
    segments = np.repeat(np.arange(len(counts)), counts)
    return _COSTS[frequencies[segments, symbols]]


def _log_lanes(costs: list[npt.NDArray[np.int64]], total: int) -> int:
    """Return log2 of how many lanes suit symbols of these costs."""
    bits = sum(int(part.sum()) for part in costs) >> _COST_BITS
    wanted = max(bits // _BITS_PER_LANE, total // _SYMBOLS_PER_LANE)
    return 0 if wanted < _FEWEST_LANES else min(wanted, _MOST_LANES).bit_length() - 1


def _split(
    batches: list[_Batch], costs: list[npt.NDArray[np.int64]], num_lanes: int
) -> tuple[list[_Batch], list[_Batch]]:
    """Return the batches of the body, and of a tail that about fills its states."""
    room = 16 * num_lanes - 32 << _COST_BITS
    longest = max(_LONGEST_TAIL, sum(part.size for part in costs) // _TAIL_SHARE)
    ends = np.cumsum(np.concatenate([part[::-1] for part in costs[::-1]])[:longest])
    length = int(np.searchsorted(ends, room))
    tail: list[_Batch] = []
    body = list(batches)
    while length:
        symbols, counts, frequencies = body.pop()
        cut = max(0, symbols.size - length)
        length -= symbols.size - cut
        first = np.diff(np.minimum(np.cumsum(counts), cut), prepend=0)
        tail.insert(0, (symbols[cut:], counts - first, frequencies))
        if cut:
            body.append((symbols[:cut], first, frequencies))
    return body, tail


def _code_one_lane(batches: list[_Batch]) -> bytes:
    state = np.full(1, LOWER_BOUND, np.uint32)
    words = _code(batches, state)
    return bytes(state.astype(_STATE)) + words


def _code(batches: list[_Batch], states: npt.NDArray[np.uint32]) -> bytes:
    """Return the words; states become those before the first batch."""
    # A word a symbol at most, and the one more that the kernels ask for.
    end = 2 * sum(symbols.size for symbols, _, _ in batches) + 2
    words = np.empty(end, np.uint8)
    for symbols, counts, frequencies in reversed(batches):
        end = rans.encode(states, counts, frequencies, symbols, words, end)
    return bytes(words[end:])


def _pack_states(states: npt.NDArray[np.uint32]) -> bytes:
    upper = states >> 16
    lengths = np.frexp(upper)[1].astype(np.int64) - 1
    # Below its first bit, which is known, an upper half has so many bits.
    words = (upper - (1 << lengths)).astype(np.uint64) | (
        (states & 0xFFFF).astype(np.uint64) << lengths.astype(np.uint64)
    )
    ends = np.cumsum(lengths + 16)
    writer = BitWriter(int(ends[-1]))
    writer.write(words, ends - lengths - 16)
    nibbles = lengths[::2] | lengths[1::2] << 4
    return bytes(nibbles.astype(np.uint8)) + bytes(writer.getvalue())


def _unpack_states(
    data: memoryview, num_lanes: int
) -> tuple[npt.NDArray[np.uint32], int]:
    """Return states, and how many bytes they take, or raise DecodeError."""
    num_nibbles = num_lanes // 2
    if len(data) < num_nibbles:
        raise DecodeError("the states of coded words end early")
    nibbles = np.frombuffer(data[:num_nibbles], np.uint8).astype(np.int64)
    lengths = np.stack([nibbles & 15, nibbles >> 4], 1).reshape(-1)
    ends = np.cumsum(lengths + 16)
    size = (int(ends[-1]) + 7) // 8
    if len(data) < num_nibbles + size:
        raise DecodeError("the states of coded words end early")
    reader = BitReader(data[num_nibbles : num_nibbles + size], int(ends[-1]))
    words = reader.read(ends - lengths - 16)
    ones = np.uint64(1) << lengths.astype(np.uint64)
    upper = (words & (ones - np.uint64(1))) + ones
    lower = words >> lengths.astype(np.uint64) & np.uint64(0xFFFF)
    return (upper << np.uint64(16) | lower).astype(np.uint32), num_nibbles + size


class WordReader:
    """Reads the batches of a `WordWriter`.

    Parameters
    ----------
    data : memoryview
        What `WordWriter.finish` returned, or anything else.

    Raises
    ------
    DecodeError
        From each method, if the bytes are not a writer's.
    """

    def __init__(self, data: memoryview) -> None:
        if len(data) < 1 + _STATE.itemsize:
            raise DecodeError(f"{len(data)} bytes of words are too few")
        # Symbols before the tail; None once there is none to come.
        self._left: int | None = None
        if data[0] == 0:
            self._states = np.frombuffer(data[1:5], _STATE).astype(np.uint32)
            self._at = 5
        else:
            log_lanes = data[0] ^ _HAS_TAIL
            if not 1 <= log_lanes <= _MOST_LOG_LANES:
                raise DecodeError(f"coded words of an unknown kind, {data[0]}")
            self._left = int.from_bytes(data[1:5], "little")
            self._states, size = _unpack_states(data[5:], 1 << log_lanes)
            self._at = 5 + size
        self._words = np.frombuffer(data, np.uint8)

    def read(self, counts: Sequence[int], frequencies: Frequencies) -> Symbols:
        """Return the next batch; parameters as in `WordWriter.add`."""
        segments = np.array(counts, np.int64)
        out = np.empty(int(segments.sum()), np.uint8)
        if self._left is None or self._left >= out.size:
            self._decode(segments, frequencies, out)
            if self._left is not None:
                self._left -= out.size
            return out
        cut = self._left
        first = np.diff(np.minimum(np.cumsum(segments), cut), prepend=0)
        self._decode(first, frequencies, out[:cut])
        self._begin_tail()
        self._decode(segments - first, frequencies, out[cut:])
        return out

    def finish(self) -> None:
        """Raise DecodeError unless everything was read."""
        if self._left is not None:
            if self._left:
                raise DecodeError("coded symbols are left over")
            self._begin_tail()
        rest = self._words[self._at :]
        # What a short tail leaves free in the states is zero.
        if (self._states != LOWER_BOUND).any() or rest.any():
            raise DecodeError("coded words are left over")

    def _decode(
        self, counts: npt.NDArray[np.int64], frequencies: Frequencies, out: Symbols
    ) -> None:
        self._at = rans.decode(
            self._states, counts, frequencies, self._words, self._at, out
        )
        if self._at < 0:
            raise DecodeError("the coded words end early")

    def _begin_tail(self) -> None:
        """Go on with what the states of the body carry."""
        self._left = None
        if (self._states >> 16 != 1).any():
            raise DecodeError("the coded words are not valid")
        carried = (self._states & 0xFFFF).astype(_WORD).view(np.uint8)
        self._words = np.concatenate([carried, self._words[self._at :]])
        self._states = self._words[:4].view(_STATE).astype(np.uint32)
        self._at = _STATE.itemsize
