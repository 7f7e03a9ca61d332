"""Bytes, from anywhere, to streams of integers, see `streams`."""

from collections.abc import Sequence

import numpy as np

from flwr_slfac.codec.kernels import NUM_SYMBOLS
from flwr_slfac.codec.waterfill.digits import (
    EXCESS,
    LARGE,
    Digits,
    Ints,
    saturated_positions,
    unpack_digits,
)
from flwr_slfac.codec.waterfill.model import frequencies_of
from flwr_slfac.codec.waterfill.streams import (
    EMPTY,
    FEW_MODELS,
    HALF,
    HALF_EXCESS_BITS,
    LENGTH_BITS,
    MAX_EXCESS_BITS,
    kinds_of,
    uniform,
)
from flwr_slfac.codec.waterfill.words import Symbols, WordReader
from flwr_slfac.errors import DecodeError


class StreamReader:
    """Reads the streams of a `StreamWriter` in the order they were added.

    Any bytes give values or DecodeError; memory is bounded by the numbers of values
    that the caller asks for.

    Parameters
    ----------
    parameters, words : memoryview
        What the writer's `finish` returned.

    Raises
    ------
    DecodeError
        From each method, if the bytes are not a writer's.
    """

    def __init__(self, parameters: memoryview, words: memoryview) -> None:
        self._parameters = parameters
        self._words = WordReader(words)

    def stream(self, num_values: int, digits: Digits) -> Ints:
        """Return the next stream: int8 where all its values fit, else int64."""
        if num_values == 0:
            return np.zeros(0, np.int8)
        model = self._plain_model()
        if not model:
            return np.zeros(num_values, np.int8)
        num_symbols = -(-num_values // digits.per_symbol)
        symbols = self._words.read([num_symbols], frequencies_of(model, digits)[None])
        values, num_saturated = unpack_digits(symbols, num_values, digits)
        return self._with_excess([values], digits)[0] if num_saturated else values

    def bulk(self, parts: Sequence[tuple[int, Digits]]) -> list[Ints]:
        """Return what `StreamWriter.bulk` added, for numbers of values and digits."""
        models = self._models(len(parts))
        kinds = [digits for _, digits in parts]
        counts = [-(-count // digits.per_symbol) for count, digits in parts]
        coded = [i for i, model in enumerate(models) if model != EMPTY]
        symbols: dict[int, Symbols] = {}
        if coded:
            frequencies = np.stack([frequencies_of(models[i], kinds[i]) for i in coded])
            all_symbols = self._words.read([counts[i] for i in coded], frequencies)
            ends = np.cumsum([counts[i] for i in coded])[:-1]
            symbols = dict(zip(coded, np.split(all_symbols, ends), strict=True))
        values: list[Ints] = []
        saturated: dict[Digits, list[int]] = {}
        for i, (count, digits) in enumerate(parts):
            if models[i] == EMPTY:
                values.append(np.zeros(count, np.int8))
                continue
            part, num_saturated = unpack_digits(symbols[i], count, digits)
            values.append(part)
            if num_saturated:
                saturated.setdefault(digits, []).append(i)
        for kind in kinds_of(kinds):
            some = saturated.get(kind, [])
            full = self._with_excess([values[i] for i in some], kind) if some else []
            for i, part in zip(some, full, strict=True):
                values[i] = part
        return values

    def raw(self, num_values: int, num_bits: int) -> Ints:
        """Return the next integers in [0, 2**num_bits) as int64."""
        values = np.zeros(num_values, np.int64)
        for shift in range(0, num_bits if num_values else 0, 8):
            frequencies = uniform(min(8, num_bits - shift))
            part = self._words.read([num_values], frequencies).astype(np.int64)
            values |= part << shift
        return values

    def finish(self) -> None:
        """Raise DecodeError unless everything was read."""
        self._words.finish()
        if len(self._parameters):
            raise DecodeError("parameters of streams are left over")

    def _models(self, num_models: int) -> list[bytes]:
        if num_models <= FEW_MODELS:
            return [self._plain_model() for _ in range(num_models)]
        lengths = np.cumsum(self.stream(num_models, LARGE).astype(np.int64)).tolist()
        most = max(lengths, default=0)
        if min(lengths, default=0) < 0 or most > NUM_SYMBOLS:
            raise DecodeError("the length of a model is out of range")
        if 1 in lengths:
            raise DecodeError("a model of one byte")
        changes = self.stream(sum(lengths), LARGE).tolist()
        known = [HALF] * most
        models, at = [], 0
        for length in lengths:
            for i in range(length):
                known[i] += changes[at + i]
                if not 0 <= known[i] < NUM_SYMBOLS:
                    raise DecodeError("a stream's model holds a chance that is none")
            models.append(bytes(known[:length]))
            at += length
        return models

    def _with_excess(self, parts: Sequence[Ints], digits: Digits) -> list[Ints]:
        """Return values with what their saturated digits leave of them."""
        places = [saturated_positions(values, digits) for values in parts]
        num = sum(place.size for place in places)
        if digits.signed:
            excess = self.stream(num, EXCESS).astype(np.int64)
        else:
            excess = self._large_excess(num)
        is_small = digits.limit + int(excess.max()) <= 127
        result, at = [], 0
        for values, place in zip(parts, places, strict=True):
            full = values if is_small else values.astype(np.int64)
            old = full[place]
            more = excess[at : at + place.size]
            full[place] = old + np.where(old < 0, -more, more).astype(full.dtype)
            result.append(full)
            at += place.size
        return result

    def _large_excess(self, num_values: int) -> Ints:
        lengths = self.raw(num_values, LENGTH_BITS)
        if int(lengths.max()) > MAX_EXCESS_BITS:
            raise DecodeError("an integer of more than 40 bits")
        excess = np.zeros(num_values, np.int64)
        for shift in (0, HALF_EXCESS_BITS):
            long_enough = lengths > shift
            bits = self.raw(int(long_enough.sum()), HALF_EXCESS_BITS)
            excess[long_enough] |= bits << shift
        return excess

    def _plain_model(self) -> bytes:
        return bytes(self._parameter_bytes(self._parameter_bytes(1)[0]))

    def _parameter_bytes(self, count: int) -> memoryview:
        if len(self._parameters) < count:
            raise DecodeError("the parameters of the streams end early")
        taken, self._parameters = self._parameters[:count], self._parameters[count:]
        return taken
