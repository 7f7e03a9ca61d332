"""One candidate of a plan on a sample of the tensor: its step, and about its bits.

::

    samples --channel basis, spatial basis--> coefficients (S, n * r)
               |                                     |
       energies of planes, frequencies       levels at a step that meets the distortion
               |                                     |
               +--- classes ---> histograms ---> entropy, and what the frame brings

Bits are those of an ideal coder of each class's histogram, so that exact zeros, signs
that are all alike and outliers are charged as the coder will charge them.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from flwr_slfac.codec.kernels import (
    LEAST_ENERGY,
    NUM_KEYS,
    half_units,
    kernels,
    plane_weights,
)
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import Basis
from flwr_slfac.codec.waterfill import klt
from flwr_slfac.codec.waterfill.digits import Ints
from flwr_slfac.codec.waterfill.energies import (
    NUM_CLASSES,
    class_offset,
    fit_planes,
    frequencies_per_group,
)
from flwr_slfac.codec.waterfill.level import TINY, Reals
from flwr_slfac.codec.waterfill.model import ideal_bits
from flwr_slfac.codec.waterfill.solver import (
    SHRINK,
    clamping_gain,
    dead_zone_error,
    solve,
)
from flwr_slfac.codec.waterfill.transform import (
    LARGEST_LEVEL,
    forward_planes,
    inverse_planes,
)

__all__ = ["RotatedSample", "Sample", "Trial"]

# Bits of a level below its octave, by key.
_BELOW_OCTAVE = np.maximum(np.abs(np.arange(NUM_KEYS) - NUM_KEYS // 2) - 1, 0)
# About the bits of a class's model, and of a list beside its entropy.
_MODEL_BITS, _LIST_BITS = 20.0, 24.0
# How near to its goal a step has to be, in relative terms, and what the rest changes:
# about three quarters of a bit for each octave of distortion and level that is not zero
# (our choice).
_CLOSE, _SLOPE = 0.1, 0.75


@dataclass(frozen=True, eq=False)
class Sample:
    """Some samples of a tensor, or windows of them.

    Parameters
    ----------
    shape : PlaneShape
        Of the whole tensor, with the sizes of windows.
    planes : Tensor (n, C, S)
        Those that were picked.
    mean : Tensor (2, C, S)
        The mean of all samples, and sample 0 less the mean.
    weight, window_weight : float
        How many samples each of them stands for, and windows each window.
    """

    shape: PlaneShape
    planes: torch.Tensor
    mean: torch.Tensor
    weight: float
    window_weight: float


class RotatedSample:
    """A sample after a channel transform, for all bases to try.

    Parameters
    ----------
    sample : Sample
        What is transformed.
    channels : ChannelTransform
        By which.
    has_mean : bool
        Whether the mean is apart, as one more sample.
    level : float
        About the water level.
    """

    def __init__(
        self,
        sample: Sample,
        channels: klt.ChannelTransform,
        has_mean: bool,
        level: float,
    ) -> None:
        self.sample, self.channels, self.has_mean = sample, channels, has_mean
        planes, num = sample.planes, sample.shape.num_samples
        weight = sample.weight
        if has_mean:
            # As by `reflect`: a share of sample 0 is in all others.
            mean, first = sample.mean
            planes = planes + (first / (math.sqrt(num) - 1) - mean)
            planes = torch.cat([planes, mean[None] * math.sqrt(num)])
            # The mean takes the place of one sample.
            weight *= (num - 1) / num
        self.weights = weight * sample.window_weight, sample.window_weight
        matrix = channels.matrix
        self.rows = planes if matrix is None else torch.matmul(matrix, planes)
        energies = self.rows.square().sum(2).cpu().double().numpy()
        self.energy, self.left_out = self._weighed(energies), 0.0
        if self.rows.shape[1] < planes.shape[1]:
            whole = planes.square().sum(2).cpu().double().numpy()
            self.left_out = max(0.0, self._weighed(whole) - self.energy)
            self.energy += self.left_out
        self._fit(energies, level)

    def _fit(self, energies: Reals, level: float) -> None:
        fit = fit_planes(energies, self.rows.shape[2], level)
        self.model = (fit.a[:, None] * fit.u).reshape(-1)
        units = fit.samples[:, None] + fit.channels
        self.columns = units.reshape(-1).astype(np.int16)
        self.list_bits = _list_bits(fit.samples) * self.sample.weight
        self.list_bits += _list_bits(np.diff(fit.channels))

    def _weighed(self, energies: Reals) -> float:
        num = len(self.sample.planes)
        of_samples, of_mean = self.weights
        return float(energies[:num].sum() * of_samples + energies[num:].sum() * of_mean)


class Trial:
    """A spatial basis tried on what a channel transform makes of a sample.

    Parameters
    ----------
    rotated : RotatedSample
        What to try it on.
    basis : Basis
        The candidate.
    step : float
        A guess.
    """

    def __init__(self, rotated: RotatedSample, basis: Basis, step: float) -> None:
        self._rotated, self.basis, self.step = rotated, basis, step
        self.channels, self.has_mean = rotated.channels, rotated.has_mean
        rows, shape = rotated.rows, rotated.sample.shape
        flat = rows.reshape(-1, shape.num_positions)
        self._coefficients = forward_planes(flat, basis, shape)
        num = len(rotated.sample.planes) * rows.shape[1]
        self._ends = [0, num, flat.shape[0]][: 3 if rotated.has_mean else 2]
        self._magnitudes = [
            self._coefficients[:, first:last].abs()
            for first, last in pairwise(self._ends)
        ]
        largest = max((float(part.max()) for part in self._magnitudes), default=0.0)
        self._least_step = max(largest / LARGEST_LEVEL, LEAST_ENERGY)
        self._num_levels = 0.0
        self._known: dict[float, float] = {}

    def meet(self, share: float) -> float:
        """Move the step to where a share of the energy is lost; return the bits."""
        goal = share * self._rotated.energy - self._rotated.left_out
        if goal <= 0:
            self.step = max(self.step, self._least_step)
            return self._bits(1.0)
        self.step = max(solve(self._lost, goal, self.step, _CLOSE), self._least_step)
        return self._bits(max(self._lost(self.step), TINY) / goal)

    def share_lost(self) -> float:
        """Return the share of the energy that is lost at the step."""
        lost = self._lost(self.step) + self._rotated.left_out
        return lost / max(self._rotated.energy, TINY)

    @property
    def keeps_zeros(self) -> bool:
        """Whether zeros decode to zeros, and nothing to less."""
        is_one_value = self._rotated.sample.shape.num_positions == 1
        is_plain = self.channels.matrix is None and not self.has_mean
        return is_plain and (is_one_value or self.basis.name == "identity")

    def bits_for(self, excess: float) -> float:
        """Return about the bits that not to lose `excess` times the goal would take."""
        return _SLOPE * self._num_levels * math.log2(excess)

    def clamping_gain(self) -> float:
        """Return what clamping at zero leaves of the squared error at the step."""
        sample, matrix = self._rotated.sample, self.channels.matrix
        part = self._coefficients[:, : self._ends[1]]
        levels = torch.nn.functional.softshrink(part * (1 / self.step), SHRINK).round_()
        error = (levels * self.step).sub_(part).contiguous()
        back = inverse_planes(error, self.basis, sample.shape)
        back = back.reshape(len(sample.planes), -1, sample.planes.shape[2])
        if matrix is not None:
            back = torch.matmul(matrix.t(), back)
        before = float(back.square().sum())
        clamped = (sample.planes + back).clamp_(min=0).sub_(sample.planes)
        after = float(clamped.square_().sum())
        return clamping_gain(before, after)

    def forget(self) -> None:
        """Let go of the coefficients: what follows is told without them."""
        self._coefficients = self._coefficients.new_empty(0)
        self._magnitudes = []

    def _lost(self, step: float) -> float:
        if step not in self._known:
            lost = [dead_zone_error(part, step) for part in self._magnitudes]
            weighed = zip(self._rotated.weights, lost, strict=False)
            self._known[step] = sum(weight * part for weight, part in weighed)
        return self._known[step]

    def _bits(self, excess: float) -> float:
        """Return about the bits of a frame that loses `excess` times its goal."""
        rows, side = self._frequencies()
        columns, matrix = self._rotated.columns, self._coefficients.cpu().numpy()
        offset, inverse = class_offset(self.step), float(np.float32(1 / self.step))
        counts = np.zeros((NUM_CLASSES, NUM_KEYS))
        parts = zip(pairwise(self._ends), self._rotated.weights, strict=False)
        for (first, last), weight in parts:
            some = np.zeros((NUM_CLASSES, NUM_KEYS), np.int64)
            kernels().count_levels(
                matrix, first, last, rows, columns, offset, inverse, some
            )
            counts += weight * some
        sums = counts.sum(1)
        # What is left of the entropy of all where classes are known.
        within = ideal_bits(counts.reshape(-1)) - ideal_bits(sums)
        self._num_levels = float(sums.sum() - counts[:, NUM_KEYS // 2].sum())
        below = float(counts.sum(0) @ _BELOW_OCTAVE)
        models = _MODEL_BITS * int(np.count_nonzero(sums))
        side += self._rotated.list_bits + self.channels.side_bits(self.step**2 / 12)
        return within + below + self.bits_for(excess) + models + side

    def _frequencies(self) -> tuple[Ints, float]:
        """Return half units of energy (S,), and the bits that they take."""
        model, coefficients = self._rotated.model, self._coefficients
        if len(coefficients) == 1:
            return np.zeros(1, np.int16), 0.0
        weights = plane_weights(model, self.step**2 / 12)
        column = torch.from_numpy(weights.astype(np.float32)).to(coefficients)
        above = (coefficients.square() @ column).cpu().double().numpy()
        rows = half_units(above / max(float(model @ weights), TINY))
        num_each = self._rotated.sample.shape.num_samples * self._rotated.rows.shape[1]
        stride = frequencies_per_group(num_each)
        side = _list_bits(np.diff(rows[::stride])) * self._rotated.sample.window_weight
        return rows.astype(np.int16), side


def _list_bits(values: Ints) -> float:
    """Return about the bits of a list of parameters."""
    counts = np.bincount(values - values.min()) if values.size else np.zeros(1)
    return _LIST_BITS + ideal_bits(counts.astype(np.float64))
