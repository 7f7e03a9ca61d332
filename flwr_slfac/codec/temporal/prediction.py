"""Which samples are predicted, and from how much of what is remembered of them.

The newest rows of a batch's samples predict it, each channel times a gain in [0, 1]:
the least-squares fit over the batch. A gain above 1 would let the difference between
two machines' arithmetic grow from epoch to epoch. A sample of which more is left over
than it has itself is sent whole. One of which no more is left over than the error that
it is to have is not sent at all, which leaves more of the error to the others.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import work_dtype
from flwr_slfac.codec.layout import channel_dim
from flwr_slfac.codec.temporal.header import PLAIN, PREDICTED, SAME, Modes
from flwr_slfac.codec.temporal.sums import LAST_GAIN, Reals, Sums, scaled

__all__ = ["Choice", "Prediction", "num_channels_of", "predict", "repeat"]

# A batch may have that much more than the squared error which is wanted if none of it
# is then sent: codecs hit what they aim at within some percent.
_SLACK = 1.1


@dataclass(frozen=True, eq=False)
class Prediction:
    """Rows that predict a batch.

    Parameters
    ----------
    rows : Tensor (n, ...)
        Of the remembered rows, times the gains; zero where a sample is sent whole.
    modes : ndarray of uint8 (n,)
        How each sample is coded.
    gains : ndarray of uint8 (C,), optional
        See `header.Samples`.
    clamps : bool
        Whether negative values are set to 0.
    """

    rows: torch.Tensor
    modes: Modes
    gains: Modes | None
    clamps: bool

    @classmethod
    def of(
        cls,
        remembered: torch.Tensor,
        modes: Modes,
        gains: Modes | None,
        dtype: torch.dtype,
        *,
        clamps: bool,
    ) -> "Prediction":
        """Return the rows that follow from what is remembered, the same on any side.

        Parameters
        ----------
        remembered : Tensor of float32 (n, ...)
            The samples' newest rows.
        modes, gains, clamps
            See the class.
        dtype : torch.dtype
            Of the tensor to predict.
        """
        rows = remembered.to(work_dtype(dtype))
        if gains is not None:
            factors = torch.from_numpy(gains.astype(np.float64) / LAST_GAIN)
            rows = rows * _along_channels(factors.to(rows.dtype), rows.ndim)
        is_plain = torch.from_numpy(modes == PLAIN)
        if is_plain.any():
            rows = rows.clone()
            rows[is_plain] = 0
        return cls(rows, modes, gains, clamps)

    @property
    def is_sent(self) -> torch.Tensor:
        """Of which samples anything is sent."""
        return torch.from_numpy(self.modes != SAME)

    def left_over(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is to be coded of a batch, in its dtype."""
        limit = torch.finfo(x.dtype).max
        left = x.to(self.rows.dtype) - self.rows
        return left[self.is_sent].clamp_(-limit, limit).to(x.dtype)

    def completed(self, decoded: torch.Tensor) -> torch.Tensor:
        """Return the batch that comes of what was decoded of it."""
        out = self.rows.clone()
        out[self.is_sent] += decoded.to(out.dtype)
        limit = torch.finfo(decoded.dtype).max
        return out.clamp_(0 if self.clamps else -limit, limit).to(decoded.dtype)


@dataclass(frozen=True, eq=False)
class Choice:
    """How a batch is predicted, and what that leaves over.

    Parameters
    ----------
    prediction : Prediction
        The rows.
    left : float
        Energy of what is left over and sent, as a share of the batch's.
    aim : float, optional
        Relative error of what is sent that makes the batch's the one that is wanted,
        but for clamping; None if none is wanted, or nothing is left.
    """

    prediction: Prediction
    left: float
    aim: float | None


