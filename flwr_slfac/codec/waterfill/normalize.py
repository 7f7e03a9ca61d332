"""A tensor to float32 planes of safe magnitude, and back to its dtype and shape."""

import math
from dataclasses import dataclass

import torch

from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError

# Squares of such magnitudes, summed over any tensor, stay within float32's range.
_SAFE_RANGE = (1e-12, 1e12)


@dataclass(frozen=True)
class Normalization:
    """What was taken out of a tensor.

    Parameters
    ----------
    exponent : int
        The tensor was divided by two to this.
    is_nonnegative : bool
        Whether it has no negative value: the decoder clamps at zero.
    """

    exponent: int
    is_nonnegative: bool


def normalize(planes: torch.Tensor) -> tuple[torch.Tensor, Normalization]:
    """Return float32 values (N, C, S) of safe magnitude, and what was taken out."""
    low, high = map(float, torch.aminmax(planes))
    is_nonnegative = low >= 0
    largest = max(-low, high)
    if largest == 0.0 or _SAFE_RANGE[0] < largest < _SAFE_RANGE[1]:
        return planes.to(torch.float32), Normalization(0, is_nonnegative)
    exponent = math.frexp(largest)[1]
    # By halves: two to the whole exponent may be out of float64's range.
    half = exponent // 2
    wide = planes.to(torch.float64) * 2.0**-half * 2.0 ** -(exponent - half)
    return wide.to(torch.float32), Normalization(exponent, is_nonnegative)


def denormalize(
    planes: torch.Tensor, exponent: int, shape: PlaneShape, frame: Frame
) -> torch.Tensor:
    """Bring planes to the scale, dtype and shape of the frame.

    Raises
    ------
    DecodeError
        If a value is not finite.
    """
    if exponent or frame.dtype in (torch.float16, torch.float64):
        largest = torch.finfo(frame.dtype).max
        wide = planes.to(torch.float64)
        half = exponent // 2
        wide = wide * 2.0**half * 2.0 ** (exponent - half)
        planes = wide.clamp_(-largest, largest)
    result = shape.from_planes(planes.to(frame.dtype), frame.shape)
    if not bool(torch.isfinite(result.sum(dtype=torch.float32))) and not bool(
        torch.isfinite(result).all()
    ):
        raise DecodeError("the frame decodes to values that are not finite")
    return result
