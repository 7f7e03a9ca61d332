r"""Contexts of levels, and levels by them: the reference.

A level is coded after those of lower frequency of its plane, of the samples before at
its frequency, and of the channels before of its sample. What those were, what of them
is remembered as running means, and the energy that the plan tells, are its contexts::

    more than 0? -> more than 1? -> ... more than 7? -> length of the rest -> its bits
               \-> sign

Magnitudes that contexts know are in half steps, see `trellis`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy.typing as npt

from flwr_slfac.codec.kernels import mixing
from flwr_slfac.codec.kernels.mixing import (
    NUM_BUCKETS,
    Arithmetic,
    Mixer,
    Slots,
    bucket_of,
)
from flwr_slfac.errors import DecodeError

__all__ = ["Grid", "LevelCoder", "extension_tables", "prior"]

Ints = npt.NDArray[Any]
# Half classes, see waterfill/energies.py.
_NUM_ENERGIES, _LAST_CLASS = 130, 59
# Of each quantizer: flags of a magnitude, and bins for the length of what is left.
_FLAGS, _LAST_BIN = 8, 9
_NUM_CHOICES = 2 * (_FLAGS + _LAST_BIN + 1)
# A limit of the format: no level has more bits.
_MOST_BITS = 26
# Our choice: of larger magnitudes and channels contexts know no more.
_LARGEST, _MOST_CHANNELS = 120, 4096
_CLASSES = 64
# Weights that mix inputs at first, in 65536ths: about 1 in all.
_WEIGHT, _SIGN_WEIGHT = 10000, 20000
_NUM_INPUTS = 7
# A prior counts as if it was met so often.
_PRIOR_SEEN = 4


# Steps down and right to neighbours.
_AROUND = ((0, -1), (-1, 0), (-1, -1), (-1, 1))


@dataclass(frozen=True, eq=False)
class Grid:
    """What coefficients (S, R) are, int64; planes are ``sample * r + channel``.

    Parameters
    ----------
    samples, channels, frequencies : ndarray (N,), (r,), (G,)
        Half units of energy, within +-1000.
    groups : ndarray (S,)
        Of frequencies, for each row.
    columns : ndarray (R,)
        Column of each plane.
    order : ndarray (S,)
        Rows, coarse to fine.
    rank : ndarray (S,)
        int32: place of each row in that order.
    width : int
        Of a plane, whose rows are ``S / width`` lines of so many.
    offset : int
        From half units to half classes.
    """

    samples: Ints
    channels: Ints
    frequencies: Ints
    groups: Ints
    columns: Ints
    order: Ints
    rank: Ints
    width: int
    offset: int

    @property
    def arrays(self) -> tuple[Ints, ...]:
        """All of its arrays."""
        energies = self.samples, self.channels, self.frequencies, self.groups
        return *energies, self.columns, self.order, self.rank

    def neighbours(self, row: int) -> list[int]:
        """Return the rows left of a row, above, and beside that; -1 for none.

        Of one that comes later in the order, the one on the other side is taken.
        """
        found = []
        y, x = divmod(row, self.width)
        height = len(self.order) // self.width
        for down, right in _AROUND:
            near = -1
            # The wanted side last: it has precedence.
            for side in (-1, 1):
                i, j = y + side * down, x + side * right
                if 0 <= i < height and 0 <= j < self.width:
                    at = i * self.width + j
                    near = at if self.rank[at] < self.rank[row] else near
            found.append(near)
        return found


@cache
def prior() -> tuple[int, ...]:
    """Return logistic values, in 256ths, of first chances that a level is larger.

    Lines through what the tensors of tests.bench.plan_captures show, by half class.
    """
    found = []
    for energy in range(_NUM_ENERGIES):
        for decision in range(_FLAGS + _LAST_BIN + 1):
            for quantizer in range(2):
                value = _prior_of(energy, decision, quantizer)
                found.append(max(-2000, min(value, 2000)))
    return tuple(found)


def _prior_of(energy: int, decision: int, quantizer: int) -> int:
    if decision == 0 and quantizer == 0:
        x = energy - 18
        return 55 * x if x >= 0 else 90 * x if x > -6 else 230 * (x + 6) - 540
    if decision == 0:
        x = energy - 13
        return 45 * x if x >= 0 else 150 * x
    if decision < _FLAGS:
        x = energy - 21
        return 50 * x if x >= 0 else 80 * x
    return 60 * (energy - 30)


class LevelCoder:
    """Codes the levels of a grid one by one, and remembers them.

    Parameters
    ----------
    grid : Grid
        Of the coefficients.
    coder : Arithmetic
        Which writes, or reads.

    Attributes
    ----------
    row, plane : int
        Of the coefficient at hand.
    energy : int
        Its half class, after `find_contexts`.
    """

    def __init__(self, grid: Grid, coder: Arithmetic) -> None:
        self._coder = coder
        self._samples = grid.samples.tolist()
        self._channels = grid.channels.tolist()
        self._frequencies = grid.frequencies[grid.groups].tolist()
        self._order = grid.order.tolist()
        self._near = [grid.neighbours(row) for row in range(len(self._order))]
        self._offset = grid.offset
        self._num_channels = len(self._channels)
        self.num_planes = len(self._samples) * self._num_channels
        self._sizes = [[0] * self.num_planes for _ in self._order]
        self.of_channels = [0] * self._num_channels
        self.of_planes = [0] * self.num_planes
        self.of_sample = 0
        self._signs = [0] * self._num_channels
        others = [Slots() for _ in range(_NUM_INPUTS - 1)]
        self._mixer = Mixer([Slots(prior(), _PRIOR_SEEN), *others], _WEIGHT)
        self._sign_mixer = Mixer([Slots() for _ in range(3)], _SIGN_WEIGHT)
        self.row = self.plane = self.energy = 0
        self._place = self._sample = self._channel = 0
        self._contexts: list[int] = []
        self._sets = (0, 0)

    def go_to(self, at: int) -> None:
        """Go to a coefficient, counted row by row in their order."""
        self._place, self.plane = divmod(at, self.num_planes)
        self.row = self._order[self._place]
        self._sample, self._channel = divmod(self.plane, self._num_channels)
        if not self._channel:
            self.of_sample = 0

    def find_contexts(self) -> None:
        """Find the contexts of the coefficient at hand."""
        sizes, k, plane = self._sizes[self.row], self._channel, self.plane
        energy = self._samples[self._sample] + self._channels[k]
        energy += self._frequencies[self.row] + self._offset
        self.energy = energy = max(0, min(energy, _NUM_ENERGIES - 1))
        class_ = min(energy >> 1, _LAST_CLASS)
        beside = 2 * abs(sizes[plane - 1]) if k > 0 else 0
        beside += abs(sizes[plane - 2]) if k > 1 else 0
        step = self._num_channels
        before = abs(sizes[plane - step]) if self._sample > 0 else 0
        before += abs(sizes[plane - 2 * step]) if self._sample > 1 else 0
        near = [
            0 if row < 0 else abs(self._sizes[row][plane])
            for row in self._near[self.row]
        ]
        around = 2 * (near[0] + near[1]) + near[2] + near[3]
        of_plane, of_channel = self.of_planes[plane], self.of_channels[k]
        total = 4 * around + 3 * beside + 4 * before
        bucket = bucket_of((total + (of_channel >> 4) + (of_plane >> 4)) // 8)
        channel_bucket = bucket_of(of_channel >> 5)
        octave = min(self._place.bit_length(), 4)
        self._contexts = [
            energy,
            bucket_of(of_plane >> 5) * NUM_BUCKETS + channel_bucket,
            bucket_of(2 * around) * NUM_BUCKETS + bucket_of(3 * beside),
            bucket_of(4 * before) * _CLASSES + class_,
            (channel_bucket * NUM_BUCKETS + bucket_of(self.of_sample >> 5)) * 5
            + octave,
            min(k, _MOST_CHANNELS - 1),
            class_ * NUM_BUCKETS + bucket,
        ]
        self._sets = class_, bucket

    def chance(self, decision: int, quantizer: int) -> int:
        """Return the chance, in 65536ths, that the magnitude exceeds `decision`."""
        return self._mixer.predict(*self._selected(decision, quantizer))

    def _selected(
        self, decision: int, quantizer: int
    ) -> tuple[list[int], tuple[int, int]]:
        choice = 2 * decision + quantizer
        contexts = [context * _NUM_CHOICES + choice for context in self._contexts]
        first, second = (s * _NUM_CHOICES + choice for s in self._sets)
        return contexts, (first, second)

    def _bit(self, decision: int, quantizer: int, bit: bool) -> int:
        selected = self._selected(decision, quantizer)
        return self._coder.mixed(self._mixer, *selected, int(bit))

    def magnitude(self, quantizer: int, value: int = 0) -> int:
        """Code a magnitude by one of two quantizers, or return the one coded."""
        for i in range(_FLAGS):
            if not self._bit(i, quantizer, value > i):
                return i
        rest, num_bits = value - _FLAGS + 2, 1
        while self._bit(
            _FLAGS + min(num_bits - 1, _LAST_BIN),
            quantizer,
            num_bits < _MOST_BITS and rest >> num_bits + 1 > 0,
        ):
            if num_bits == _MOST_BITS:
                raise DecodeError("a level of more than 26 bits")
            num_bits += 1
        return (1 << num_bits | self._coder.raw(num_bits, rest)) + _FLAGS - 2

    def sign(self, is_large: bool, negative: bool = False) -> bool:
        """Code whether a level is negative, or return it."""
        signs = [
            _sign(0 if row < 0 else self._sizes[row][self.plane])
            for row in self._near[self.row][:2]
        ]
        sizes, k, step = self._sizes[self.row], self._channel, self._num_channels
        beside = _sign(sizes[self.plane - 1]) if k > 0 else 0
        before = _sign(sizes[self.plane - step]) if self._sample > 0 else 0
        second = _sign(sizes[self.plane - 2 * step]) if self._sample > 1 else 0
        contexts = [
            signs[0] * 27 + signs[1] * 9 + beside * 3 + before,
            (self._signs[k] >> 7) + 16 + is_large * 33,
            self._contexts[5] * 9 + before * 3 + second,
        ]
        sets = int(is_large), 0
        negative = bool(
            self._coder.mixed(self._sign_mixer, contexts, sets, int(negative))
        )
        self._signs[k] += (-2047 if negative else 2047) - self._signs[k] >> 3
        return negative

    def remember(self, size: int, *, negative: bool) -> None:
        """Remember the size, in half steps, of the coefficient at hand."""
        clipped = min(size, _LARGEST)
        wide, plane, k = clipped << 8, self.plane, self._channel
        self._sizes[self.row][plane] = -clipped if negative else clipped
        self.of_planes[plane] += wide - self.of_planes[plane] >> 2
        shift = 1 if self._sample == 0 else 2 if self._sample < 3 else 3
        self.of_channels[k] += wide - self.of_channels[k] >> shift
        self.of_sample += wide - self.of_sample >> 3


def _sign(size: int) -> int:
    return 0 if size == 0 else 1 if size > 0 else 2


def extension_tables() -> Ints:
    """Return what the extension looks up."""
    return mixing.tables(prior())
