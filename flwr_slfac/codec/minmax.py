"""Linear quantization between a minimum and a maximum.

A grid is its two ends, on the wire in the tensor's own dtype, so both are exact. A
value becomes the number of its nearest grid point::

    tensor --grid_ends--> lo, hi --grid_codes--> codes 0 .. last --grid_points--> tensor
"""

from collections.abc import Sequence

import torch

from flwr_slfac.codec.base import work_dtype
from flwr_slfac.errors import DecodeError


def grid_ends(
    tensor: torch.Tensor, dims: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return minimum and maximum over `dims`, which stay as dimensions of size 1."""
    dims = list(dims)
    # Adding 0 makes -0 to 0: which of them is the minimum depends on the threads.
    return tensor.amin(dims, keepdim=True) + 0.0, tensor.amax(dims, keepdim=True) + 0.0


def grid_codes(
    tensor: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor, last: int
) -> torch.Tensor:
    """Return the number, 0 to `last`, of the grid point nearest to each value.

    The result is a float tensor of whole numbers; `lo` and `hi` broadcast.
    """
    dtype = work_dtype(tensor.dtype)
    x, lo, hi = tensor.to(dtype), lo.to(dtype), hi.to(dtype)
    overflows = torch.isinf(hi - lo)
    if overflows.any():
        half = torch.where(overflows, 0.5, 1.0).to(dtype)
        x, lo, hi = x * half, lo * half, hi * half
    span = hi - lo
    span = torch.where(span == 0, 1, span)
    # Dividing, not multiplying by 1 / span: a subnormal's reciprocal is infinite.
    return ((x - lo) / span).mul_(last).round_()


def grid_points(
    codes: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor, last: int
) -> torch.Tensor:
    """Return the grid point of each code, in the dtype of `lo`."""
    dtype = work_dtype(lo.dtype)
    # lo + part * (hi - lo) would overflow where hi - lo does.
    part = codes.to(dtype) / last
    points = (1 - part) * lo.to(dtype)
    return points.add_(part.mul_(hi.to(dtype))).to(lo.dtype)


def require_finite_ends(lo: torch.Tensor, hi: torch.Tensor) -> None:
    """Raise DecodeError unless a grid's ends are finite."""
    if not (torch.isfinite(lo).all() and torch.isfinite(hi).all()):
        raise DecodeError("a range on the wire is not finite")
