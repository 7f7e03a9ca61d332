"""Energies that predictions are chosen by, in one order on any number of threads."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import work_dtype
from flwr_slfac.codec.layout import channel_dim
from flwr_slfac.codec.temporal.header import Modes

__all__ = ["LAST_GAIN", "Reals", "Sums", "energy", "scaled"]

Floats = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]

# A gain is a byte, of a whole.
LAST_GAIN = 255
# What a gain saves is estimated, so it has to be clearly more than a byte.
_GAIN_BITS = 16.0
# Its squares have a sum in float32, and values over this scale are in its range.
_LARGEST, _SMALLEST = 1e15, 1e-37


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over positions of what is compared, by sample and channel (n, C).

    Parameters
    ----------
    whole, before : ndarray
        Squares of the batch, and of what is remembered.
    both : ndarray
        Products of the two.
    change, along : ndarray
        Squares of their difference, and its products with what is remembered.
    size : int
        Positions of a channel.
    """

    whole: Reals
    before: Reals
    both: Reals
    change: Reals
    along: Reals
    size: int

    @classmethod
    def of(cls, x: Floats, before: Floats) -> "Sums":
        """Return the sums of two arrays (n, C, S)."""
        change = x - before
        return cls(
            whole=_products(x, x),
            before=_products(before, before),
            both=_products(x, before),
            change=_products(change, change),
            along=_products(change, before),
            size=x.shape[2],
        )

    def __getitem__(self, chosen: npt.NDArray[np.bool_]) -> "Sums":
        return Sums(
            whole=self.whole[chosen],
            before=self.before[chosen],
            both=self.both[chosen],
            change=self.change[chosen],
            along=self.along[chosen],
            size=self.size,
        )

    def left(self, gains: Modes | None = None) -> Reals:
        """Return the squares of what predictions leave over."""
        if gains is None:
            return self.change
        gain = gains / LAST_GAIN
        less = 1 - gain
        # The same from either end: that of the smaller terms loses fewer digits.
        near, far = less**2 * self.before, gain**2 * self.before
        is_near = self.change + near <= self.whole + far
        from_change = self.change + 2 * less * self.along + near
        from_whole = self.whole - 2 * gain * self.both + far
        return np.maximum(np.where(is_near, from_change, from_whole), 0.0)

    def gains(self, noise: float) -> Modes | None:
        """Return the least-squares gain of each channel; None where all may be 1.

        Parameters
        ----------
        noise : float
            Squared error of a value, below which less is left over to no avail.
        """
        along, before = self.along.sum(0), self.before.sum(0)
        fitted = 1 + np.divide(
            along, before, out=np.zeros_like(along), where=before > 0
        )
        gains = np.rint(np.clip(fitted, 0, 1) * LAST_GAIN).astype(np.uint8)
        if (gains == LAST_GAIN).all():
            return None
        num_values = self.size * len(self.whole)
        floor = max(noise * num_values, np.finfo(np.float64).tiny)
        with_gains, without = (
            np.log2(self.left(each).sum(0) + floor) for each in (gains, None)
        )
        saved_bits = num_values / 2 * float((without - with_gains).sum())
        return gains if saved_bits > _GAIN_BITS * len(gains) else None


def energy(error: torch.Tensor, scale: float) -> float:
    """Return the sum of squares of a tensor (n, ...) over a scale."""
    planes = scaled(error, scale)
    return float(_products(planes, planes).sum())


def scaled(x: torch.Tensor, scale: float) -> Floats:
    """Return (n, C, S) over a scale, as far as its squares have sums."""
    dim = channel_dim(x.ndim)
    rows = x.unsqueeze(1) if dim is None else x.movedim(dim, 1)
    planes = rows.reshape(len(x), rows.shape[1], -1)
    # A scale may be too small, and a value too large, for float32.
    planes = planes.to(work_dtype(x.dtype)) if scale >= _SMALLEST else planes.double()
    found: Floats = (planes / scale).clamp_(-_LARGEST, _LARGEST).float().numpy()
    return found


def _products(a: Floats, b: Floats) -> Reals:
    """Return sums over positions (n, C), by NumPy: in one order on any threads."""
    sums: Reals = np.einsum("ncs,ncs->nc", a, b).astype(np.float64)
    return sums
