"""All that `Waterfill` settles before the step: channels, mean, basis, energies.

::

    x (N, C, S) --Gram--> channel bases worth a trial --trials--> channels, mean, basis
    all rows --transform--> coefficients --fit--> energies of samples, channels, ...
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.kernels import Energies, PlaneFit, half_units
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import SPECTRUM, Basis
from flwr_slfac.codec.waterfill import klt
from flwr_slfac.codec.waterfill.digits import Ints
from flwr_slfac.codec.waterfill.energies import (
    EnergyModel,
    class_offset,
    fit_planes,
    frequency_groups,
    group_sizes,
)
from flwr_slfac.codec.waterfill.level import TINY, Reals
from flwr_slfac.codec.waterfill.reuse import (
    Choice,
    Kept,
    allowed_rms,
    kept_choice,
)
from flwr_slfac.codec.waterfill.target import Decider, Target
from flwr_slfac.codec.waterfill.transform import (
    LARGEST_LEVEL,
    Told,
    Transform,
    plane_energies,
    reflect,
)
from flwr_slfac.codec.waterfill.trials import best_trial

# Rows that hold less than this share of the distortion would be zero anyway.
_LEFT_OUT = 0.1


@dataclass(frozen=True, eq=False)
class Plan:
    """What was settled, and the coefficients that come of it.

    Parameters
    ----------
    transform : Transform
        Tensor to coefficients.
    channels : ChannelTransform
        Where the transform's matrix is from.
    rows : Tensor (N, r, S)
        After rotation and mean.
    coefficients : Tensor (S, N * r)
        All to be coded.
    largest : float
        Largest magnitude of a coefficient.
    energy_model : EnergyModel
        Their energies.
    groups : ndarray (S,)
        Frequency group of each position.
    left_out : float
        Energy in rows that are not coded.
    step : float
        A first guess.
    gain : float, optional
        What clamping at zero leaves of the squared error, as it was the step before.
    near_zero : float
        Share of values that were near zero then.
    age : int
        Steps since trials.
    bits_a_level : float
        Of the frame before, for each level that is not zero; 0 if it is not known.
    is_kept : bool
        Whether nothing was tried: the choice is that of the step before.
    expected_bits : float
        Of the frame by what was tried, 0 if nothing was.
    """

    transform: Transform
    channels: klt.ChannelTransform
    rows: torch.Tensor
    coefficients: torch.Tensor
    largest: float
    energy_model: EnergyModel
    groups: Ints
    left_out: float
    step: float
    gain: float | None
    near_zero: float
    age: int
    bits_a_level: float
    is_kept: bool
    expected_bits: float = 0.0

    @property
    def energies(self) -> tuple[Ints, Ints]:
        """Half units of energy of frequencies, and of planes in order."""
        planes = self.energy_model.of_planes()[self.transform.order]
        return self.energy_model.frequencies[self.groups], planes

    @property
    def least_step(self) -> float:
        """The finest step, as float32 holds it; a finer one is taken for this."""
        return float(np.float32(self.largest / LARGEST_LEVEL))

    def energies_at(self, step: float) -> Energies:
        """Return what tells the class of each coefficient at a step."""
        model = self.energy_model
        offset = class_offset(step)
        return Energies(
            model.samples, model.channels, model.frequencies, self.groups, offset
        )


def make_plan(
    x: torch.Tensor,
    shape: PlaneShape,
    target: Target,
    memory: Memory,
    kept: Kept | None,
    bases: tuple[Basis, ...],
    *,
    use_klt: bool,
) -> Plan:
    """Settle everything but the step.

    Parameters
    ----------
    x : Tensor (N, C, S)
        Planes, float32, not all zero.
    shape : PlaneShape
        Of the planes.
    target : Target
        What the step will have to meet.
    memory : dict of str to Tensor
        Of the stream: it may hold a channel basis to reuse. Left as it is.
    kept : Kept, optional
        What was chosen the step before.
    bases : tuple of Basis
        Spatial bases to choose from, see `bases_for`.
    use_klt : bool
        Whether channels may have a basis.
    """
    choice = kept_choice(x, target, memory, kept, bases, use_klt)
    if choice is not None:
        if choice.needs_rows:
            options, _ = _channel_options(x, target, memory, kept, bases, use_klt)
            fresh = options[0].quantized(choice.step**2 / 12)
            choice = replace(choice, channels=fresh)
        plan = _plan_of(x, shape, target, choice, is_kept=True)
        if plan.left_out <= target.max_left_out(x.numel()):
            return plan
    options, level = _channel_options(x, target, memory, kept, bases, use_klt)
    bits, best = best_trial(x, shape, target, options, bases, level)
    channels = best.channels.quantized(best.step**2 / 12)
    choice = Choice(channels, best.basis, best.has_mean, best.step)
    plan = _plan_of(x, shape, target, choice, is_kept=False)
    return replace(plan, expected_bits=bits)


def _plan_of(
    x: torch.Tensor, shape: PlaneShape, target: Target, choice: Choice, *, is_kept: bool
) -> Plan:
    """Transform by what was chosen, and fit the energies."""
    level, matrix = choice.step**2 / 12, choice.channels.matrix
    rows = x if matrix is None else torch.matmul(matrix, x)
    if choice.has_mean:
        rows = reflect(rows, out=None if matrix is None else rows)
    energies = plane_energies(rows)
    left_out = 0.0
    if rows.shape[1] < x.shape[1]:
        left_out = max(0.0, target.energy - float(energies.sum()))
    fit = fit_planes(energies, shape.num_positions, level)
    transform, told, energy_model, groups = _transformed(rows, shape, choice, fit)
    return Plan(
        transform,
        choice.channels,
        rows,
        told.coefficients,
        told.largest,
        energy_model,
        groups,
        left_out,
        choice.step,
        choice.gain,
        choice.near_zero,
        choice.age,
        choice.bits_a_level,
        is_kept,
    )


def _transformed(
    rows: torch.Tensor,
    shape: PlaneShape,
    choice: Choice,
    fit: PlaneFit,
) -> tuple[Transform, Told, EnergyModel, Ints]:
    """Transform rows, planes of most energy first, and complete the energy model."""
    transform = Transform(
        shape, choice.basis, choice.channels.matrix, choice.has_mean, fit.order
    )
    groups = frequency_groups(choice.basis, shape, rows.shape[1])
    told = transform.forward(rows, fit.weights)
    # The energy of each frequency group, relative to the model of planes.
    frequencies = np.ones(1)
    if len(groups) > 1:
        below = group_sizes(shape, rows.shape[1]) * fit.weighted
        frequencies = np.bincount(groups, told.energies) / below
    model = EnergyModel(fit.samples, fit.channels, half_units(frequencies))
    return transform, told, model, groups


def _channel_options(
    x: torch.Tensor,
    target: Target,
    memory: Memory,
    kept: Kept | None,
    bases: tuple[Basis, ...],
    use_klt: bool,
) -> tuple[list[klt.ChannelTransform], float]:
    """Return the channel transforms to try, and the water level to expect."""
    num_each = x.shape[0] * x.shape[2]
    if not use_klt or not 1 < x.shape[1] <= klt.MAX_CHANNELS:
        variances = plane_energies(x).sum(0) / num_each
        level = _level(x, target, variances, kept)
        return [klt.ChannelTransform(None, variances)], level
    moments = klt.gram_matrix(x, is_spectrum=bases == (SPECTRUM,))
    moments *= target.energy / num_each / max(float(np.trace(moments)), TINY)
    variances = klt.principal_directions(moments)[0]
    level = _level(x, target, variances, kept)
    spare = _LEFT_OUT * float(np.minimum(variances, level).sum())
    return klt.channel_transforms(
        moments, num_each, level, spare, memory, x.device
    ), level


def _level(
    x: torch.Tensor, target: Target, variances: Reals, kept: Kept | None
) -> float:
    """Return the water level to expect; for a rate, that of the frame before."""
    if target.num_bits is None or not kept or kept.last_decider is not Decider.BITS:
        return target.water_level(variances, x.shape[0] * x.shape[2])
    return (kept.fineness * allowed_rms(target, x.numel())) ** 2 / 12
