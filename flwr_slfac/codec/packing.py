"""Codes of 0 to 8 bits packed without gaps.

The stream is little-endian in bits: bit i is bit ``i % 8`` of byte ``i // 8``, and a
code's lowest bit comes first. Eight codes are merged into one 64-bit word where the
tensor is, so only words of an eighth of the count come to the CPU, where they are laid
end to end::

    codes (G, 8, K) --merge_codes--> words (G, K) --BitWriter--> bytes
    bytes --BitReader--> words (G, K) --spread_codes--> codes (G, 8, K)
"""

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.errors import DecodeError

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

_LOW_32 = 0xFFFFFFFF


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
        if data.nbytes != (num_bits + 7) // 8:
            raise DecodeError(
                f"{data.nbytes} bytes where {num_bits} packed bits need "
                f"{(num_bits + 7) // 8}"
            )
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
    position = 0
    for values, bits in columns:
        words |= values.astype(np.uint64) << np.uint64(position)
        position += bits
    writer = BitWriter(position * num_records)
    writer.write(words, position * np.arange(num_records))
    return writer.getvalue()


def unpack_fields(data: memoryview, bits: list[int], num_records: int) -> list[Counts]:
    """Undo `pack_fields`, or raise DecodeError if the number of bytes is wrong."""
    reader = BitReader(data, sum(bits) * num_records)
    words = reader.read(sum(bits) * np.arange(num_records))
    columns = []
    position = 0
    for width in bits:
        field = (words >> np.uint64(position)) & np.uint64((1 << width) - 1)
        columns.append(field.astype(np.int64))
        position += width
    return columns


def merge_codes(codes: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Merge codes (G, 8, K), whole numbers in a float dtype, to int64 words (G, K).

    Parameters
    ----------
    codes : Tensor (G, 8, K)
        In [0, 2**width).
    widths : Tensor (G, K)
        0 to 8, in the same dtype: the width of all eight codes of a group.
    """
    groups, _, lanes = codes.shape
    # Two codes are at most 2**16, which float32 holds exactly.
    radix = torch.exp2(widths)[:, None]
    pairs = torch.addcmul(codes[:, 0::2], codes[:, 1::2], radix).to(torch.int32)
    twice = (2 * widths).to(torch.int32)
    quads = (pairs[:, 0::2] | (pairs[:, 1::2] << twice[:, None])).to(torch.int64)
    quads &= _LOW_32
    high = quads[:, 1]
    high <<= 2 * twice
    return (quads[:, 0] | high).reshape(groups, lanes)


def spread_codes(words: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Undo `merge_codes`: int64 words (G, K) to int32 codes (G, 8, K)."""
    groups, lanes = words.shape
    four = 4 * widths
    quads = torch.stack([words, words >> four], 1).to(torch.int32)
    place = torch.arange(4, dtype=torch.int32, device=words.device)
    shifts = place[:, None] * widths[:, None]
    codes = quads[:, :, None] >> shifts[:, None]
    codes &= ((1 << widths) - 1)[:, None, None]
    return codes.reshape(groups, 8, lanes)


def merge_uneven(codes: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Merge codes (8, K), whole numbers in a float dtype, to int64 words (K,).

    Each code has its own width (8, K), 0 to 8, in the same dtype.
    """
    bits = widths.to(torch.int64)
    return (codes.to(torch.int64) << (bits.cumsum(0) - bits)).sum(0)


def spread_uneven(words: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Undo `merge_uneven`."""
    ends = widths.cumsum(0)
    return (words >> (ends - widths)) & ((1 << widths) - 1)


def group_starts(split: Counts, widths: Counts, n: int, first: int) -> Counts:
    """Return where each group of eight codes begins (K, G) in the stream of K rows.

    Parameters
    ----------
    split : array (K,)
        How many of a row's n codes are in its first component.
    widths : array (2, K)
        Bits of a code of the first and of the second component.
    n : int
        Number of codes a row; the last group may hold fewer than eight.
    first : int
        Where the first row begins.
    """
    bits = row_bits(split, widths, n)
    begin = np.cumsum(bits) - bits + first
    eight = np.arange(0, n, 8)
    starts = np.minimum(eight, split[:, None])
    starts *= (widths[0] - widths[1])[:, None]
    starts += widths[1][:, None] * eight
    starts += begin[:, None]
    return starts


def row_bits(split: Counts, widths: Counts, n: int) -> Counts:
    """Return the bits (K,) of each row's codes; parameters as in `group_starts`."""
    bits: Counts = split * widths[0] + (n - split) * widths[1]
    return bits
