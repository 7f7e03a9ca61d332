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

from flwr_slfac.codec.waterfill.energies import class_offset, classes_of
from flwr_slfac.codec.waterfill.levels import CENTROID_UNIT, Quantized, quantize
from flwr_slfac.codec.waterfill.plan import LARGEST_LEVEL, Plan
from flwr_slfac.codec.waterfill.sample import CoefficientSample
from flwr_slfac.codec.waterfill.solver import SHRINK, solve
from flwr_slfac.codec.waterfill.transform import energy, forward_planes, inverse_planes

# Values, and samples, on which clamping's gain is measured; tensors with fewer values
# than the last are decoded instead (our choice).
_CLAMP_SIZE, _CLAMP_SAMPLES = 2**16, 6
_FEWEST_TO_CLAMP = 2**13
# Our choice: so many times fewer tell whether the gain is about that of the step
# before, and then move it by their share.
_FEWER, _SAME_GAIN = 3, 0.03
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
_FINER = 0.9
_MOST_TRIALS = 8
# Steps that are nearer to each other give the same levels.
_SAME_STEP = 1e-3
# What clamping leaves of an error, at least, so that a step never grows beyond reason.
_LEAST_GAIN = 0.1


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
    sample = CoefficientSample(plan)
    wanted = max(distortion - plan.left_out, least)
    step = solve(sample.distortion, wanted, plan.step)
    gain = None
    if is_nonnegative and x.numel() >= _FEWEST_TO_CLAMP:
        gain = _gain_near(plan, x, step)
        if gain < 1 - _CLOSE:
            wanted = max(distortion / gain - plan.left_out, least)
            step = solve(sample.distortion, wanted, step)
    quantized = _quantize_near(plan, sample, wanted, step)
    if quantized.num_levels >= _FEW_LEVELS:
        return replace(quantized, gain=gain)

    def error(candidate: Quantized) -> float:
        return _decoded_error(plan, x, candidate, is_nonnegative)

    return _coarsest_within(plan, quantized, error, distortion)


def _at_kept_step(
    plan: Plan, x: torch.Tensor, distortion: float, least: float, clamps: bool
) -> Quantized | None:
    """Quantize at the step that is kept of the stream, if it meets the distortion."""
    clamps = clamps and x.numel() >= _FEWEST_TO_CLAMP
    if not plan.is_kept or (clamps and plan.gain is None):
        return None
    quantized = quantize(plan, plan.step)
    if quantized.num_levels < _FEW_LEVELS:
        return None
    gain = _gain_near(plan, x, quantized.step) if clamps else None
    wanted = max(distortion / (gain or 1.0) - plan.left_out, least)
    if abs((quantized.distortion - plan.left_out) / wanted - 1) > _CLOSE:
        return None
    return replace(quantized, gain=gain)


def _coarsest_within(
    plan: Plan,
    start: Quantized,
    error: Callable[[Quantized], float],
    distortion: float,
) -> Quantized:
    """Return about the coarsest quantization near the start that errs no more."""
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
    return fine


def _decoded_error(
    plan: Plan, x: torch.Tensor, quantized: Quantized, clamp: bool
) -> float:
    """Return the squared error of the tensor as it will be decoded."""
    rows, columns = plan.energies
    offset = class_offset(quantized.step)
    classes = classes_of(rows[:, None] + columns, offset).reshape(-1)
    taken = quantized.shifts[classes].reshape(quantized.levels.shape) / CENTROID_UNIT
    values = (quantized.levels - np.sign(quantized.levels) * taken) * quantized.step
    back = plan.transform.inverse(torch.from_numpy(values).to(x))
    if clamp:
        back = back.clamp(min=0)
    return energy(back - x)


def _quantize_near(
    plan: Plan, sample: CoefficientSample, wanted: float, step: float
) -> Quantized:
    """Quantize, and again where the sample misled, until the distortion is met.

    Few coefficients give a distortion that jumps: then the best below it is taken.
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
        if quantized.distortion - plan.left_out <= wanted:
            below = quantized
        else:
            quantized = quantize(plan, quantized.step / 2)
    return below


def _limited(value: float, around: float) -> float:
    return min(max(value, around / _MOST_CORRECTION), around * _MOST_CORRECTION)


def _gain_near(plan: Plan, x: torch.Tensor, step: float) -> float:
    """Return what clamping leaves: of few values if they agree with the step before."""
    if plan.gain is None:
        return _clamping_gain(plan, x, step, 1)
    gain = _clamping_gain(plan, x, step, _FEWER)
    if abs(gain / plan.gain - 1) > _SAME_GAIN:
        return _clamping_gain(plan, x, step, 1)
    return plan.gain + (gain - plan.gain) / _FEWER


def _clamping_gain(plan: Plan, x: torch.Tensor, step: float, fewer: int) -> float:
    """Return the squared error after clamping at zero, relative to that before."""
    transform = plan.transform
    # Sample 0 is the mean where there is one: it has no original.
    first = int(transform.has_mean)
    num_picked = min(
        len(x) - first,
        max(_CLAMP_SAMPLES, _CLAMP_SIZE // (x.shape[1] * x.shape[2])) // fewer,
    )
    picked = np.linspace(first, len(x) - 1, num_picked).astype(int)
    index = torch.from_numpy(picked).to(x.device)
    some = plan.rows.index_select(0, index)
    planes = some.reshape(-1, x.shape[2])
    scaled = forward_planes(planes, transform.basis, transform.shape) * (1 / step)
    levels = torch.nn.functional.softshrink(scaled, SHRINK).round_()
    error = levels - scaled
    # The centroid of all classes together is near enough.
    signs = levels.sign()
    inside = float(signs.abs().sum())
    error -= signs * (float((error * signs).sum()) / max(inside, 1.0))
    back = inverse_planes(error * step, transform.basis, transform.shape)
    back = back.reshape(some.shape)
    original = x.index_select(0, index)
    if transform.matrix is not None:
        back = torch.matmul(transform.matrix.t(), back)
        if transform.num_rows < x.shape[1]:
            inner = torch.matmul(transform.matrix, original)
            back = back + torch.matmul(transform.matrix.t(), inner) - original
    before = float(back.square().sum(dtype=torch.float64))
    clamped = (original + back).clamp_(min=0).sub_(original)
    after = float(clamped.square().sum(dtype=torch.float64))
    return min(1.0, max(after / before, _LEAST_GAIN)) if before > 0 else 1.0
