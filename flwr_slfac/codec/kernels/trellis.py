"""Trellis-coded quantization with mixed contexts, the reference.

Two quantizers of one step are half a step apart, with zero in both. Which of them a
level is of, a machine of 8 states knows from the parities of all levels before::

    quantizer 0    ... -2  -1   0   1   2 ...    a level m is  m steps
    quantizer 1    ... -2 -1    0    1 2 ...                   m steps, less sign(m) / 2

So steps may be larger at the same error. The encoder takes the cheapest way through a
block of coefficients, squared error and bits together (Marcellin and Fischer, Trellis
coded quantization, 1990; with zero in both and parities as in Schwarz et al., Hybrid
video coding with trellis-coded quantization, DCC 2019). Bits are those of the models as
they are before the block, where contexts are guessed within it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels.contexts import Grid, LevelCoder
from flwr_slfac.codec.kernels.lists import ListModel
from flwr_slfac.codec.kernels.mixing import Arithmetic, costs

__all__ = ["NUM_GROUPS", "STEP_UNIT", "Decoder", "encode"]

Array = npt.NDArray[Any]
# Coefficients are in 512ths of a step: our choice, of which squares are exact.
STEP_UNIT = 512
_HALF = STEP_UNIT // 2
# Centroids are told apart by quantizer and by magnitudes of 1, 2 and more.
NUM_GROUPS = 6
# Next states by parity, of Ungerboeck's trellis; a state's lowest bit is its quantizer.
_NEXT = ((0, 1), (3, 2), (5, 4), (6, 7), (1, 0), (2, 3), (4, 5), (7, 6))
# Our choice: a block is an eighth of what the models have learned from, within limits.
_SHORTEST, _LONGEST = 64, 1024
# What is added before contexts are guessed by rounding down to half steps: 0.15 of a
# half step less than rounding to the nearest.
_PROVISIONAL = 90
# Of little energy and below 3/8 of a step, nothing but zero is tried.
_QUIET, _QUIET_ENERGY = 192, 8
# The bits of larger magnitudes hardly differ between neighbours.
_MOST_RATED = 7
_UNREACHED = 1 << 62
# A limit of the format, in 512ths of a step.
_LARGEST = np.float32(2**33)
# Of each quantizer, by parity: cost and magnitude.
_Candidates = list[list[tuple[int, int]]]


def encode(
    lists: list[Array], coefficients: Array, grid: Grid, inverse: float, price: int
) -> tuple[bytes, Array]:
    """Quantize and code all coefficients, after some lists.

    Parameters
    ----------
    lists : list of ndarray
        int64, within 40 bits.
    coefficients : ndarray (S, R)
        float32, contiguous, below 2**24 steps.
    grid : Grid
        Of the coefficients.
    inverse : float
        512 / step, as float32 holds it.
    price : int
        Of 256th of a bit, in squared 512ths of a step, below 4096.

    Returns
    -------
    tuple of bytes and ndarray
        What `Decoder` reads, and int64 (19,): how many levels of each group there are,
        the sums of their errors away from zero, and of all squared errors, in 512ths.
    """
    coder, model = Arithmetic(), ListModel()
    for values in lists:
        model.code(coder, len(values), values.tolist())
    levels = LevelCoder(grid, coder)
    scaled = np.minimum(np.abs(coefficients) * np.float32(inverse), _LARGEST)
    ordered = np.rint(scaled)[grid.order][:, grid.columns].reshape(-1)
    sizes = ordered.astype(np.int64).tolist()
    below_zero = coefficients[grid.order][:, grid.columns].reshape(-1) < 0
    sums, state, start = [0] * (3 * NUM_GROUPS + 1), 0, 0
    while start < len(sizes):
        num = min(max(start // 8, _SHORTEST), _LONGEST)
        block = sizes[start : start + num]
        magnitudes = _quantize_block(levels, start, block, state, price)
        for i, (size, magnitude) in enumerate(zip(block, magnitudes, strict=True)):
            levels.go_to(start + i)
            negative = bool(below_zero[start + i])
            state, found, _, group = _code_level(levels, state, magnitude, negative)
            error = found * _HALF - size
            sums[3 * NUM_GROUPS] += error * error
            if found:
                sums[group] += 1
                sums[NUM_GROUPS + group] += error
        start += len(block)
    return coder.getvalue(), np.array(sums, np.int64)


class Decoder:
    """Reads what `encode` wrote: its lists, then its levels.

    Parameters
    ----------
    data : memoryview
        From anywhere.

    Raises
    ------
    DecodeError
        From each method, if the bytes are not an encoder's.
    """

    def __init__(self, data: memoryview) -> None:
        self._coder, self._model = Arithmetic(bytes(data)), ListModel()

    def list(self, num: int) -> Array:
        """Return the next list, int64."""
        return np.array(self._model.code(self._coder, num, None), np.int64)

    def levels(self, grid: Grid, step: float, taken: Array) -> Array:
        """Return all coefficients (S, R), float32, after the last list.

        Parameters
        ----------
        grid : Grid
            Of the coefficients.
        step : float
            As float32 holds it.
        taken : ndarray (6,)
            float32: what to take off magnitudes of each group.
        """
        levels, state = LevelCoder(grid, self._coder), 0
        shape = len(grid.order), levels.num_planes
        values = np.zeros(shape, np.float32)
        half = np.float32(step) * np.float32(0.5)
        for at in range(values.size):
            levels.go_to(at)
            state, size, negative, group = _code_level(levels, state)
            if size:
                # A crafted step may overflow; the caller finds what is not finite.
                with np.errstate(over="ignore", invalid="ignore"):
                    value = np.float32(size) * half - taken[group]
                column = grid.columns[levels.plane]
                values[levels.row, column] = -value if negative else value
        self._coder.finish()
        return values


def _code_level(
    levels: LevelCoder, state: int, magnitude: int = 0, negative: bool = False
) -> tuple[int, int, bool, int]:
    """Code the level at hand; return the next state, its size, sign and group."""
    quantizer = state & 1
    levels.find_contexts()
    magnitude = levels.magnitude(quantizer, magnitude)
    negative = bool(magnitude) and levels.sign(magnitude > 1, negative)
    size = 2 * magnitude - quantizer if magnitude else 0
    levels.remember(size, negative=negative)
    group = 3 * quantizer + min(magnitude, 3) - 1
    return _NEXT[state][magnitude & 1], size, negative, group


def _quantize_block(
    levels: LevelCoder, start: int, sizes: list[int], state: int, price: int
) -> list[int]:
    """Return magnitudes, and leave what is remembered as it was."""
    kept = levels.of_sample, list(levels.of_channels), list(levels.of_planes)
    candidates = []
    for i, size in enumerate(sizes):
        levels.go_to(start + i)
        levels.find_contexts()
        candidates.append([_candidates(levels, q, size, price) for q in range(2)])
        levels.remember((size + _PROVISIONAL) // _HALF, negative=False)
    levels.of_sample, levels.of_channels, levels.of_planes = kept
    return _search(candidates, state)


def _candidates(
    levels: LevelCoder, quantizer: int, size: int, price: int
) -> list[tuple[int, int]]:
    """Return cost and magnitude, by parity, of what a coefficient may become."""
    found = [(_UNREACHED, 0)] * 2

    def offer(magnitude: int, rate: int) -> None:
        error = magnitude * STEP_UNIT - quantizer * _HALF - size if magnitude else -size
        cost = error * error + price * rate
        if cost < found[magnitude & 1][0]:
            found[magnitude & 1] = cost, magnitude

    below = (size + quantizer * _HALF) // STEP_UNIT
    if levels.energy < _QUIET_ENERGY and size < _QUIET:
        offer(0, 0)
    elif below >= _MOST_RATED:
        offer(below, 0)
        offer(below + 1, 0)
    else:
        table, rate = costs(), 0
        first = 0 if below <= 2 else below - 1
        for i in range(below + 2):
            chance = levels.chance(i, quantizer)
            if i >= first:
                stop = rate + table[65536 - chance >> 4]
                offer(i, stop + (256 if i else 0))
            rate += table[chance >> 4]
    return found


def _search(candidates: list[_Candidates], state: int) -> list[int]:
    """Return the magnitudes of the cheapest way from a state (Viterbi)."""
    costs_of = [_UNREACHED] * len(_NEXT)
    costs_of[state] = 0
    ways: list[list[tuple[int, int]]] = []
    for candidate in candidates:
        reached = [_UNREACHED] * len(_NEXT)
        way = [(0, 0)] * len(_NEXT)
        for s, cost in enumerate(costs_of):
            for parity in range(2):
                more = candidate[s & 1][parity][0]
                to = _NEXT[s][parity]
                is_open = cost != _UNREACHED and more != _UNREACHED
                if is_open and cost + more < reached[to]:
                    reached[to], way[to] = cost + more, (s, parity)
        costs_of = reached
        ways.append(way)
    s = costs_of.index(min(costs_of))
    magnitudes = []
    for candidate, way in zip(reversed(candidates), reversed(ways), strict=True):
        s, parity = way[s]
        magnitudes.append(candidate[s & 1][parity][1])
    return magnitudes[::-1]
