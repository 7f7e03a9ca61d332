"""Quantize the coefficients of a plan at the step that meets a distortion.

A sample of coefficients tells the step; all coefficients are quantized once and tell
the distortion, by Parseval's theorem. Where the sample misled, once more. What clamping
at zero will save is measured on a few samples. Where few coefficients carry the tensor,
no sample speaks for them: the tensor is then decoded, and the step halved until the
distortion is met.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from flwr_slfac.codec.waterfill.clamping import (
    FEWEST_TO_CLAMP,
    gain_near,
    share_near_zero,
)
from flwr_slfac.codec.waterfill.energies import class_offset, classes_of
from flwr_slfac.codec.waterfill.levels import CENTROID_UNIT, Quantized, quantize
from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.codec.waterfill.sample import CoefficientSample
from flwr_slfac.codec.waterfill.solver import solve
from flwr_slfac.codec.waterfill.target import Target
from flwr_slfac.codec.waterfill.transform import LARGEST_LEVEL, energy

# Relative distance of a distortion that is near enough: below the 2 percent that
# `Waterfill` documents.
_CLOSE = 0.015
# The least share of a distortion to aim at, where what is left out takes the rest.
_LEAST_SHARE = 0.02
# Our choice: each pass quantizes all coefficients; the sample seldom misleads twice.
_MOST_PASSES = 4
# Of a correction, our choice: within this factor, a step changes by no more either.
_MOST_CORRECTION = 4.0
# Tensors with fewer levels than this besides zero are decoded to measure the error, in
# trials of steps a tenth apart (our choice).
_FEW_LEVELS = 4096
# In a stream the step is that of the frame before, not a sample's: with fewer it jumps.
_FEWEST_LEVELS = 256
_FINER = 0.9
_MOST_TRIALS = 8
# Of log step against log distortion, which goes with step**1 to step**2.
_SLOPE = 0.6
# Of log step: further from where it was measured, what clamping saves is another, and
# is measured again, this often in all (our choice).
_SAME_GAIN, _MOST_GAINS = 0.12, 3
# Steps that are nearer to each other give the same levels.
_SAME_STEP = 1e-3


def quantize_for(
    plan: Plan, x: torch.Tensor, target: Target, *, clamps: bool
) -> Quantized:
    """Quantize at the target's step, or at the one that meets its distortion.

    Parameters
    ----------
    plan, x
        See `quantize_to`.
    target : Target
        Of a step or a distortion.
    clamps : bool
        Whether the decoder clamps at zero.
    """
    if target.step is not None:
        return quantize(plan, target.step)
    return quantize_to(plan, x, target.distortion or 0.0, is_nonnegative=clamps)


def quantize_to(
    plan: Plan, x: torch.Tensor, distortion: float, *, is_nonnegative: bool
) -> Quantized:
    """Quantize at the largest step that a distortion allows.

    Parameters
    ----------
    plan : Plan
        What is to be quantized.
    x : Tensor (N, C, S)
        What the plan was made for.
    distortion : float
        Squared error of the decoded tensor.
    is_nonnegative : bool
        Whether the decoder clamps at zero.
    """
    least = _LEAST_SHARE * distortion
    kept = _at_kept_step(plan, x, distortion, least, is_nonnegative)
    if kept is not None:
        return kept
    # What was kept did not serve: nor does what clamping saved.
    plan = replace(plan, gain=None)
    sample = CoefficientSample(plan)
    wanted = max(distortion - plan.left_out, least)
    step = solve(sample.distortion, wanted, plan.step)
    gain = None
    near_zero = 0.0
    if is_nonnegative and x.numel() >= FEWEST_TO_CLAMP:
        near_zero = share_near_zero(x, distortion)
        for _ in range(_MOST_GAINS):
            told, gain = step, gain_near(plan, x, step, near_zero)
            if gain < 1 - _CLOSE:
                wanted = max(distortion / gain - plan.left_out, least)
                step = solve(sample.distortion, wanted, step)
            if abs(math.log(step / told)) < _SAME_GAIN:
                break
    quantized = _quantize_near(plan, sample, wanted, step)
    if quantized.num_levels >= _FEW_LEVELS:
        return replace(quantized, gain=gain, near_zero=near_zero)

    def error(candidate: Quantized) -> float:
        return _decoded_error(plan, x, candidate, is_nonnegative)

    found, reached = _coarsest_within(plan, quantized, error, distortion)
    if gain is not None:
        gain = min(1.0, reached / found.distortion) if found.distortion else 1.0
    return replace(found, gain=gain, near_zero=near_zero)


def _at_kept_step(
    plan: Plan, x: torch.Tensor, distortion: float, least: float, clamps: bool
) -> Quantized | None:
    """Quantize at the step that is kept of the stream, if it meets the distortion."""
    clamps = clamps and x.numel() >= FEWEST_TO_CLAMP
    if not plan.is_kept or (clamps and plan.gain is None):
        return None
    gain, near_zero, step, told = 1.0, 0.0, plan.step, plan.step
    if clamps:
        near_zero = share_near_zero(x, distortion)
        gain = gain_near(plan, x, step, near_zero)
    wanted = max(distortion / gain - plan.left_out, least)
    for _ in range(_MOST_PASSES):
        if clamps and abs(math.log(step / told)) >= _SAME_GAIN:
            told, gain = step, gain_near(replace(plan, gain=None), x, step, near_zero)
            wanted = max(distortion / gain - plan.left_out, least)
        quantized = quantize(plan, step)
        ratio = (quantized.distortion - plan.left_out) / wanted
        if quantized.num_levels < _FEWEST_LEVELS or _limited(ratio, 1.0) != ratio:
            return None
        if clamps and abs(ratio - 1) < _CLOSE and quantized.num_levels < _FEW_LEVELS:
            # As many errors as few levels leave are not those of a few samples.
            reached = _decoded_error(plan, x, quantized, clamps)
            gain = min(1.0, reached / quantized.distortion)
            wanted = max(distortion / gain - plan.left_out, least)
            ratio = reached / distortion
        if abs(ratio - 1) < _CLOSE:
            measured = gain if clamps else None
            return replace(quantized, gain=measured, near_zero=near_zero)
        step *= ratio**-_SLOPE
    return None


def _coarsest_within(
    plan: Plan,
    start: Quantized,
    error: Callable[[Quantized], float],
    distortion: float,
) -> tuple[Quantized, float]:
    """Return about the coarsest quantization within a distortion, and its error."""
    most = (1 + _CLOSE) * distortion
    fine, reached, coarse = start, error(start), math.inf
    while reached > most and plan.largest / fine.step < LARGEST_LEVEL / 2:
        coarse = fine.step
        fine = quantize(plan, coarse * _FINER)
        reached = error(fine)
    for _ in range(_MOST_TRIALS):
        if reached > (1 - _CLOSE) * distortion or coarse / fine.step < 1 + _SAME_STEP:
            break
        step = (
            fine.step / _FINER if coarse == math.inf else math.sqrt(coarse * fine.step)
        )
        trial = quantize(plan, step)
        if (err := error(trial)) <= most:
            fine, reached = trial, err
        else:
            coarse = trial.step
    return fine, reached


def _decoded_error(
    plan: Plan, x: torch.Tensor, quantized: Quantized, clamp: bool
) -> float:
    """Return the squared error of the tensor as it will be decoded."""
    rows, columns = plan.energies
    # Few are not zero.
    at = np.nonzero(quantized.levels)
    levels = quantized.levels[at].astype(np.float64)
    classes = classes_of(rows[at[0]] + columns[at[1]], class_offset(quantized.step))
    taken = quantized.shifts[classes] / CENTROID_UNIT
    values = np.zeros(quantized.levels.shape, np.float32)
    values[at] = (levels - np.sign(levels) * taken) * quantized.step
    back = plan.transform.inverse(torch.from_numpy(values).to(x))
    if clamp:
        back = back.clamp(min=0)
    return energy(back - x)


def _quantize_near(
    plan: Plan, sample: CoefficientSample, wanted: float, step: float
) -> Quantized:
    """Quantize, and again where the sample misled, until the distortion is met.

    Few coefficients give a distortion that jumps: then the best below it is taken, or
    the finest where none is below.
    """
    quantized = quantize(plan, step)
    below: Quantized | None = None
    for _ in range(_MOST_PASSES):
        ratio = (quantized.distortion - plan.left_out) / wanted
        if abs(ratio - 1) < _CLOSE:
            return quantized
        if ratio < 1 and (below is None or quantized.distortion > below.distortion):
            below = quantized
        # The sample is off by this factor: aim that much beside.
        aim = sample.distortion(quantized.step) / _limited(ratio, 1.0)
        step = solve(sample.distortion, aim, quantized.step) if aim > 0 else step / 2
        step = _limited(step, quantized.step)
        if below is not None and abs(step / quantized.step - 1) < _SAME_STEP:
            return below
        quantized = quantize(plan, step)
    while below is None:
        # The finest step may have more error than is wanted: there is none with less.
        is_finest = quantized.step <= plan.least_step
        if is_finest or quantized.distortion - plan.left_out <= wanted:
            below = quantized
        else:
            quantized = quantize(plan, quantized.step / 2)
    return below


def _limited(value: float, around: float) -> float:
    return min(max(value, around / _MOST_CORRECTION), around * _MOST_CORRECTION)
