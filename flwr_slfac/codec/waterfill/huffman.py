"""Symbols by the Huffman stage of zstd: larger than words, and faster."""

import numpy as np
import zstandard

from flwr_slfac.codec.waterfill.digits import Digits, Ints
from flwr_slfac.codec.waterfill.model import ideal_bits
from flwr_slfac.codec.waterfill.words import Symbols
from flwr_slfac.errors import DecodeError

# Below, zstd's header and tables outweigh what its speed is worth (our choice).
_FEWEST_FOR_ZSTD = 256
# A Huffman code takes at least a bit a symbol: below this entropy it loses a tenth.
_LEAST_HUFFMAN_BITS = 0.9
# Matches hardly occur and cost much: a small table of long matches leaves zstd its
# Huffman stage.
_HUFFMAN_FIRST = zstandard.ZstdCompressionParameters(
    strategy=1,
    window_log=17,
    hash_log=6,
    min_match=7,
    target_length=0,
    write_content_size=True,
)


def suits_zstd(counts: Ints, num_symbols: int) -> bool:
    """Say whether Huffman codes, at least a bit a symbol, come near the entropy."""
    if num_symbols < _FEWEST_FOR_ZSTD:
        return False
    return ideal_bits(counts.astype(np.float64)) > _LEAST_HUFFMAN_BITS * num_symbols


class FrameWriter:
    """Codes streams, each as a frame of zstd with its length before it."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._zstd = zstandard.ZstdCompressor(compression_params=_HUFFMAN_FIRST)

    def add(self, symbols: Symbols) -> None:
        """Code one stream."""
        frame = self._zstd.compress(symbols.data)
        self._frames += [len(frame).to_bytes(4, "little"), frame]

    def finish(self) -> bytes:
        """Return all frames."""
        return b"".join(self._frames)


class FrameReader:
    """Reads the streams of a `FrameWriter`.

    Parameters
    ----------
    data : memoryview
        What its `finish` returned, or anything else.

    Raises
    ------
    DecodeError
        From each method, if the bytes are not a writer's.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._zstd = zstandard.ZstdDecompressor()

    def read(self, num_symbols: int, digits: Digits) -> Symbols:
        """Return the next stream."""
        length = int.from_bytes(self._data[:4], "little")
        frame, self._data = self._data[4 : 4 + length], self._data[4 + length :]
        if len(frame) != length or length == 0:
            raise DecodeError("a zstd stream ends early")
        try:
            claimed = zstandard.get_frame_parameters(frame).content_size
            if claimed != num_symbols:
                raise DecodeError(
                    f"a zstd stream claims {claimed} bytes where {num_symbols} are due"
                )
            data = self._zstd.decompress(frame, read_across_frames=False)
        except zstandard.ZstdError as error:
            raise DecodeError(f"a zstd stream is not valid: {error}") from error
        if len(data) != num_symbols:
            raise DecodeError("a zstd stream is shorter than it claims")
        symbols = np.frombuffer(data, np.uint8)
        if int(symbols.max()) >= digits.base**digits.per_symbol:
            raise DecodeError("a zstd stream holds a symbol out of range")
        return symbols

    def finish(self) -> None:
        """Raise DecodeError unless everything was read."""
        if len(self._data):
            raise DecodeError("zstd streams are left over")
