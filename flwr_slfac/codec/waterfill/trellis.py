"""Streams of the coder "best": trellis-coded quantization and mixed contexts.

::

    6 bytes    centroids of groups of levels, signed, in 128ths of a step
    ...        a new channel basis, energies, levels: one arithmetic code

Rates depend on all that was coded before, so the step is found by coding: it is the one
whose squared error is that of the range coder's levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels import NUM_GROUPS, STEP_UNIT, Grid, kernels
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import Basis
from flwr_slfac.codec.waterfill.digits import Digits, Ints
from flwr_slfac.codec.waterfill.energies import (
    EnergyModel,
    class_offset,
    coarse_to_fine,
)
from flwr_slfac.codec.waterfill.level import TINY
from flwr_slfac.codec.waterfill.levels import CENTROID_UNIT, Quantized
from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.errors import DecodeError

__all__ = ["TrellisReader", "encode_like"]

# What a bit is worth in squared steps: our choice, near the slope of distortion against
# rate, as measured on the tensors of tests.bench.plan_captures.
_STEPS_PER_BIT = 0.08
_COST_UNIT = 256
# Largest centroid, of a signed byte.
_MOST_SHIFT = 127
# Where the search begins, relative to the step of the range coder, and how log error
# goes with log step there: the middle of what was measured.
_WIDER, _SLOPE = 1.12, 1.7
# Our choice: each pass codes the whole tensor. An error is near enough within the first
# of these, after some passes within the second below; it is never above by more than
# the first. Where a zero makes more of them likely, errors jump between steps.
_CLOSE, _NEAR = 0.005, 0.015
_FEW_PASSES, _MOST_PASSES = 4, 10
# Of a bracket, what a pass may leave at least: neither end gets stuck.
_LEAST_SHARE = 0.1
# A step, and its logarithm, change by no more at a time; one that changes by less is
# not worth a pass.
_MOST_MOVE, _SAME_STEP = 0.5, 2e-3


@dataclass(frozen=True, eq=False)
class _Trial:
    """A tensor coded at a step, and how far its squared error is off (log)."""

    step: float
    data: bytes
    off: float


def encode_like(
    plan: Plan, quantized: Quantized, lists: Sequence[Ints]
) -> tuple[float, bytes] | None:
    """Return the step and the code of about the same squared error as some levels.

    None where no step that was tried has an error within half a percent above it.

    Parameters
    ----------
    plan : Plan
        What was settled before the step.
    quantized : Quantized
        Levels of the range coder.
    lists : sequence of ndarray
        int64: what the decoder needs before it knows of energies.
    """
    coefficients = np.ascontiguousarray(plan.coefficients.cpu().numpy())
    all_lists = [*lists, *plan.energy_model.lists()]
    trials: list[_Trial] = []
    step = quantized.step * _WIDER
    for i in range(_MOST_PASSES):
        step = float(np.float32(max(step, plan.least_step)))
        trial = _at_step(plan, coefficients, all_lists, step, quantized.distortion)
        trials.append(trial)
        allowed = [trial for trial in trials if trial.off <= _CLOSE]
        near = _CLOSE if i < _FEW_PASSES else _NEAR
        following = _next_step(trials)
        is_same = abs(following / step - 1) < _SAME_STEP
        if is_same or any(trial.off >= -near for trial in allowed):
            break
        step = following
    if not allowed:
        return None
    best = min(allowed, key=lambda trial: len(trial.data))
    return best.step, best.data


def _next_step(trials: Sequence[_Trial]) -> float:
    """Return the step to try next: within a bracket, or beyond by the slope."""
    by_step = sorted(trials, key=lambda trial: trial.step)
    # Errors may fall as steps grow: the widest steps that have the wanted between them.
    for low, high in reversed(list(pairwise(by_step))):
        if low.off <= 0 < high.off:
            share = -low.off / (high.off - low.off)
            share = min(max(share, _LEAST_SHARE), 1 - _LEAST_SHARE)
            return float(low.step * (high.step / low.step) ** share)
    last = by_step[0] if by_step[0].off > 0 else by_step[-1]
    # Where some moves were too short, errors go by less than the slope.
    slope = _SLOPE if len(trials) < _FEW_PASSES else _SLOPE / 3
    move = max(-_MOST_MOVE, min(-last.off / slope, _MOST_MOVE))
    return last.step * math.exp(move)


def _at_step(
    plan: Plan,
    coefficients: npt.NDArray[np.float32],
    lists: list[Ints],
    step: float,
    distortion: float,
) -> _Trial:
    grid = _grid(
        plan.energy_model,
        plan.transform.basis,
        plan.transform.shape,
        plan.groups,
        plan.transform.order,
        class_offset(step),
    )
    price = round(_STEPS_PER_BIT * STEP_UNIT**2 / _COST_UNIT)
    inverse = float(np.float32(STEP_UNIT / step))
    code, sums = kernels().encode_trellis(lists, coefficients, grid, inverse, price)
    counts, along = sums[:NUM_GROUPS], sums[NUM_GROUPS : 2 * NUM_GROUPS]
    unit = STEP_UNIT / CENTROID_UNIT
    shifts = np.rint(along / np.maximum(counts, 1) / unit)
    shifts = np.clip(shifts, -_MOST_SHIFT, _MOST_SHIFT).astype(np.int8)
    taken = shifts.astype(np.float64) * unit
    saved = float((taken * (2.0 * along - taken * counts)).sum())
    error = (float(sums[-1]) - saved) * (step / STEP_UNIT) ** 2 + plan.left_out
    off = math.log(max(error, TINY) / max(distortion, TINY))
    return _Trial(step, shifts.tobytes() + code, off)


def _grid(
    model: EnergyModel,
    basis: Basis,
    shape: PlaneShape,
    groups: Ints,
    order: Ints,
    offset: int,
) -> Grid:
    """Return what tells the contexts of coefficients whose columns are in an order."""
    columns, rows = np.empty(len(order), np.int64), coarse_to_fine(basis, shape)
    columns[order] = np.arange(len(order))
    rank = np.empty(len(rows), np.int32)
    rank[rows] = np.arange(len(rows), dtype=np.int32)
    parts = model.samples, model.channels, model.frequencies
    samples, channels, frequencies = (p.astype(np.int64) for p in parts)
    width = shape.sizes[1] if len(shape.sizes) == 2 else len(rows)
    places = groups, columns, rows, rank, width
    return Grid(samples, channels, frequencies, *places, offset)


class TrellisReader:
    """Reads the streams of the coder "best", lists first.

    Parameters
    ----------
    section : memoryview
        From anywhere.

    Raises
    ------
    DecodeError
        From each method, if the bytes are not a writer's.
    """

    def __init__(self, section: memoryview) -> None:
        if len(section) <= NUM_GROUPS:
            raise DecodeError(f"{len(section)} bytes of levels are too few")
        self._shifts = np.frombuffer(section[:NUM_GROUPS], np.int8)
        self._decoder = kernels().open_trellis(section[NUM_GROUPS:])

    def stream(self, num_values: int, digits: Digits) -> Ints:
        """Return the next list, int64."""
        values: Ints = self._decoder.list(num_values)
        return values

    def coefficients(
        self,
        sizes: tuple[int, int, int],
        basis: Basis,
        shape: PlaneShape,
        groups: Ints,
        offset: int,
        step: float,
    ) -> tuple[npt.NDArray[np.float32], Ints]:
        """Return coefficients (S, N * r), and the planes that columns are.

        Parameters
        ----------
        sizes : tuple of int
            Samples, rows of the channel basis, and groups of frequencies.
        basis : Basis
            Spatial basis.
        shape : PlaneShape
            Of the planes.
        groups : ndarray (S,)
            Of frequencies.
        offset, step
            As the header has them.
        """
        model = EnergyModel.read(self, *sizes)
        order = np.argsort(-model.of_planes().astype(np.int16), kind="stable")
        grid = _grid(model, basis, shape, groups, order, offset)
        with np.errstate(over="ignore", invalid="ignore"):
            taken = (self._shifts / np.float32(CENTROID_UNIT)) * np.float32(step)
        return self._decoder.levels(grid, step, taken), order
