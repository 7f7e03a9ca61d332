"""Quantize the coefficients of a plan at the step that meets a distortion.

A sample of coefficients tells the step; all coefficients are quantized once and tell
the distortion, by Parseval's theorem. Where the sample misled, once more. What clamping
at zero will save is measured on a few samples. Where few coefficients carry the tensor,
no sample speaks for them: the tensor is then decoded, and the step halved until the
distortion is met.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.waterfill.entropy import ideal_bits
from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.codec.waterfill.scales import NUM_CLASSES
from flwr_slfac.codec.waterfill.solve import SHRINK, solve
from flwr_slfac.codec.waterfill.transform import energy, forward_planes, inverse_planes

Ints = npt.NDArray[Any]

# Class c holds coefficients of standard deviation 2**((c - 8) / 2) steps.
CLASS_OF_STEP = 8
CENTROID_UNIT = 128.0
_SEARCH_SIZE = 2**15
_CLAMP_SIZE = 2**16
_FEWEST_TO_CLAMP = 2**13
_CHUNK = 2**17
_FINER = 0.9
_MOST_TRIALS = 8
_CLOSE = 0.015
_MOST_PASSES = 4
_FEW_LEVELS = 4096
# Beyond this many steps, float32 transforms are off by more than the step.
_LARGEST_LEVEL = 2**22


class Search:
    """A sample of coefficients, to see what a step would do without coding.

    Parameters
    ----------
    plan : Plan
        What is to be quantized.
    """

    def __init__(self, plan: Plan) -> None:
        total = plan.coefficients.numel()
        # Odd, so that it meets all samples where their number is a power of two.
        stride = max(1, total // _SEARCH_SIZE) | 1 if total > _SEARCH_SIZE else 1
        flat = plan.coefficients.reshape(-1)[::stride]
        self.magnitudes = flat.abs().cpu().numpy()
        at = np.arange(0, total, stride)
        positions, planes = plan.energies
        self._energies = positions[at // len(planes)] + planes[at % len(planes)]
        self.weight = total / max(len(at), 1)
        self._positions, self._planes = positions, planes

    def distortion(self, step: float) -> float:
        """Return the squared error of all coefficients at a step."""
        scaled = self.magnitudes * np.float32(1 / step)
        levels = np.floor(scaled + np.float32(0.5 - SHRINK))
        error = levels - scaled
        inside = levels > 0
        num = int(np.count_nonzero(inside))
        total = float(np.dot(error, error))
        if num:
            total -= float(np.dot(error, inside)) ** 2 / num
        return max(total, 0.0) * step**2 * self.weight

    def centroids(self, step: float) -> tuple[Ints, float]:
        """Return what to take off magnitudes by class, and the squared error saved."""
        scaled = self.magnitudes * np.float32(1 / step)
        levels = np.floor(scaled + np.float32(0.5 - SHRINK))
        inside = np.flatnonzero(levels)
        error = (levels - scaled)[inside].astype(np.float64)
        classes = self._classes(step)[inside]
        num = np.bincount(classes, minlength=NUM_CLASSES)
        total = np.bincount(classes, error, minlength=NUM_CLASSES)
        units = np.rint(total / np.maximum(num, 1) * CENTROID_UNIT)
        shifts = np.clip(units, -CENTROID_UNIT, CENTROID_UNIT).astype(np.int64)
        taken = shifts / CENTROID_UNIT
        saved = float((2 * taken * total - taken**2 * num).sum())
        return shifts, saved * step**2 * self.weight

    def bits(self, step: float) -> float:
        """Return the bits of all coefficients at a step."""
        scaled = self.magnitudes * np.float32(1 / step)
        levels = np.floor(scaled + np.float32(0.5 - SHRINK))
        width = 256
        # Beyond the table a magnitude is its octave and uniform bits.
        octave = np.maximum(np.frexp(levels)[1] - 6, 0)
        key = np.minimum(levels / np.exp2(octave) + 32 * octave, width - 1)
        classes = self._classes(step)
        counts = np.bincount(
            classes * width + key.astype(np.int64), minlength=NUM_CLASSES * width
        ).reshape(NUM_CLASSES, width)
        total = sum(ideal_bits(row.astype(np.float64)) for row in counts if row.any())
        return (total + float(octave.sum()) + float((levels > 0).sum())) * self.weight

    def all_classes(self, step: float) -> Ints:
        """Return the class of every coefficient (S, N * r), sampled or not."""
        energies = self._positions[:, None] + self._planes[None, :]
        return _class_of(energies, step)

    def _classes(self, step: float) -> Ints:
        return _class_of(self._energies, step)


def _class_of(energies: Ints, step: float) -> Ints:
    classes: Ints = (energies.astype(np.int64) + offset_of(step)) >> 1
    return np.clip(classes, 0, NUM_CLASSES - 1)


def offset_of(step: float) -> int:
    """Return what brings half units of energy to half classes at a step."""
    return 2 * CLASS_OF_STEP + 1 - round(4 * math.log2(step))


@dataclass(frozen=True, eq=False)
class Quantized:
    """Integers of all coefficients, and what they mean."""

    levels: Ints
    step: float
    shifts: Ints
    distortion: float


def quantize(plan: Plan, search: Search, step: float) -> Quantized:
    """Quantize all coefficients; the distortion is exact but for the centroids."""
    step = float(np.float32(max(step, plan.largest / _LARGEST_LEVEL)))
    shifts, saved = search.centroids(step)
    limit = plan.largest / step + 1
    small = torch.int8 if limit < 127 else torch.int16
    levels = torch.empty(
        plan.coefficients.shape,
        dtype=small if limit < 32767 else torch.int32,
        device=plan.coefficients.device,
    )
    error = 0.0
    whole, narrow = plan.coefficients.reshape(-1), levels.reshape(-1)
    for start in range(0, len(whole), _CHUNK):
        scaled = whole[start : start + _CHUNK] * (1 / step)
        rounded = torch.nn.functional.softshrink(scaled, SHRINK).round_()
        narrow[start : start + _CHUNK] = rounded
        error += energy(scaled.sub_(rounded))
    distortion = error * step**2 - saved + plan.left_out
    return Quantized(levels.cpu().numpy(), step, shifts, distortion)


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
    search = Search(plan)
    least = 0.02 * distortion
    wanted = max(distortion - plan.left_out, least)
    step = solve(search.distortion, wanted, plan.step)
    if is_nonnegative and x.numel() >= _FEWEST_TO_CLAMP:
        gain = _clamping_gain(plan, x, step)
        if gain < 1 - _CLOSE:
            wanted = max(distortion / gain - plan.left_out, least)
            step = solve(search.distortion, wanted, step)
    quantized = _refine(plan, search, wanted, step)
    if np.count_nonzero(quantized.levels) >= _FEW_LEVELS:
        return quantized

    def error(candidate: Quantized) -> float:
        return _decoded_error(plan, search, x, candidate, is_nonnegative)

    return _bracketed(plan, search, quantized, error, distortion)


def _bracketed(
    plan: Plan,
    search: Search,
    start: Quantized,
    error: Callable[[Quantized], float],
    distortion: float,
) -> Quantized:
    """Return about the coarsest quantization near the start that errs no more."""
    most = (1 + _CLOSE) * distortion
    fine, reached, coarse = start, error(start), math.inf
    while reached > most and plan.largest / fine.step < _LARGEST_LEVEL / 2:
        coarse = fine.step
        fine = quantize(plan, search, coarse * _FINER)
        reached = error(fine)
    for _ in range(_MOST_TRIALS):
        if reached > (1 - _CLOSE) * distortion or coarse / fine.step < 1.001:
            break
        step = (
            fine.step / _FINER if coarse == math.inf else math.sqrt(coarse * fine.step)
        )
        trial = quantize(plan, search, step)
        if (err := error(trial)) <= most:
            fine, reached = trial, err
        else:
            coarse = trial.step
    return fine


def _decoded_error(
    plan: Plan, search: Search, x: torch.Tensor, quantized: Quantized, clamp: bool
) -> float:
    """Return the squared error of the tensor as it will be decoded."""
    classes = search.all_classes(quantized.step)
    taken = quantized.shifts[classes].reshape(quantized.levels.shape) / CENTROID_UNIT
    values = (quantized.levels - np.sign(quantized.levels) * taken) * quantized.step
    back = plan.transform.inverse(torch.from_numpy(values).to(x))
    if clamp:
        back = back.clamp(min=0)
    return energy(back - x)


def _refine(plan: Plan, search: Search, wanted: float, step: float) -> Quantized:
    """Quantize, and again where the sample misled, until the distortion is met.

    Few coefficients give a distortion that jumps: then the best below it is taken.
    """
    quantized = quantize(plan, search, step)
    below: Quantized | None = None
    for _ in range(_MOST_PASSES):
        ratio = (quantized.distortion - plan.left_out) / wanted
        if abs(ratio - 1) < _CLOSE:
            return quantized
        if ratio < 1 and (below is None or quantized.distortion > below.distortion):
            below = quantized
        # The sample is off by this factor: aim that much beside.
        aim = search.distortion(quantized.step) / min(max(ratio, 0.25), 4.0)
        step = solve(search.distortion, aim, quantized.step) if aim > 0 else step / 2
        step = min(max(step, quantized.step / 4), quantized.step * 4)
        if below is not None and abs(step / quantized.step - 1) < 1e-3:
            return below
        quantized = quantize(plan, search, step)
    while below is None:
        if quantized.distortion - plan.left_out <= wanted:
            below = quantized
        else:
            quantized = quantize(plan, search, quantized.step / 2)
    return below


def _clamping_gain(plan: Plan, x: torch.Tensor, step: float) -> float:
    """Return the squared error after clamping at zero, relative to that before."""
    transform = plan.transform
    # Sample 0 is the mean where there is one: it has no original.
    first = int(transform.has_mean)
    num_picked = min(len(x) - first, max(6, _CLAMP_SIZE // (x.shape[1] * x.shape[2])))
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
    return min(1.0, max(after / before, 0.1)) if before > 0 else 1.0
