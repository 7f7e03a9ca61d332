"""Whether a tensor holds NaN or infinity."""

import math

import torch

__all__ = ["is_finite"]


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite; one cheap sum decides unless it overflows.

    Parameters
    ----------
    tensor : Tensor of any shape
        Of any dtype, on any device.
    """
    if not tensor.is_floating_point():
        return True
    if math.isfinite(float(tensor.sum(dtype=torch.float32))):
        return True
    return bool(torch.isfinite(tensor).all())
