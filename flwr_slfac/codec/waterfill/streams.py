r"""Entropy coding of integer streams, each with its own small model on the wire.

A stream is an array of integers that share one distribution. What travels::

    values --digits--> symbols --model--> ANS, or zstd (coder "fast")
                 \-> |value| - L of the saturated, a stream of its own -> ANS

The coder is asymmetric numeral systems (Duda 2013) from `constriction`: a stack, so the
writer collects streams and codes them last to first.
"""

from typing import Any, Literal

import constriction
import numpy as np
import zstandard

from flwr_slfac.codec.waterfill.digits import (
    EXCESS,
    Digits,
    Ints,
    pack_digits,
    saturated_positions,
    symbol_of_zeros,
    unpack_digits,
)
from flwr_slfac.codec.waterfill.model import (
    NUM_CHANCES,
    coder_table,
    fit_model,
    ideal_bits,
)
from flwr_slfac.errors import DecodeError

Coder = Literal["range", "fast"]

_ANS = constriction.stream.stack.AnsCoder
_UNIFORM = constriction.stream.model.Uniform
# Below, zstd's header and tables outweigh what its speed is worth (our choice).
_FEWEST_FOR_ZSTD = 256
# A Huffman code takes at least a bit a symbol: below this entropy it loses a tenth.
_LEAST_HUFFMAN_BITS = 0.9
# A limit of the format: the bits of an excess are sent as two halves of 20.
_HALF_EXCESS_BITS = 20
_MAX_EXCESS_BITS = 2 * _HALF_EXCESS_BITS
# Bits of a bit length of at most 40.
_LENGTH_BITS = 6
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


class StreamWriter:
    """Collects streams; `finish` returns all of them as bytes.

    Parameters
    ----------
    coder : {"range", "fast"}
        Whether zstd may take bulk streams.
    """

    def __init__(self, coder: Coder) -> None:
        self._fast = coder == "fast"
        self._parameters = bytearray()
        self._tasks: list[tuple[Ints, Any]] = []
        self._frames: list[bytes] = []
        self._zstd = zstandard.ZstdCompressor(compression_params=_HUFFMAN_FIRST)

    def stream(self, values: Ints, digits: Digits, *, bulk: bool = False) -> None:
        """Add one stream.

        Parameters
        ----------
        values : ndarray of a signed integer type
            One-dimensional; its length is for the caller to convey.
        digits : Digits
            How to cut it into symbols.
        bulk : bool
            Whether the fast coder may take it.
        """
        if values.size == 0:
            return
        symbols, saturates = pack_digits(values, digits)
        counts = np.bincount(symbols, minlength=digits.base**digits.per_symbol)
        empty = counts[symbol_of_zeros(digits)] == symbols.size
        if empty:
            self._parameters.append(0)
            return
        if bulk and self._fast and _suits_zstd(counts, symbols.size):
            self._parameters.append(1)
            self._frames.append(self._zstd.compress(symbols.data))
        else:
            model = fit_model(counts, digits)
            self._parameters += bytes([len(model)]) + model
            self._tasks.append((symbols, coder_table(model, digits)))
        if saturates:
            magnitudes = np.abs(
                values[saturated_positions(values, digits)].astype(np.int64)
            )
            self._excess(magnitudes - digits.limit, digits)

    def raw(self, values: Ints, num_bits: int) -> None:
        """Add integers in [0, 2**num_bits), all equally likely; at most 23 bits."""
        if num_bits and values.size:
            self._tasks.append((values, _UNIFORM(2**num_bits)))

    def _excess(self, excess: Ints, digits: Digits) -> None:
        if digits.signed:
            self.stream(excess, EXCESS)
            return
        # Saturated twice: the bit length, then the bits.
        mask = (1 << _HALF_EXCESS_BITS) - 1
        lengths = np.frexp(excess.astype(np.float64))[1].astype(np.int64)
        self.raw(lengths, _LENGTH_BITS)
        for shift in (0, _HALF_EXCESS_BITS):
            long_enough = lengths > shift
            self.raw((excess >> shift & mask)[long_enough], _HALF_EXCESS_BITS)

    def finish(self) -> tuple[bytes, bytes, bytes]:
        """Return the parameters, the coded words, and the frames of the fast coder."""
        coder = _ANS()
        for symbols, model in reversed(self._tasks):
            coder.encode_reverse(symbols.astype(np.int32), model)
        words = coder.get_compressed().astype("<u4").tobytes()
        frames = b"".join(len(f).to_bytes(4, "little") + f for f in self._frames)
        return bytes(self._parameters), words, frames


