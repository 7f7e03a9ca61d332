"""What the dimensions of a tensor are: samples, channels, positions.

All of `codec` and dropout at the cut ask here. One convention serves all: dimension 0
is the sample, dimension 1 of ``(N, C, H, W)`` and ``(N, D)`` the channel, the last of
``(N, T, D)``; a tensor of one dimension or none has no channels. The questions differ:

==================  =========  ==================  =====================  ============
shape               channel    spectra run along   plane of `PlaneShape`  samples
                    (uniform,  (slfac)             (waterfill)            (topk)
                    splitfc,
                    dropout)
==================  =========  ==================  =====================  ============
``()``              none       nothing             one value              1
``(D,)``            none       D                   D                      1
``(N, D)``          D          D                   one value              N
``(N, T, D)``       D          T, or (T, D)        T                      N
``(N, 1, D)``       D          D                   one value              N
``(N, C, H, W)``    C          (H, W)              (H, W)                 N
``(N, C, 1, 1)``    C          C                   one value              N
``(N, C, U, H, W)`` C          (H, W)              (U * H, W)             N
==================  =========  ==================  =====================  ============

Where `spectrum_dims` and `PlaneShape` differ, so do the codecs. SL-FAC codes each row
for itself, so what has no map (vectors, maps of one value) takes its spectrum along the
channels, and a further dimension U is more rows. `Waterfill` decorrelates channels by
its own basis, so a plane never runs along them, and U lengthens the plane.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = [
    "PlaneShape",
    "channel_dim",
    "from_rows",
    "num_samples",
    "spectrum_dims",
    "to_rows",
    "within_channel_dims",
    "within_column_dims",
]


def channel_dim(num_dims: int) -> int | None:
    """Return the dimension of channels or features, None for one channel in all.

    Parameters
    ----------
    num_dims : int
        Number of dimensions, 0 or more.
    """
    if num_dims < 2:
        return None
    return 2 if num_dims == 3 else 1


def num_samples(shape: Sequence[int]) -> int:
    """Return the number of samples; a tensor of one dimension or none is one."""
    return shape[0] if len(shape) > 1 else 1


def within_channel_dims(num_dims: int) -> tuple[int, ...]:
    """Return the dimensions that the values of one channel run along."""
    channel = channel_dim(num_dims)
    return tuple(dim for dim in range(num_dims) if dim != channel)


def within_column_dims(num_dims: int) -> tuple[int, ...]:
    """Return the dimensions that the values of one column run along.

    A column is one position of the sample over the batch; a tensor without channels is
    one column.
    """
    return within_channel_dims(num_dims) if num_dims < 2 else (0,)


def spectrum_dims(shape: Sequence[int], over_features: bool) -> tuple[int, ...]:
    """Return the dimensions that SL-FAC's spectra run along, none for a scalar.

    Parameters
    ----------
    shape : sequence of int
        Of the tensor.
    over_features : bool
        Whether the spectra of (N, T, D) are those of (T, D) planes, not along T alone.
    """
    ndim = len(shape)
    if ndim > 3:
        is_map = shape[-2] * shape[-1] != 1
        return (ndim - 2, ndim - 1) if is_map else (ndim - 3,)
    if ndim == 3:
        if shape[1] == 1:
            return (2,)
        return (1, 2) if over_features else (1,)
    return (ndim - 1,) if ndim else ()


def to_rows(tensor: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Return a tensor that is not empty as (R, ...): `dims` last, all others as rows.

    Parameters
    ----------
    tensor : Tensor of any shape
        A scalar, with no `dims`, is one row of one value.
    dims : sequence of int
        Distinct, ascending, not negative.
    """
    if not dims:
        return tensor.reshape(1, 1)
    sizes = [tensor.shape[d] for d in dims]
    last = tuple(range(-len(dims), 0))
    return tensor.movedim(tuple(dims), last).reshape(-1, *sizes)


def from_rows(
    rows: torch.Tensor, dims: Sequence[int], shape: Sequence[int]
) -> torch.Tensor:
    """Undo `to_rows`; the result is contiguous.

    Parameters
    ----------
    rows : Tensor (R, ...)
        What follows R may be flat.
    dims : sequence of int
        As given to `to_rows`.
    shape : sequence of int
        Of the tensor.
    """
    if not dims:
        return rows.reshape(tuple(shape))
    rest = [s for d, s in enumerate(shape) if d not in dims]
    sizes = [shape[d] for d in dims]
    last = tuple(range(-len(dims), 0))
    return rows.reshape(*rest, *sizes).movedim(last, tuple(dims)).contiguous()


@dataclass(frozen=True)
class PlaneShape:
    """A tensor as planes (N, C, S): samples, channels, positions.

    Parameters
    ----------
    num_samples, num_channels : int
        N and C.
    sizes : tuple of int
        Of a plane, none to two of them; S is their product.
    channels_last : bool
        Whether the tensor is (N, S, C).
    """

    num_samples: int
    num_channels: int
    sizes: tuple[int, ...]
    channels_last: bool = False

    @property
    def num_positions(self) -> int:
        """S, the positions of a plane."""
        return math.prod(self.sizes)

    @classmethod
    def of(cls, shape: Sequence[int]) -> "PlaneShape":
        """Read the dimensions of a tensor; see the module for the table."""
        channel = channel_dim(len(shape))
        if channel is None:
            return cls(1, 1, tuple(shape))
        if len(shape) == 3:
            return cls(shape[0], shape[channel], (shape[1],), channels_last=True)
        sizes = (math.prod(shape[2:-1]), shape[-1]) if len(shape) > 3 else ()
        return cls(shape[0], shape[channel], sizes)

    def to_planes(self, tensor: torch.Tensor) -> torch.Tensor:
        """View a contiguous tensor as (N, C, S)."""
        if self.channels_last:
            return tensor.transpose(1, 2)
        return tensor.reshape(self.num_samples, self.num_channels, self.num_positions)

    def from_planes(self, planes: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Undo `to_planes` to a contiguous tensor of the shape."""
        if self.channels_last:
            planes = planes.transpose(1, 2)
        return planes.reshape(tuple(shape)).contiguous()
