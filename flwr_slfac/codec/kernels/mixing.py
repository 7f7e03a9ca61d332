"""Binary arithmetic coding with mixed contexts, the reference.

::

    contexts -> slots (chance, times seen) -> stretch, by trust -> two weighted sums
             -> mean -> squash -> chance of a 1 -> arithmetic coder

Predictions in the logistic domain are mixed by weights that learn online (Mahoney,
Adaptive Weighing of Context Models for Lossless Data Compression, 2005). All of it is
in integers, so that both sides agree on any machine.
"""

from bisect import bisect_right
from functools import cache
from operator import mul
from typing import Any

import numpy as np
import numpy.typing as npt

from flwr_slfac.errors import DecodeError

__all__ = [
    "BITS",
    "NUM_BUCKETS",
    "Arithmetic",
    "Mixer",
    "Slots",
    "bucket_of",
    "costs",
    "tables",
]

Ints = npt.NDArray[Any]
# The logistic domain: natural logarithms in 256ths, up to 12, where a chance is as near
# to 0 or 1 as 16 bits tell.
_MOST_STRETCH, _STRETCH_UNIT = 3071, 256
# Bits of tables that a chance is looked up in, and 256ths of a bit.
BITS = 256
_CHANCE_BITS, _LOOKUP_BITS = 16, 12
# Our choice, by the tensors of tests.bench.plan_captures: how fast weights learn, their
# limit, and what is added to the inputs.
_LEARN_SHIFT, _MOST_WEIGHT, _BIAS = 14, 1 << 19, 256
# A slot learns by 1 / (times seen + 1.6), and is trusted by 2 seen / (2 seen + 1).
_MOST_SEEN = 255
# Last values of buckets of magnitudes, about a factor of 1.5 apart (our choice).
_BUCKET_ENDS = (0, 2, 5, 9, 15, 23, 35, 53, 79, 119, 199, 399, 999)
_MOST_BUCKETED = 1023
NUM_BUCKETS = len(_BUCKET_ENDS) + 1
# e**(-1/256) over 2**62: powers of it have more bits than are kept.
_DECAY, _DECAY_BITS = 4593706758521714574, 62
# Of the last byte that is written, a decoder reads so many more.
_FLUSHED = 3


@cache
def _squashes() -> list[int]:
    """Return chances in 65536ths of logistic values -3071 to 3071."""
    power, below = 1 << _DECAY_BITS, []
    for _ in range(_MOST_STRETCH + 1):
        share = (power << _CHANCE_BITS) // ((1 << _DECAY_BITS) + power)
        below.append(max(share, 1))
        power = power * _DECAY >> _DECAY_BITS
    above = [(1 << _CHANCE_BITS) - chance for chance in below[1:]]
    return [*below[:0:-1], 1 << _CHANCE_BITS - 1, *above]


@cache
def _stretches() -> list[int]:
    """Return the logistic value of each chance's upper 12 bits."""
    squashes, half = _squashes(), 1 << _CHANCE_BITS - _LOOKUP_BITS - 1
    chances = [(i << 4) + half for i in range(1 << _LOOKUP_BITS)]
    return [bisect_right(squashes, chance) - 1 - _MOST_STRETCH for chance in chances]


@cache
def costs() -> list[int]:
    """Return 256ths of bits that an event of a chance, by its upper 12 bits, takes."""
    whole = (_LOOKUP_BITS + 1) * BITS
    ends = range(1, 2 << _LOOKUP_BITS, 2)
    # 256 log2(n) is about the length of n**256.
    return [whole + 1 - (n**BITS).bit_length() for n in ends]


