"""Streams of integers to bytes, see `streams`."""

from collections.abc import Sequence

import numpy as np

from flwr_slfac.codec.waterfill.digits import (
    EXCESS,
    LARGE,
    Digits,
    Ints,
    pack_digits,
    saturated_positions,
    symbol_of_zeros,
)
from flwr_slfac.codec.waterfill.model import fit_model, frequencies_of
from flwr_slfac.codec.waterfill.streams import (
    EMPTY,
    FEW_MODELS,
    HALF,
    HALF_EXCESS_BITS,
    LENGTH_BITS,
    kinds_of,
    uniform,
)
from flwr_slfac.codec.waterfill.words import Symbols, WordWriter


class StreamWriter:
    """Collects streams; `finish` returns all of them as bytes."""

    def __init__(self) -> None:
        self._parameters = bytearray()
        self._words = WordWriter()

    def stream(self, values: Ints, digits: Digits) -> None:
        """Add one stream.

        Parameters
        ----------
        values : ndarray of a signed integer type
            One-dimensional; its length is for the caller to convey.
        digits : Digits
            How to cut it into symbols.
        """
        if values.size == 0:
            return
        symbols, model, saturates = _modelled(values, digits)
        self._parameters += bytes([len(model)]) + model
        if model:
            frequencies = frequencies_of(model, digits)[None]
            self._words.add(symbols, [symbols.size], frequencies)
        if saturates:
            self._excess([values], digits)

    def bulk(self, parts: Sequence[tuple[Ints, Digits]]) -> None:
        """Add streams with values and digits of their own, all of them not empty."""
        models, coded = [], []
        saturated: dict[Digits, list[Ints]] = {}
        for values, digits in parts:
            symbols, model, num_saturated = _modelled(values, digits)
            models.append(model)
            if num_saturated:
                saturated.setdefault(digits, []).append(values)
            if model:
                coded.append((symbols, frequencies_of(model, digits)))
        self._models(models)
        if coded:
            self._words.add(
                np.concatenate([symbols for symbols, _ in coded]),
                [symbols.size for symbols, _ in coded],
                np.stack([frequencies for _, frequencies in coded]),
            )
        for kind in kinds_of([digits for _, digits in parts]):
            self._excess(saturated.get(kind, []), kind)

    def raw(self, values: Ints, num_bits: int) -> None:
        """Add integers in [0, 2**num_bits), all equally likely; byte by byte."""
        for shift in range(0, num_bits if values.size else 0, 8):
            frequencies = uniform(min(8, num_bits - shift))
            symbols = (values >> shift).astype(np.uint8)
            symbols &= np.uint8(min(255, (1 << num_bits - shift) - 1))
            self._words.add(symbols, [symbols.size], frequencies)

    def _models(self, models: Sequence[bytes]) -> None:
        """Add the models of the bulk, each byte less that of the model before it."""
        if len(models) <= FEW_MODELS:
            for model in models:
                self._parameters += bytes([len(model)]) + model
            return
        lengths = np.array([len(model) for model in models], np.int64)
        self.stream(np.diff(lengths, prepend=0), LARGE)
        known: list[int] = []
        changes: list[int] = []
        for model in models:
            known += [HALF] * (len(model) - len(known))
            changes += [byte - old for byte, old in zip(model, known, strict=False)]
            known[: len(model)] = model
        self.stream(np.array(changes, np.int64), LARGE)

    def _excess(self, parts: Sequence[Ints], digits: Digits) -> None:
        """Add what saturated digits leave of values."""
        magnitudes = [
            np.abs(values[saturated_positions(values, digits)].astype(np.int64))
            for values in parts
        ]
        if not magnitudes:
            return
        excess = np.concatenate(magnitudes) - digits.limit
        if digits.signed:
            self.stream(excess, EXCESS)
            return
        # Saturated twice: the bit length, then the bits.
        mask = (1 << HALF_EXCESS_BITS) - 1
        lengths = np.frexp(excess.astype(np.float64))[1].astype(np.int64)
        self.raw(lengths, LENGTH_BITS)
        for shift in (0, HALF_EXCESS_BITS):
            long_enough = lengths > shift
            self.raw((excess >> shift & mask)[long_enough], HALF_EXCESS_BITS)

    def finish(self) -> tuple[bytes, bytes]:
        """Return the parameters and the coded words."""
        return bytes(self._parameters), self._words.finish()


def _modelled(values: Ints, digits: Digits) -> tuple[Symbols, bytes, int]:
    """Return symbols, their model or what is in place of it, and how many saturate."""
    symbols, counts, num_saturated = pack_digits(values, digits)
    if counts[symbol_of_zeros(digits)] == symbols.size:
        return symbols, EMPTY, 0
    return symbols, fit_model(counts, digits), num_saturated