class StreamReader:
    """Reads the streams of a `StreamWriter` in the order they were added.

    Any bytes give values or DecodeError; memory is bounded by the numbers of values
    that the caller asks for.

    Parameters
    ----------
    coder : {"range", "fast"}
        As given to the writer.
    parameters, words, frames : memoryview
        What the writer's `finish` returned.

    Raises
    ------
    DecodeError
        From each method, if the bytes are not a writer's.
    """

    def __init__(
        self,
        coder: Coder,
        parameters: memoryview,
        words: memoryview,
        frames: memoryview,
    ) -> None:
        self._fast = coder == "fast"
        self._parameters = parameters
        self._frames = frames
        if words.nbytes % 4:
            raise DecodeError(
                f"{words.nbytes} bytes of coded words: not a multiple of 4"
            )
        try:
            self._ans = _ANS(np.frombuffer(words, "<u4").astype(np.uint32))
        except ValueError as error:
            raise DecodeError(f"the coded words are not valid: {error}") from error
        self._zstd = zstandard.ZstdDecompressor()

    def stream(self, num_values: int, digits: Digits, *, bulk: bool = False) -> Ints:
        """Return the next stream: int8 where all its values fit, else int64."""
        if num_values == 0:
            return np.zeros(0, np.int8)
        num_symbols = -(-num_values // digits.per_symbol)
        num_parameters = self._parameter_bytes(1)[0]
        if num_parameters == 0:
            return np.zeros(num_values, np.int8)
        # No model of signed digits is as short as 1 byte.
        if bulk and self._fast and num_parameters == 1:
            symbols = self._next_frame(num_symbols)
            if int(symbols.max()) >= digits.base**digits.per_symbol:
                raise DecodeError("a zstd stream holds a symbol out of range")
        else:
            model = bytes(self._parameter_bytes(num_parameters))
            if max(model) >= NUM_CHANCES:
                raise DecodeError("a stream's model holds a chance that is none")
            symbols = self._decode(coder_table(model, digits), num_symbols).astype(
                np.uint8
            )
        values = unpack_digits(symbols, num_values, digits)
        saturated = saturated_positions(values, digits)
        if saturated.size:
            values = self._add_excess(values, saturated, digits)
        return values

    def raw(self, num_values: int, num_bits: int) -> Ints:
        """Return the next equally likely integers, as int64."""
        if not (num_bits and num_values):
            return np.zeros(num_values, np.int64)
        return self._decode(_UNIFORM(2**num_bits), num_values).astype(np.int64)

    def finish(self) -> None:
        """Raise DecodeError if any parameter or frame was not used."""
        if len(self._parameters) or len(self._frames):
            raise DecodeError("the streams end before their bytes do")

    def _decode(self, model: Any, count: int) -> Ints:
        symbols: Ints = self._ans.decode(model, count)
        return symbols

    def _parameter_bytes(self, count: int) -> memoryview:
        if len(self._parameters) < count:
            raise DecodeError("the parameters of the streams end early")
        taken, self._parameters = self._parameters[:count], self._parameters[count:]
        return taken

    def _next_frame(self, num_bytes: int) -> Ints:
        length = int.from_bytes(self._frames[:4], "little")
        frame, rest = self._frames[4 : 4 + length], self._frames[4 + length :]
        if len(frame) != length or length == 0:
            raise DecodeError("a zstd stream ends early")
        try:
            claimed = zstandard.get_frame_parameters(frame).content_size
            if claimed != num_bytes:
                raise DecodeError(
                    f"a zstd stream claims {claimed} bytes where {num_bytes} are due"
                )
            data = self._zstd.decompress(frame, read_across_frames=False)
        except zstandard.ZstdError as error:
            raise DecodeError(f"a zstd stream is not valid: {error}") from error
        if len(data) != num_bytes:
            raise DecodeError("a zstd stream is shorter than it claims")
        self._frames = rest
        return np.frombuffer(data, np.uint8)

    def _add_excess(self, values: Ints, saturated: Ints, digits: Digits) -> Ints:
        if digits.signed:
            excess = self.stream(saturated.size, EXCESS).astype(np.int64)
        else:
            lengths = self.raw(saturated.size, _LENGTH_BITS)
            excess = np.zeros(saturated.size, np.int64)
            if int(lengths.max()) > _MAX_EXCESS_BITS:
                raise DecodeError("an integer of more than 40 bits")
            for shift in (0, _HALF_EXCESS_BITS):
                long_enough = lengths > shift
                bits = self.raw(int(long_enough.sum()), _HALF_EXCESS_BITS)
                excess[long_enough] |= bits << shift
        if digits.limit + int(excess.max()) > 127:
            values = values.astype(np.int64)
        at = values[saturated]
        values[saturated] = at + np.where(at < 0, -excess, excess).astype(values.dtype)
        return values


def _suits_zstd(counts: Ints, num_symbols: int) -> bool:
    """Say whether Huffman codes, at least a bit a symbol, come near the entropy."""
    if num_symbols < _FEWEST_FOR_ZSTD:
        return False
    return ideal_bits(counts.astype(np.float64)) > _LEAST_HUFFMAN_BITS * num_symbols