def predict(
    x: torch.Tensor,
    remembered: torch.Tensor,
    known: npt.NDArray[np.bool_],
    error: float | None,
) -> Choice | None:
    """Choose how each sample of a batch is coded; None to send all of them whole.

    Parameters
    ----------
    x : Tensor (n, ...)
        The batch, on the CPU.
    remembered : Tensor of float32 (n, ...)
        The samples' newest rows.
    known : ndarray of bool (n,)
        Which samples have one.
    error : float, optional
        Relative error of the whole batch that is wanted; None where only what is
        predicted exactly needs not to be sent.
    """
    if not known.any():
        return None
    sums = _sums(x, remembered)
    whole = sums.whole.sum(1)
    total = float(whole.sum())
    allowed = 0.0 if error is None else error**2 * total
    alike = known & (sums.left().sum(1) <= whole)
    gains = sums[alike if alike.any() else known].gains(allowed / x.numel())
    left = sums.left(gains).sum(1)
    modes = np.where(known & (left <= whole), PREDICTED, PLAIN)
    left = np.where(modes == PLAIN, whole, left)
    level = _level(left, allowed)
    is_same = (modes == PREDICTED) & (left <= level)
    modes = np.where(is_same, SAME, modes).astype(np.uint8)
    if (modes == PLAIN).all():
        return None
    clamps = bool(x.min() >= 0)
    prediction = Prediction.of(remembered, modes, gains, x.dtype, clamps=clamps)
    sent, off = float(left[~is_same].sum()), float(left[is_same].sum())
    aim = None
    if error is not None and sent > 0:
        aim = 1.0 if math.isinf(level) else math.sqrt((allowed - off) / sent)
    return Choice(prediction, sent / total if total else 0.0, aim)


def repeat(
    x: torch.Tensor,
    remembered: torch.Tensor,
    known: npt.NDArray[np.bool_],
    threshold: float,
) -> Choice | None:
    """Choose which samples are not sent as they are like before; None if none is.

    Parameters
    ----------
    x, remembered, known
        As of `predict`.
    threshold : float
        Least cosine similarity of such a sample with its newest row, in (0, 1].
    """
    sums = _sums(x, remembered)
    whole, before, both = (each.sum(1) for each in (sums.whole, sums.before, sums.both))
    is_like = (both > 0) & (both >= threshold * np.sqrt(whole * before))
    is_same = known & (is_like | ((whole == 0) & (before == 0)))
    if not is_same.any():
        return None
    modes = np.where(is_same, SAME, PLAIN).astype(np.uint8)
    prediction = Prediction.of(remembered, modes, None, x.dtype, clamps=False)
    sent, total = float(whole[~is_same].sum()), float(whole.sum())
    return Choice(prediction, sent / total if total else 0.0, None)


def _sums(x: torch.Tensor, remembered: torch.Tensor) -> Sums:
    # Relative to the largest value, so that no square overflows.
    scale = float(x.abs().max()) or float(remembered.abs().max()) or 1.0
    return Sums.of(scaled(x, scale), scaled(remembered, scale))


def _level(left: Reals, allowed: float) -> float:
    """Return the error of each sample that is sent, by reverse water-filling.

    Samples of which no more than that is left over are not sent; infinity if no sample
    needs to be.

    Parameters
    ----------
    left : ndarray (n,)
        Energy left over, by sample.
    allowed : float
        Energy of the error that the batch may have.
    """
    rising = np.sort(left)
    if float(rising.sum()) <= _SLACK * allowed:
        return math.inf
    before = np.concatenate([[0.0], np.cumsum(rising)[:-1]])
    levels = (allowed - before) / np.arange(len(left), 0, -1)
    # Up to the level they are not sent, so it rises; from there on it falls.
    return float(levels.max())


def num_channels_of(shape: tuple[int, ...]) -> int:
    """Return how many channels have a gain."""
    dim = channel_dim(len(shape))
    return 1 if dim is None else shape[dim]


def _along_channels(factors: torch.Tensor, num_dims: int) -> torch.Tensor:
    dim = channel_dim(num_dims)
    shape = [1] * num_dims
    if dim is not None:
        shape[dim] = -1
    return factors.reshape(shape)
