"""All that `Waterfill` settles before the step: channels, mean, basis, scales.

Candidates are tried on a few samples, at the step that would meet the target, by a
measure of bits that needs no model: 1.6 times the sum of log2(1 + 2 (c / step)**2). On
the captured tensors of the benchmark it is within a fifth of the coded size for most
and ranks bases within a percent of the best.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.transforms import Basis, order_1d, order_2d, parse_basis
from flwr_slfac.codec.waterfill import klt
from flwr_slfac.codec.waterfill.scales import Scales, fit_separable, half_units
from flwr_slfac.codec.waterfill.solve import dead_zone_error, solve
from flwr_slfac.codec.waterfill.transform import (
    Shape,
    Transform,
    forward_planes,
    plane_energies,
    reflect,
)

Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[Any]

_AUTO = ("identity", "dct", "sym4")
_BITS_PER_NAT = 1.6 / math.log(2)
_TRIAL_SIZE = 2**13
_TRIAL_SAMPLES = 2
_FEWEST_FOR_MEAN = 8
_SQUARES_SIZE = 2**18
_FEWEST_PER_FREQUENCY = 256
_FEWEST_PER_SAMPLE = 8
# Rows that hold less than this share of the distortion would be zero anyway.
_LEFT_OUT = 0.1


@dataclass(frozen=True)
class Target:
    """What the step has to meet, in units of the normalized tensor.

    Of distortion (a squared error), number of bits and step, one is given.
    """

    energy: float
    distortion: float | None = None
    num_bits: float | None = None
    step: float | None = None

    def spare(self, num_values: int) -> float:
        """Return the squared error that rows left out of a basis may cause."""
        if self.distortion is not None:
            return self.distortion / 2
        if self.step is not None:
            return self.step**2 / 12 * num_values / 2
        return self.energy

    def water_level(self, variances: Reals, num_each: int) -> float:
        """Return the level to expect, before the spatial basis has its say."""
        if self.step is not None:
            return self.step**2 / 12
        if self.distortion is not None:
            return klt.water_level(variances, self.distortion / num_each)
        wanted = (self.num_bits or 0.0) / num_each
        high = math.log2(max(float(variances.max()), 1e-300))
        low = high - 80.0
        for _ in range(30):
            middle = (low + high) / 2
            if klt.gaussian_bits(variances, 2.0**middle) > wanted:
                low = middle
            else:
                high = middle
        # The spatial basis makes these bits buy more: look deeper than this.
        return float(2.0**high / 4)


@dataclass(frozen=True, eq=False)
class Plan:
    """What was settled, and the coefficients that come of it.

    Parameters
    ----------
    transform : Transform
        Tensor to coefficients.
    channels : Channels
        Where the transform's matrix is from.
    rows : Tensor (N, r, S)
        After rotation and mean.
    coefficients : Tensor (S, N * r)
        All to be coded.
    largest : float
        Largest magnitude of a coefficient.
    scales : Scales
        Their energies.
    groups : ndarray (S,)
        Frequency group of each position.
    left_out : float
        Energy in rows that are not coded.
    step : float
        A first guess.
    """

    transform: Transform
    channels: klt.Channels
    rows: torch.Tensor
    coefficients: torch.Tensor
    largest: float
    scales: Scales
    groups: Ints
    left_out: float
    step: float

    @property
    def energies(self) -> tuple[Ints, Ints]:
        """Half units of energy of frequencies, and of planes in order."""
        planes = self.scales.planes()[self.transform.order]
        return self.scales.frequencies[self.groups], planes


@dataclass(frozen=True, eq=False)
class _Trial:
    """One candidate, and its coefficients of some samples."""

    channels: klt.Channels
    basis: Basis
    has_mean: bool
    parts: Sequence[torch.Tensor]

    def bits(self, step: float, share: float) -> float:
        """Return about the bits of all samples, of which these are a share."""
        nats = [
            float((p * (math.sqrt(2) / step)).square_().log1p_().sum())
            for p in self.parts
        ]
        bits = _BITS_PER_NAT * (nats[0] / share + sum(nats[1:]))
        return bits + self.channels.side_bits(step**2 / 12)


def make_plan(
    x: torch.Tensor,
    shape: Shape,
    target: Target,
    memory: Memory,
    *,
    basis: str,
    use_klt: bool,
) -> Plan:
    """Settle everything but the step for planes x (N, C, S)."""
    ways, level = _ways(x, target, memory, use_klt)
    best, step = _best_trial(x, shape, target, ways, _bases(basis, shape), level)
    level = step**2 / 12
    channels = best.channels.settled(level)
    rows = x if channels.matrix is None else torch.matmul(channels.matrix, x)
    if best.has_mean:
        rows = reflect(rows, out=None if channels.matrix is None else rows)
    energies = plane_energies(rows)
    left_out = 0.0
    if rows.shape[1] < x.shape[1]:
        left_out = max(0.0, target.energy - float(energies.sum()))
    a, u = fit_separable(energies / shape.num_positions, level)
    if rows.shape[1] * shape.num_positions < _FEWEST_PER_SAMPLE:
        a = np.ones_like(a)
    scales = Scales(half_units(a), half_units(u), np.zeros(1, np.int64))
    order = np.argsort(-scales.planes().astype(np.int16), kind="stable")
    transform = Transform(shape, best.basis, channels.matrix, best.has_mean, order)
    coefficients = transform.spread(rows)
    groups = frequency_groups(best.basis, shape, rows.shape[1])
    model = (a[:, None] * u[None, :]).reshape(-1)[order]
    frequencies = _frequency_energies(coefficients, groups, model, level)
    low, high = torch.aminmax(coefficients)
    return Plan(
        transform,
        channels,
        rows,
        coefficients,
        max(-float(low), float(high)),
        replace(scales, frequencies=half_units(frequencies)),
        groups,
        left_out,
        step,
    )


def frequency_groups(basis: Basis, shape: Shape, num_rows: int) -> Ints:
    """Return the group (S,) of each position: neighbours, coarse to fine.

    A group has enough coefficients for its energy to be worth sending.
    """
    num_positions = shape.num_positions
    if num_positions == 1:
        return np.zeros(1, np.int64)
    size = -(-_FEWEST_PER_FREQUENCY // (shape.num_samples * num_rows))
    if len(shape.sizes) == 2:
        order = order_2d(basis, *shape.sizes)
    else:
        order = order_1d(basis, num_positions)
    groups = np.empty(num_positions, np.int64)
    groups[order.numpy()] = np.arange(num_positions) // size
    return groups


def _ways(
    x: torch.Tensor, target: Target, memory: Memory, use_klt: bool
) -> tuple[list[klt.Channels], float]:
    """Return the ways to treat the channels, and the water level to expect."""
    num_each = x.shape[0] * x.shape[2]
    if not use_klt or not 1 < x.shape[1] <= klt.MAX_CHANNELS:
        variances = plane_energies(x).sum(0) / num_each
        return [klt.Channels(None, variances)], target.water_level(variances, num_each)
    moments = klt.gram(x)
    moments *= target.energy / num_each / max(float(np.trace(moments)), 1e-300)
    variances = klt.principal(moments)[0]
    level = target.water_level(variances, num_each)
    kept = _LEFT_OUT * float(np.minimum(variances, level).sum())
    return klt.options(moments, num_each, level, kept, memory, x.device), level


def _bases(setting: str, shape: Shape) -> list[Basis]:
    """Return the bases to try: those of the setting that can do the sizes."""
    if shape.num_positions == 1:
        return [parse_basis("identity")]
    if setting != "auto":
        basis = parse_basis(setting)
        basis.num_levels(*shape.sizes)
        return [basis]
    bases = [parse_basis(name) for name in _AUTO]
    return [b for b in bases if not (b.is_wavelet and any(n % 2 for n in shape.sizes))]


def _best_trial(
    x: torch.Tensor,
    shape: Shape,
    target: Target,
    ways: list[klt.Channels],
    bases: list[Basis],
    level: float,
) -> tuple[_Trial, float]:
    """Return the candidate that takes the least bits, and about its step.

    Bases are compared with the first way, then the ways with the best basis: which
    basis suits depends little on the channels.
    """
    num_samples, num_channels, num_positions = x.shape
    wanted = max(_TRIAL_SAMPLES, _TRIAL_SIZE // (num_channels * num_positions))
    picked = np.linspace(0, num_samples - 1, min(wanted, num_samples)).astype(int)
    share = len(picked) / num_samples
    some = x.index_select(0, torch.from_numpy(picked).to(x.device))
    if num_samples >= _FEWEST_FOR_MEAN:
        some = torch.cat([some, x.mean(0, keepdim=True)])

    def trials_of(channels: klt.Channels, basis: Basis) -> list[_Trial]:
        return _trials(some, shape, channels, basis, len(picked), num_samples)

    step = math.sqrt(12 * level)
    trials = [trial for basis in bases for trial in trials_of(ways[0], basis)]
    best = trials[0]
    for others in (ways[1:], []):
        if len(trials) > 1:
            best = min(trials, key=lambda trial: trial.bits(step, share))
        step = _step_of(best, target, step)
        for channels in others:
            trials += trials_of(channels, best.basis)
    return best, step


def _step_of(trial: _Trial, target: Target, start: float) -> float:
    """Return about the step at which a candidate meets a distortion, if one is due."""
    if target.distortion is None:
        return start
    part = trial.parts[0].reshape(-1)
    magnitudes = part[:: 1 + part.numel() // _TRIAL_SIZE].abs()
    goal = float(magnitudes.square().sum()) * target.distortion / target.energy
    if goal <= 0:
        return start
    return solve(partial(dead_zone_error, magnitudes), goal, start, 0.05)


def _trials(
    some: torch.Tensor,
    shape: Shape,
    channels: klt.Channels,
    basis: Basis,
    num_picked: int,
    num_samples: int,
) -> list[_Trial]:
    """Transform some samples, and after them the mean of all if it is there."""
    rows = some if channels.matrix is None else torch.matmul(channels.matrix, some)
    planes = rows.reshape(-1, shape.num_positions)
    c = forward_planes(planes, basis, shape)
    c = c.view(shape.num_positions, len(some), -1)
    plain = c[:, :num_picked]
    trials = [_Trial(channels, basis, False, [plain])]
    if len(some) > num_picked:
        mean = c[:, num_picked:]
        parts = [plain - mean, mean * math.sqrt(num_samples)]
        trials.append(_Trial(channels, basis, True, parts))
    return trials


def _frequency_energies(
    coefficients: torch.Tensor, groups: Ints, model: Reals, level: float
) -> Reals:
    """Return the energy of each frequency group, relative to the model of planes."""
    if len(groups) == 1:
        return np.ones(1)
    # In float32, weights must not overflow where the step is far below the values.
    weights = 1 / (model + max(level, 1e-12 * float(model.max()), 1e-30))
    column = torch.from_numpy(weights).to(coefficients)
    # A few frequencies at a time: their squares stay in the cache.
    height = max(1, _SQUARES_SIZE // coefficients.shape[1])
    starts = range(0, len(coefficients), height)
    squares = [coefficients[i : i + height].square() @ column for i in starts]
    above = torch.cat(squares).to("cpu", torch.float64).numpy()
    below = float((model * weights).sum())
    sizes = np.bincount(groups)
    result: Reals = np.bincount(groups, above) / (sizes * below)
    return result
