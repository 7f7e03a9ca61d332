"""What clamping at zero leaves of the error of a tensor without negative values.

Where a value is near zero, an error that takes it below is undone by the decoder, so
the step may be larger. How much is measured on a few samples.
"""

import math

import numpy as np
import torch

from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.codec.waterfill.solver import SHRINK, clamping_gain
from flwr_slfac.codec.waterfill.transform import forward_planes, inverse_planes

__all__ = ["FEWEST_TO_CLAMP", "gain_near", "share_near_zero"]

# Values, and samples, on which clamping's gain is measured; tensors with fewer values
# than the last are decoded instead (our choice).
_CLAMP_SIZE, _CLAMP_SAMPLES = 2**16, 6
_AT_ONCE = 2**15
FEWEST_TO_CLAMP = 2**13
# Our choice: so many times fewer tell whether the gain is about that of the step
# before, and then move it by their share.
_FEWER, _SAME_GAIN = 3, 0.03
# Values that tell how many are near zero, how far that may be off, and after how many
# steps of a stream clamping is measured all the same (our choice).
_SHARE_SIZE, _SAME_SHARE, _MEASURED_EVERY = 2**13, 0.02, 8


def share_near_zero(x: torch.Tensor, distortion: float) -> float:
    """Return the share of values that an error may take below zero, of a sample."""
    flat = x.reshape(-1) if x.is_contiguous() else x[:, :, 0].reshape(-1)
    some = flat[:: 1 + x.numel() // _SHARE_SIZE]
    rms = math.sqrt(distortion / x.numel())
    return int(np.count_nonzero(some.cpu().numpy() <= rms)) / some.numel()


def gain_near(plan: Plan, x: torch.Tensor, step: float, near_zero: float) -> float:
    """Return what clamping leaves of the squared error at about a step.

    As it was a few steps before, if as many values are near zero; of few values, if
    they agree with it.

    Parameters
    ----------
    plan : Plan
        What will be quantized.
    x : Tensor (N, C, S)
        What the plan was made for.
    step : float
        About the step.
    near_zero : float
        From `share_near_zero`.
    """
    if plan.gain is None:
        return _clamping_gain(plan, x, step, 1)
    is_like = abs(near_zero - plan.near_zero) < _SAME_SHARE
    if is_like and plan.age % _MEASURED_EVERY:
        return plan.gain
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
    # So many at a time stay in a cache, and take little memory.
    num = max(1, _AT_ONCE // (x.shape[1] * x.shape[2]))
    sums = [_errors(plan, x, step, part) for part in torch.split(index, num)]
    before, after = map(sum, zip(*sums, strict=True))
    return clamping_gain(before, after)


def _errors(
    plan: Plan, x: torch.Tensor, step: float, index: torch.Tensor
) -> tuple[float, float]:
    """Return squared errors of samples before and after clamping, in steps."""
    transform = plan.transform
    some = plan.rows.index_select(0, index)
    error = _quantization_error(plan, some, step)
    back = inverse_planes(error, transform.basis, transform.shape)
    back = back.reshape(some.shape)
    original = x.index_select(0, index)
    if transform.matrix is not None:
        back = torch.matmul(transform.matrix.t(), back)
        if transform.num_rows < x.shape[1]:
            inner = torch.matmul(transform.matrix, original)
            left_out = torch.matmul(transform.matrix.t(), inner).sub_(original)
            back = back.add_(left_out, alpha=1 / step)
    before = _dot(back, back)
    clamped = back.mul_(step).add_(original).clamp_(min=0).sub_(original)
    return before, _dot(clamped, clamped) / step**2


def _quantization_error(plan: Plan, some: torch.Tensor, step: float) -> torch.Tensor:
    """Return the errors of the coefficients of some rows, in steps."""
    planes = some.reshape(-1, some.shape[2])
    transform = plan.transform
    scaled = forward_planes(planes, transform.basis, transform.shape).mul_(1 / step)
    levels = torch.nn.functional.softshrink(scaled, SHRINK).round_()
    error = torch.sub(levels, scaled, out=scaled)
    signs = levels.sign_()
    # The centroid of all classes together is near enough.
    inside = max(int(torch.count_nonzero(signs)), 1)
    return error.sub_(signs, alpha=_dot(error, signs) / inside)


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.dot(one.reshape(-1), other.reshape(-1)))
