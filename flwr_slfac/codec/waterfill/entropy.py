r"""Entropy coding of integer streams, each with its own small model on the wire.

A stream is an array of integers that share one distribution. What travels::

    values -> digits -L..L (larger ones saturate) -> k digits a symbol -> ANS or zstd
                 \-> |value| - L of the saturated, a stream of its own -> ANS
    counts -> chance that a magnitude stops at 0, 1, 2, 3-4, 5-8, ... -> a byte each

Packing several digits into one symbol makes one step of the coder serve several
values, and lets the Huffman stage of zstd come within a few percent of the entropy even
where most values are zero.

The tables that drive the coder are computed from those bytes in integer arithmetic, so
both sides have the same ones whatever the platform. The coder is asymmetric numeral
systems (Duda 2013) from `constriction`: a stack, so the writer collects streams and
codes them last to first.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import constriction
import numpy as np
import numpy.typing as npt
import zstandard

from flwr_slfac.errors import DecodeError

Coder = Literal["range", "fast"]
Ints = npt.NDArray[Any]

_ANS = constriction.stream.stack.AnsCoder
_models = constriction.stream.model
_ONE = 2**24
# Last magnitude of each bucket of magnitudes that share one stopping chance.
_BUCKET_ENDS = (0, 1, 2, 4, 8, 16, 32, 64, 126)
_FEWEST_FOR_ZSTD = 256
_LEAST_HUFFMAN_BITS = 0.9
_MAX_EXCESS_BITS = 40
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


@dataclass(frozen=True)
class Digits:
    """How values become symbols: largest magnitude of a digit, digits to a symbol."""

    limit: int
    per_symbol: int
    signed: bool = True

    @property
    def base(self) -> int:
        """Number of values of a digit."""
        return (2 * self.limit if self.signed else self.limit) + 1

    @property
    def zero(self) -> int:
        """What is added to a digit to make it non-negative."""
        return self.limit if self.signed else 0


TERNARY = Digits(1, 5)
QUINARY = Digits(2, 3)
SMALL = Digits(7, 2)
LARGE = Digits(127, 1)
EXCESS = Digits(15, 1, signed=False)


class Writer:
    """Collects streams; `finish` returns all of them as bytes."""

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
        symbols, saturates = _pack(values, digits)
        counts = np.bincount(symbols, minlength=digits.base**digits.per_symbol)
        empty = counts[_symbol_of_zeros(digits)] == symbols.size
        if empty:
            self._parameters.append(0)
            return
        if bulk and self._fast and _suits_zstd(counts, symbols.size):
            self._parameters.append(1)
            self._frames.append(self._zstd.compress(symbols.data))
        else:
            model = _fit(counts, digits)
            self._parameters += bytes([len(model)]) + model
            self._tasks.append((symbols, _table(model, digits)))
        if saturates:
            magnitudes = np.abs(values[_saturated(values, digits)].astype(np.int64))
            self._excess(magnitudes - digits.limit, digits)

    def raw(self, values: Ints, num_bits: int) -> None:
        """Add integers in [0, 2**num_bits), all equally likely; at most 23 bits."""
        if num_bits and values.size:
            self._tasks.append((values, _models.Uniform(2**num_bits)))

    def _excess(self, excess: Ints, digits: Digits) -> None:
        if digits.signed:
            self.stream(excess, EXCESS)
            return
        # Saturated twice: the bit length, then the bits.
        lengths = np.frexp(excess.astype(np.float64))[1].astype(np.int64)
        self.raw(lengths, 6)
        for shift in (0, 20):
            long_enough = lengths > shift
            self.raw((excess >> shift & 0xFFFFF)[long_enough], 20)

    def finish(self) -> tuple[bytes, bytes, bytes]:
        """Return the parameters, the coded words, and the frames of the fast coder."""
        coder = _ANS()
        for symbols, model in reversed(self._tasks):
            coder.encode_reverse(symbols.astype(np.int32), model)
        words = coder.get_compressed().astype("<u4").tobytes()
        frames = b"".join(len(f).to_bytes(4, "little") + f for f in self._frames)
        return bytes(self._parameters), words, frames


class Reader:
    """Reads the streams of a `Writer` in the order they were added.

    Any bytes give values or DecodeError; memory is bounded by the numbers of values
    that the caller asks for.
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
            if max(model) >= len(_CHANCES):
                raise DecodeError("a stream's model holds a chance that is none")
            symbols = self._decode(_table(model, digits), num_symbols).astype(np.uint8)
        values = _unpack(symbols, num_values, digits)
        saturated = _saturated(values, digits)
        if saturated.size:
            values = self._add_excess(values, saturated, digits)
        return values

    def raw(self, num_values: int, num_bits: int) -> Ints:
        """Return the next equally likely integers, as int64."""
        if not (num_bits and num_values):
            return np.zeros(num_values, np.int64)
        return self._decode(_models.Uniform(2**num_bits), num_values).astype(np.int64)

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
            lengths = self.raw(saturated.size, 6)
            excess = np.zeros(saturated.size, np.int64)
            if int(lengths.max()) > _MAX_EXCESS_BITS:
                raise DecodeError("an integer of more than 40 bits")
            for shift in (0, 20):
                long_enough = lengths > shift
                bits = self.raw(int(long_enough.sum()), 20)
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


def ideal_bits(counts: npt.NDArray[np.float64]) -> float:
    """Return the bits of an ideal code for symbols that occur `counts` times."""
    some = counts[counts > 0]
    total = float(some.sum())
    return float(-(some * np.log2(some / total)).sum()) if some.size else 0.0


