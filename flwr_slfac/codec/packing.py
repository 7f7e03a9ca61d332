"""Bits end to end: words of any width, fields of records, codes, positions.

The stream is little-endian in bits: bit i is bit ``i % 8`` of byte ``i // 8``, and a
value's lowest bit comes first::

    words at any bit        --BitWriter-->       bytes --BitReader-->        words
    records of fields       --pack_fields-->     bytes --unpack_fields-->    records
    codes of one width      --pack_codes-->      bytes --unpack_codes-->     codes
    positions in a tensor   --pack_positions-->  bytes --unpack_positions--> positions
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.kernels import kernels
from flwr_slfac.errors import DecodeError

__all__ = [
    "BitReader",
    "BitWriter",
    "num_bits_for",
    "num_packed_bytes",
    "pack_codes",
    "pack_fields",
    "pack_positions",
    "require_bits",
    "unpack_codes",
    "unpack_fields",
    "unpack_positions",
]

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

# The widest integer that NumPy shifts: codes and fields are written a word at a time.
_WORD_BITS = 64
# Widths whose packing is a plain copy.
_WHOLE_BYTES = {8: "<u1", 16: "<u2"}
# Our limit: above, gaps that hostile bytes add up would overflow 64 bits.
MAX_RICE = 24


def num_bits_for(largest: int) -> int:
    """Return how many bits hold 0 to `largest`."""
    return largest.bit_length()


class BitWriter:
    """Lays words of 0 to 64 bits end to end.

    Parameters
    ----------
    num_bits : int
        How many bits will be written in all.
    """

    def __init__(self, num_bits: int) -> None:
        # Two words more: a word may begin in the last, and spill into the next.
        self._buffer = np.zeros(num_bits // 64 + 2, dtype="<u8")
        self._num_bits = num_bits

    def write(self, words: Words, starts: Counts) -> None:
        """Put words where their bits begin; above their own, bits must be zero.

        Parameters
        ----------
        words, starts : arrays of one shape
            In C order, each word begins where the one before it ends.
        """
        if words.size == 0:
            return
        words = words.reshape(-1)
        index = starts.reshape(-1) >> 6
        shift = (starts.reshape(-1) & 63).view(np.uint64)
        is_last = np.ones(words.size, dtype=bool)
        np.not_equal(index[1:], index[:-1], out=is_last[:-1])
        last = is_last.nonzero()[0]
        # A word has at most 64 bits, so `index` grows by 0 or 1: no slot is skipped.
        here = slice(int(index[0]), int(index[-1]) + 1)
        following = slice(here.start + 1, here.stop + 1)
        # Only the last word that begins in a slot can reach into the next one.
        spill = words[last] >> np.uint64(1)
        spill >>= np.uint64(63) - shift[last]
        self._buffer[following] |= spill
        # Bits are disjoint, so a slot is the sum of its words: a difference of running
        # sums, which may wrap.
        np.left_shift(words, shift, out=shift)
        slots = np.cumsum(shift, out=shift)[last]
        slots[1:] -= slots[:-1].copy()
        self._buffer[here] |= slots

    def getvalue(self) -> memoryview:
        """Return the bytes, the last one filled up with zero bits."""
        return self._buffer.view(np.uint8).data[: (self._num_bits + 7) // 8]


class BitReader:
    """Reads words at any bit; past the end it reads zeros.

    Parameters
    ----------
    data : memoryview
        What `BitWriter` made.
    num_bits : int
        How many bits it must hold.

    Raises
    ------
    DecodeError
        If the number of bytes is not that of `num_bits`.
    """

    def __init__(self, data: memoryview, num_bits: int) -> None:
        require_bits(data, num_bits)
        self._buffer = np.zeros(data.nbytes // 8 + 2, dtype="<u8")
        self._buffer.view(np.uint8)[: data.nbytes] = np.frombuffer(data, np.uint8)

    def read(self, starts: Counts) -> Words:
        """Return the 64 bits that begin at each start; mask those past a word's own.

        Starts must lie in the stream.
        """
        index = starts >> 6
        shift = (starts & 63).view(np.uint64)
        words: Words = self._buffer[index] >> shift
        index += 1
        np.subtract(np.uint64(63), shift, out=shift)
        following = self._buffer[index]
        following <<= np.uint64(1)
        following <<= shift
        np.bitwise_or(words, following, out=words)
        return words


def pack_fields(columns: list[tuple[Counts, int]]) -> memoryview:
    """Pack records of fixed-width fields, record by record.

    Parameters
    ----------
    columns : list of (values (R,), bits)
        Values in [0, 2**bits); at most 64 bits in all.
    """
    num_records = columns[0][0].shape[0]
    words = np.zeros(num_records, dtype=np.uint64)
    start = 0
    for values, bits in columns:
        words |= values.astype(np.uint64) << np.uint64(start)
        start += bits
    loops = kernels().spectra
    if loops is not None:
        return loops.pack_records(words, start)
    writer = BitWriter(start * num_records)
    writer.write(words, start * np.arange(num_records))
    return writer.getvalue()


def unpack_fields(data: memoryview, bits: list[int], num_records: int) -> list[Counts]:
    """Undo `pack_fields` to int64 values, or raise DecodeError for a wrong length."""
    words = _unpack_records(data, sum(bits), num_records)
    columns = []
    start = 0
    for width in bits:
        field = (words >> np.uint64(start)) & np.uint64((1 << width) - 1)
        columns.append(field.astype(np.int64))
        start += width
    return columns


def _unpack_records(data: memoryview, bits: int, num_records: int) -> Words:
    """Return the words of records; in the reference, what follows one is above it."""
    loops = kernels().spectra
    if loops is None:
        reader = BitReader(data, bits * num_records)
        return reader.read(bits * np.arange(num_records))
    require_bits(data, bits * num_records)
    return loops.unpack_records(data, bits, num_records)


def require_bits(data: memoryview, num_bits: int) -> None:
    """Raise DecodeError if the number of bytes is not that of `num_bits`."""
    if data.nbytes != (num_bits + 7) // 8:
        raise DecodeError(
            f"{data.nbytes} bytes where {num_bits} packed bits need "
            f"{(num_bits + 7) // 8}"
        )


def num_packed_bytes(num_codes: int, bits: int) -> int:
    """Return the length of `num_codes` packed codes of `bits` bits."""
    return math.ceil(num_codes * bits / 8)


def pack_codes(codes: torch.Tensor, bits: int) -> memoryview:
    """Pack codes of one width without gaps, in C order.

    Parameters
    ----------
    codes : Tensor of any shape
        Whole numbers in [0, 2**bits), of any dtype, on any device.
    bits : int
        1 to 63.
    """
    if bits in _WHOLE_BYTES:
        whole = codes.reshape(-1).to("cpu", torch.int32).numpy()
        return whole.astype(_WHOLE_BYTES[bits]).view(np.uint8).data
    flat = codes.reshape(-1).to("cpu", torch.int64).numpy()
    per_word = _WORD_BITS // bits
    records = np.zeros((math.ceil(flat.size / per_word), per_word), dtype=np.int64)
    records.reshape(-1)[: flat.size] = flat
    packed = pack_fields([(records[:, i], bits) for i in range(per_word)])
    return packed[: num_packed_bytes(flat.size, bits)]


def unpack_codes(
    section: memoryview, bits: int, num_codes: int, device: torch.device
) -> torch.Tensor:
    """Undo `pack_codes` to int64 (num_codes,), or raise DecodeError."""
    length = num_packed_bytes(num_codes, bits)
    if section.nbytes != length:
        raise DecodeError(
            f"{section.nbytes} bytes for {num_codes} codes of {bits} bits, not {length}"
        )
    if bits in _WHOLE_BYTES:
        whole = np.frombuffer(section, _WHOLE_BYTES[bits]).astype(np.int64)
        return torch.from_numpy(whole).to(device)
    per_word = _WORD_BITS // bits
    num_words = math.ceil(num_codes / per_word)
    padded = bytes(section).ljust(num_packed_bytes(num_words * per_word, bits), b"\0")
    fields = unpack_fields(memoryview(padded), [bits] * per_word, num_words)
    flat = np.stack(fields, axis=1).reshape(-1)[:num_codes]
    return torch.from_numpy(flat).to(device)


def pack_positions(positions: Counts) -> tuple[int, memoryview, bytes]:
    """Pack rising positions as Rice-coded gaps.

    Golomb-Rice coding (Golomb 1966, Rice 1979): the low `rice` bits of each gap,
    packed, and the rest in unary. For positions without structure it is within a few
    hundredths of a bit a position of the entropy. With ``rice = 0`` the unary part is
    the bitmap itself, so a bitmap needs no form of its own.

    Parameters
    ----------
    positions : ndarray (K,)
        int64, strictly rising from 0 or more.

    Returns
    -------
    tuple of int, memoryview, bytes
        The Rice parameter, 0 to `MAX_RICE`; the low bits; the unary part.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    rice = _cheapest_rice(gaps)
    high = gaps >> rice
    unary = np.zeros(int(high.sum()) + high.size, dtype=np.uint8)
    unary[np.cumsum(high + 1) - 1] = 1
    low = memoryview(b"")
    if rice:
        low = pack_codes(torch.from_numpy(gaps & ((1 << rice) - 1)), rice)
    return rice, low, np.packbits(unary, bitorder="little").tobytes()