_RATES = [655360 // (10 * n + 16) for n in range(_MOST_SEEN + 1)]
_TRUST = [512 * n // (2 * n + 1) for n in range(_MOST_SEEN + 1)]


@cache
def _buckets() -> list[int]:
    return [sum(i > e for e in _BUCKET_ENDS) for i in range(_MOST_BUCKETED + 1)]


def bucket_of(value: int) -> int:
    """Return the bucket, 0 to 13, of a number that is not negative."""
    return _buckets()[min(value, _MOST_BUCKETED)]


@cache
def tables(prior: tuple[int, ...]) -> Ints:
    """Return all tables end to end, int32, for the extension.

    Parameters
    ----------
    prior : tuple of int
        Logistic values of the first chances of magnitudes, see `contexts`.
    """
    first = [_squashes()[x + _MOST_STRETCH] for x in prior]
    lists = (_squashes(), _stretches(), costs(), _RATES, _TRUST, _buckets(), first)
    joined = np.concatenate([np.array(part, np.int32) for part in lists])
    joined.flags.writeable = False
    return joined


class Slots:
    """Chances of a 1 in contexts, in 65536ths, and how often each context was met.

    Parameters
    ----------
    prior : tuple of int, optional
        Logistic values of the first chances; chances of a half that count nothing
        without.
    seen : int
        How often a context of the prior counts as met.
    """

    def __init__(self, prior: tuple[int, ...] | None = None, seen: int = 0) -> None:
        self._prior, self._seen = prior, seen
        self._known: dict[int, tuple[int, int, int]] = {}

    def input(self, context: int) -> int:
        """Return what a mixer takes of a context."""
        return self._of(context)[2]

    def learn(self, context: int, bit: int) -> None:
        """Learn the bit that was met in a context."""
        chance, seen, _ = self._of(context)
        chance += (65535 * bit - chance) * _RATES[seen] >> 16
        self._known[context] = _slot(chance, min(seen + 1, _MOST_SEEN))

    def _of(self, context: int) -> tuple[int, int, int]:
        slot = self._known.get(context)
        if slot is None:
            value = 0 if self._prior is None else self._prior[context]
            slot = _slot(_squashes()[value + _MOST_STRETCH], self._seen)
            self._known[context] = slot
        return slot


def _slot(chance: int, seen: int) -> tuple[int, int, int]:
    return chance, seen, _stretches()[chance >> 4] * _TRUST[seen] >> 8


class Mixer:
    """Weights that mix the chances of some contexts, and learn.

    Parameters
    ----------
    slots : list of Slots
        One for each input.
    weight : int
        First weight of each input, in 65536ths.
    """

    def __init__(self, slots: list[Slots], weight: int) -> None:
        self._slots = slots
        self._first = [weight] * len(slots) + [0]
        self._weights: tuple[dict[int, list[int]], ...] = ({}, {})
        self._squashes = _squashes()
        self._chosen: list[tuple[Slots, int]] = []
        self._inputs: list[int] = []
        self._sums: list[tuple[list[int], int]] = []

    def predict(self, contexts: list[int], sets: tuple[int, int]) -> int:
        """Return the chance of a 1 in 65536ths.

        Parameters
        ----------
        contexts : list of int
            One for each input.
        sets : tuple of int
            Which weights the first and the second sum take.
        """
        self._chosen = list(zip(self._slots, contexts, strict=True))
        self._inputs = inputs = [slots.input(i) for slots, i in self._chosen]
        inputs.append(_BIAS)
        self._sums = []
        for weights, number in zip(self._weights, sets, strict=True):
            of_set = weights.setdefault(number, [])
            if not of_set:
                of_set += self._first
            total = sum(map(mul, of_set, inputs)) >> 16
            self._sums.append((of_set, _limited(total, _MOST_STRETCH)))
        mean = self._sums[0][1] + self._sums[1][1] >> 1
        return self._squashes[mean + _MOST_STRETCH]

    def learn(self, bit: int) -> None:
        """Learn the bit after `predict`."""
        for weights, total in self._sums:
            error = (bit << 16) - self._squashes[total + _MOST_STRETCH]
            for i, x in enumerate(self._inputs):
                change = x * error + (1 << _LEARN_SHIFT - 1) >> _LEARN_SHIFT
                weights[i] = _limited(weights[i] + change, _MOST_WEIGHT)
        for slots, i in self._chosen:
            slots.learn(i, bit)


def _limited(value: int, most: int) -> int:
    return max(-most, min(value, most))


class Arithmetic:
    """A binary arithmetic coder that writes, or reads what was given.

    Parameters
    ----------
    data : bytes, optional
        What to decode, from anywhere; None to encode.

    Raises
    ------
    DecodeError
        From each method, if the bytes end early.
    """

    def __init__(self, data: bytes | None = None) -> None:
        self._low, self._high, self._code, self._at = 0, 2**32 - 1, 0, 0
        self._data = data
        self._out = bytearray()
        for _ in range(4 if data is not None else 0):
            self._code = self._code << 8 | self._next()

    def _next(self) -> int:
        data = self._data or b""
        if self._at >= len(data) + _FLUSHED:
            raise DecodeError("the coded levels end early")
        self._at += 1
        return data[self._at - 1] if self._at <= len(data) else 0

    def bit(self, chance: int, bit: int = 0) -> int:
        """Code a bit of a chance in 65536ths, or return the one that was coded."""
        middle = self._low + ((self._high - self._low) * chance >> 16)
        if self._data is not None:
            bit = int(self._code <= middle)
        if bit:
            self._high = middle
        else:
            self._low = middle + 1
        while not (self._low ^ self._high) >> 24:
            if self._data is None:
                self._out.append(self._high >> 24)
            else:
                self._code = (self._code << 8 | self._next()) & 0xFFFFFFFF
            self._low = self._low << 8 & 0xFFFFFFFF
            self._high = (self._high << 8 | 255) & 0xFFFFFFFF
        return bit

    def mixed(
        self, mixer: Mixer, contexts: list[int], sets: tuple[int, int], bit: int = 0
    ) -> int:
        """Code a bit by what a mixer predicts, which learns it."""
        bit = self.bit(mixer.predict(contexts, sets), bit)
        mixer.learn(bit)
        return bit

    def raw(self, num_bits: int, value: int = 0) -> int:
        """Code the lowest bits of an integer as they are, the highest first."""
        coded = 0
        for i in reversed(range(num_bits)):
            coded = coded << 1 | self.bit(1 << 15, value >> i & 1)
        return coded

    def getvalue(self) -> bytes:
        """Return what was encoded."""
        return bytes([*self._out, (self._low >> 24) + 1])

    def finish(self) -> None:
        """Raise DecodeError unless everything was read."""
        if self._at != len(self._data or b"") + _FLUSHED:
            raise DecodeError("coded levels are left over")