def _pack(values: Ints, digits: Digits) -> tuple[Ints, bool]:
    """Return symbols (uint8), and whether any digit saturates.

    Digit j of symbol i is value j * num_symbols + i: slices, not strides.
    """
    num_symbols = -(-values.size // digits.per_symbol)
    low, high = int(values.min()), int(values.max())
    limit = digits.limit
    if max(-low, high) > limit:
        values = np.clip(values, -limit, limit)
    saturates = max(-low, high) >= limit
    shifted = np.full(num_symbols * digits.per_symbol, digits.zero, np.uint8)
    np.add(values, digits.zero, out=shifted[: values.size], casting="unsafe")
    symbols = shifted[:num_symbols]
    for j in range(1, digits.per_symbol):
        symbols = symbols * np.uint8(digits.base)
        symbols += shifted[j * num_symbols : (j + 1) * num_symbols]
    return symbols, saturates


def _unpack(symbols: Ints, num_values: int, digits: Digits) -> Ints:
    num_symbols = symbols.size
    shifted = np.empty(num_symbols * digits.per_symbol, np.uint8)
    base = np.uint8(digits.base)
    for j in range(digits.per_symbol - 1, 0, -1):
        rest = symbols // base
        part = shifted[j * num_symbols : (j + 1) * num_symbols]
        np.subtract(symbols, rest * base, out=part)
        symbols = rest
    shifted[:num_symbols] = symbols
    values = shifted[:num_values]
    values -= np.uint8(digits.zero)
    return values.view(np.int8)


def _saturated(values: Ints, digits: Digits) -> Ints:
    """Return the positions of values at or beyond the limit."""
    limit = digits.limit
    if limit == 1:
        return np.flatnonzero(values != 0)
    return np.flatnonzero((values >= limit) | (values <= -limit))


def _symbol_of_zeros(digits: Digits) -> int:
    return sum(digits.zero * digits.base**j for j in range(digits.per_symbol))


def _fit(counts: Ints, digits: Digits) -> bytes:
    """Return the model of symbols that occur `counts` times.

    A byte for each stopping chance up to the largest magnitude; before them, for signed
    digits, one for the chance of a negative sign.
    """
    base, k = digits.base, digits.per_symbol
    by_digit = np.zeros(base, np.int64)
    for j in range(k):
        by_digit += counts.reshape(base**j, base, base ** (k - 1 - j)).sum((0, 2))
    by_magnitude = by_digit[digits.zero :].copy()
    model = bytearray()
    if digits.signed:
        by_magnitude[1:] += by_digit[digits.zero - 1 :: -1]
        num_negative = int(by_digit[: digits.zero].sum())
        model.append(_nearest(num_negative, int(by_magnitude[1:].sum())))
    # Short lists: plain integers are several times faster than arrays.
    stops = by_magnitude.tolist()
    reach = by_magnitude[::-1].cumsum()[::-1].tolist()
    largest = max(magnitude for magnitude, count in enumerate(stops) if count)
    start = 0
    for end in _BUCKET_ENDS:
        stop = min(end + 1, digits.limit)
        if start >= stop or start > largest:
            break
        model.append(_nearest(sum(stops[start:stop]), sum(reach[start:stop])))
        start = stop
    return bytes(model)


@lru_cache(maxsize=1024)
def _table(model: bytes, digits: Digits) -> Any:
    """Return the coder's table for a model, computed in integers."""
    sign = 0
    if digits.signed:
        sign, model = int(_CHANCES[model[0]]), model[1:]
    left, start = _ONE, 0
    magnitudes = []
    chances = [int(_CHANCES[b]) for b in model]
    for i, end in enumerate(_BUCKET_ENDS):
        stop = min(end + 1, digits.limit)
        chance = chances[i] if i < len(chances) else _ONE - 1
        for _ in range(start, stop):
            magnitudes.append(left * chance >> 24)
            left -= magnitudes[-1]
        start = max(start, stop)
    magnitudes.append(left)
    weights = np.array(magnitudes, np.int64)
    if digits.signed:
        negative = weights[:0:-1] * sign >> 24
        positive = weights[1:] - negative[::-1]
        weights = np.concatenate([negative, weights[:1], positive])
    product = weights
    for _ in range(digits.per_symbol - 1):
        product = (product[:, None] * weights[None, :] >> 24).reshape(-1)
    # Integers of at most 24 bits are exact in float32.
    return _models.Categorical(np.maximum(product, 1).astype(np.float32), perfect=False)


def _stopping_chances() -> Ints:
    """Return the chances that a byte stands for, in units of 2**-24, ascending.

    Neighbours differ by about a factor of 2**0.125, in the chance below one half, in
    its complement above.
    """
    low = [2**30]
    for _ in range(127):
        low.append(low[-1] * 60097 >> 16)
    below_half = [max(1, chance >> 7) for chance in low]
    return np.array(below_half[::-1] + [_ONE - c for c in below_half[1:]], np.int64)


_CHANCES = _stopping_chances()
_MIDPOINTS = ((_CHANCES[1:] + _CHANCES[:-1]) // 2).tolist()


def _nearest(stops: int, reaches: int) -> int:
    """Return the byte whose chance is nearest to stops / reaches."""
    chance = (stops << 24) // max(reaches, 1)
    return bisect_left(_MIDPOINTS, chance)