def unpack_positions(
    rice: int, low: memoryview, unary: memoryview, num_elements: int
) -> Counts:
    """Undo `pack_positions` within a tensor of `num_elements`.

    Raises
    ------
    DecodeError
        If the parts do not fit together, or a position lies outside of the tensor.
    """
    if rice > MAX_RICE:
        raise DecodeError(f"a Rice parameter of {rice}, at most {MAX_RICE}")
    # `pack_positions` takes at most a bit an element; twice that bounds the memory.
    if 8 * unary.nbytes > 2 * num_elements + 7:
        raise DecodeError(f"{unary.nbytes} bytes of gaps for {num_elements} places")
    bits = np.unpackbits(np.frombuffer(unary, np.uint8), bitorder="little")
    gaps = np.diff(np.flatnonzero(bits), prepend=-1) - 1 << rice
    if rice:
        gaps |= unpack_codes(low, rice, gaps.size, torch.device("cpu")).numpy()
    elif low.nbytes:
        raise DecodeError("low bits where the Rice parameter is 0")
    positions: Counts = np.cumsum(gaps + 1) - 1
    if positions.size and positions[-1] >= num_elements:
        raise DecodeError(f"place {positions[-1]} of {num_elements}")
    return positions


def _cheapest_rice(gaps: Counts) -> int:
    """Return the Rice parameter of fewest bits, which is near log2 of the mean gap."""
    if gaps.size == 0:
        return 0
    guess = int(math.log2(int(gaps.sum()) / gaps.size + 1))
    near = range(max(0, guess - 1), min(MAX_RICE, guess + 1) + 1)
    return min(near, key=lambda rice: gaps.size * rice + int((gaps >> rice).sum()))
