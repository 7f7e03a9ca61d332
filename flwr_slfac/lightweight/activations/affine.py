"""Activations in 8 bits: one affine grid a channel that keeps every sign.

::

    code = zero + round((x - base) / step)  in 0 .. 255
    x    = base + step * (code - zero)

Where a channel's values straddle or touch zero, base is 0: zero is a grid point, and
values that would round to it take the point beside it. A ReLU's backward asks which
outputs are above zero and is therefore exact. Else base is the minimum. Ours: uniform
grids as everywhere, placed so that signs survive.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

# The largest of 8 bits.
LAST_CODE = 255
# Elements that are decoded at a time. Our choice: 1 MiB in float32, little beside the
# activations of a batch, and enough that the kernels' own start does not count.
_CHUNK = 2**18


@dataclass(frozen=True)
class AffineTensor:
    """A floating tensor in 8 bits, as `to_affine` returns it.

    An element is off by at most 1.01 steps, and by 0.51 if it is at least half a step
    away from base; a step is ``(max - min) / 255`` of its channel. Channels are
    dimension 1 of tensors of four dimensions and more; in others each row of the last
    dimension (a token, an example) has a grid of its own.

    Parameters
    ----------
    codes : Tensor
        uint8, of the shape and strides of the original.
    zero, step, base : Tensor
        The grids, float32 (float64 for a float64 original); they broadcast against
        `codes`.
    dtype : torch.dtype
        That of the original.
    """

    codes: torch.Tensor
    zero: torch.Tensor
    step: torch.Tensor
    base: torch.Tensor
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes that are stored."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors that are stored, in the order of the fields."""
        return (self.codes, self.zero, self.step, self.base)

    def restore(self, part: tuple[slice, ...] = ()) -> torch.Tensor:
        """Return the values of all or of a part, in a new tensor.

        Parameters
        ----------
        part : tuple of slice (default: ())
            Of the leading dimensions, for example one of `chunks`.

        Returns
        -------
        Tensor
            Of the dtype of the original.
        """
        zero, step, base = (_part(g, part) for g in (self.zero, self.step, self.base))
        values = self.codes[part].to(step.dtype).sub_(zero).mul_(step)
        if base.any():
            values.add_(base)
        return values.to(self.dtype)


def _part(grids: torch.Tensor, part: tuple[slice, ...]) -> torch.Tensor:
    """Return the grids of a part; a dimension that is broadcast stays whole."""
    return grids[
        tuple(
            slice(None) if size == 1 else wanted
            for size, wanted in zip(grids.shape, part, strict=False)
        )
    ]


def to_affine(x: torch.Tensor) -> AffineTensor | None:
    """Return a dense floating tensor in 8 bits, or None if it has no finite grid.

    A tensor that holds NaN or infinity, or whose range overflows, has none.

    Parameters
    ----------
    x : Tensor
        Floating, not empty, of at least one dimension.

    Examples
    --------
    >>> x = torch.tensor([-0.5, 0.0, 0.001, 2.0])
    >>> to_affine(x).codes
    tensor([  0,  51,  52, 255], dtype=torch.uint8)
    """
    wide = x.dtype if x.dtype is torch.float64 else torch.float32
    # From four dimensions on these are maps, whose channels are dimension 1.
    dims = [d for d in range(x.ndim) if d != 1] if x.ndim >= 4 else [-1]
    lo = x.amin(dims, keepdim=True).to(wide)
    hi = x.amax(dims, keepdim=True).to(wide)
    if not bool(torch.isfinite(hi - lo).all()):
        return None
    zero, step, base = _grids(lo, hi)
    codes = torch.empty_like(x, dtype=torch.uint8)
    # In chunks, so that the temporaries stay small beside the tensor itself.
    for part in chunks(x):
        grids = (_part(g, part) for g in (zero, step, base))
        codes[part] = _codes(x[part].to(wide), *grids)
    return AffineTensor(codes, zero, step, base, x.dtype)


def chunks(x: torch.Tensor, dim: int = 0) -> Iterator[tuple[slice, ...]]:
    """Cut a tensor along a dimension into parts of at most 2**18 elements, if it can.

    Yields
    ------
    tuple of slice
        Selects a part; one index of the dimension at least.
    """
    size = x.shape[dim]
    rows = max(1, _CHUNK * size // x.numel())
    for start in range(0, size, rows):
        yield (*[slice(None)] * dim, slice(start, start + rows))


def _grids(
    lo: torch.Tensor, hi: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return zero, step and base for each pair of ends."""
    straddles = (lo <= 0) & (hi >= 0)
    base = torch.where(straddles, 0, lo)
    span = _nonzero(hi - lo)
    share = LAST_CODE * torch.where(straddles, -lo / span, 0)
    # Rounded so that the longer side keeps enough points: a step grows by 1 percent.
    zero = torch.where(share <= LAST_CODE / 2, share.ceil(), share.floor())
    below, above = (
        (base - lo) / _nonzero(zero),
        (hi - base) / _nonzero(LAST_CODE - zero),
    )
    return zero, torch.maximum(below, above), base


def _codes(
    x: torch.Tensor, zero: torch.Tensor, step: torch.Tensor, base: torch.Tensor
) -> torch.Tensor:
    offset = x - base
    codes = (offset / _nonzero(step)).round_()
    # What rounds to zero but is not zero takes the point beside it. In floats, because
    # a comparison and a masked sum take three times as long.
    is_zero = codes.abs().neg_().add_(1).clamp_(min=0)
    codes.add_(offset.sign_().mul_(is_zero))
    return codes.add_(zero).clamp_(0, LAST_CODE)


def _nonzero(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x == 0, 1, x)
