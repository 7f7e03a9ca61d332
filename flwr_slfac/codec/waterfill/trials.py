"""Which channel transform and which spatial basis, by trials on a few samples.

Candidates are tried at the step that would meet the target, by a measure of bits that
needs no model: 1.6 times the sum of log2(1 + 2 (c / step)**2). On the captured tensors
of the benchmark it is within a fifth of the coded size for most and ranks bases within
a percent of the best.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import Basis, parse_basis
from flwr_slfac.codec.waterfill import klt
from flwr_slfac.codec.waterfill.solver import dead_zone_error, solve
from flwr_slfac.codec.waterfill.target import Target
from flwr_slfac.codec.waterfill.transform import forward_planes

# What the benchmark's tensors suit: values without neighbourhood, smooth maps, edges.
_AUTO = ("identity", "dct", "sym4")
# From the sum of log(1 + 2 (c / step)**2), see the module.
_BITS_PER_NAT = 1.6 / math.log(2)
# Our choice: at least so many values and samples, enough to rank candidates by.
_TRIAL_SIZE = 2**13
_TRIAL_SAMPLES = 2
# Our choice: the mean of fewer samples holds as much noise as it saves.
_FEWEST_FOR_MEAN = 8
# A first guess of the step need not be nearer than this, in relative terms.
_CLOSE = 0.05


@dataclass(frozen=True, eq=False)
class Trial:
    """One candidate, and its coefficients of some samples.

    Parameters
    ----------
    channels, basis, has_mean
        The candidate.
    parts : sequence of Tensor
        Coefficients of the samples; with a mean, they less the mean, and the mean.
    """

    channels: klt.ChannelTransform
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


def bases_for(setting: str, shape: PlaneShape) -> list[Basis]:
    """Return the bases to try: those of the setting that can do the sizes."""
    if shape.num_positions == 1:
        return [parse_basis("identity")]
    if setting != "auto":
        basis = parse_basis(setting)
        basis.num_levels(*shape.sizes)
        return [basis]
    bases = [parse_basis(name) for name in _AUTO]
    return [b for b in bases if not (b.is_wavelet and any(n % 2 for n in shape.sizes))]


def best_trial(
    x: torch.Tensor,
    shape: PlaneShape,
    target: Target,
    options: list[klt.ChannelTransform],
    bases: list[Basis],
    level: float,
) -> tuple[Trial, float]:
    """Return the candidate that takes the least bits, and about its step.

    Bases are compared with the first channel transform, then the others with the best
    basis: which basis suits depends little on the channels.

    Parameters
    ----------
    x : Tensor (N, C, S)
        All planes.
    shape : PlaneShape
        Of the planes.
    target : Target
        What the step will have to meet.
    options, bases : list
        What to try.
    level : float
        The water level to expect.
    """
    num_samples, num_channels, num_positions = x.shape
    wanted = max(_TRIAL_SAMPLES, _TRIAL_SIZE // (num_channels * num_positions))
    picked = np.linspace(0, num_samples - 1, min(wanted, num_samples)).astype(int)
    share = len(picked) / num_samples
    samples = x.index_select(0, torch.from_numpy(picked).to(x.device))
    if num_samples >= _FEWEST_FOR_MEAN:
        samples = torch.cat([samples, x.mean(0, keepdim=True)])

    def trials_of(channels: klt.ChannelTransform, basis: Basis) -> list[Trial]:
        return _trials(samples, shape, channels, basis, len(picked), num_samples)

    step = math.sqrt(12 * level)
    trials = [trial for basis in bases for trial in trials_of(options[0], basis)]
    best = trials[0]
    for others in (options[1:], []):
        if len(trials) > 1:
            best = min(trials, key=lambda trial: trial.bits(step, share))
        step = _step_of(best, target, step)
        for channels in others:
            trials += trials_of(channels, best.basis)
    return best, step


def _step_of(trial: Trial, target: Target, start: float) -> float:
    """Return about the step at which a candidate meets a distortion, if one is due."""
    if target.distortion is None:
        return start
    part = trial.parts[0].reshape(-1)
    magnitudes = part[:: 1 + part.numel() // _TRIAL_SIZE].abs()
    goal = float(magnitudes.square().sum()) * target.distortion / target.energy
    if goal <= 0:
        return start
    return solve(partial(dead_zone_error, magnitudes), goal, start, _CLOSE)


def _trials(
    samples: torch.Tensor,
    shape: PlaneShape,
    channels: klt.ChannelTransform,
    basis: Basis,
    num_picked: int,
    num_samples: int,
) -> list[Trial]:
    """Transform some samples, and after them the mean of all if it is there."""
    rows = samples
    if channels.matrix is not None:
        rows = torch.matmul(channels.matrix, samples)
    planes = rows.reshape(-1, shape.num_positions)
    coefficients = forward_planes(planes, basis, shape)
    coefficients = coefficients.view(shape.num_positions, len(samples), -1)
    plain = coefficients[:, :num_picked]
    trials = [Trial(channels, basis, False, [plain])]
    if len(samples) > num_picked:
        mean = coefficients[:, num_picked:]
        parts = [plain - mean, mean * math.sqrt(num_samples)]
        trials.append(Trial(channels, basis, True, parts))
    return trials
