"""From planes and a target to the sections of a frame.

A distortion may have a most number of bits beside it. What decides seldom changes from
step to step of a stream, so what decided last is tried first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from flwr_slfac.codec.base import Hints, Memory
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import Basis
from flwr_slfac.codec.waterfill import klt
from flwr_slfac.codec.waterfill.levels import Quantized, quantize
from flwr_slfac.codec.waterfill.normalize import Normalization
from flwr_slfac.codec.waterfill.plan import Plan, make_plan
from flwr_slfac.codec.waterfill.quantize import quantize_for
from flwr_slfac.codec.waterfill.rate import Coded, code_at_rate
from flwr_slfac.codec.waterfill.reuse import Kept, allowed_rms
from flwr_slfac.codec.waterfill.sections import write_sections
from flwr_slfac.codec.waterfill.streams import Coder
from flwr_slfac.codec.waterfill.target import Decider, Target
from flwr_slfac.codec.waterfill.weights import Weights

# In place of tensors that are not needed any more.
_NOTHING = torch.empty(0)
# A frame that is larger than this, relative to what is allowed, is tried again without
# a channel basis.
_TOO_LARGE = 1.02
# Of the errors and sizes that decide: within these nothing else is tried, so that a
# stream does not go to and fro.
_FINER, _COARSER, _SMALLER = 0.9, 1.25, 0.8


@dataclass(frozen=True, eq=False)
class Encoder:
    """What does not depend on the step.

    Parameters
    ----------
    planes : Tensor (N, C, S)
        Normalized and weighed, float32, not all zero.
    shape : PlaneShape
        Of the planes.
    normalization : Normalization
        That was done.
    weights : Weights, optional
        By which they were filtered.
    bases : tuple of Basis
        Along the sizes of a plane: those to try.
    uses_klt : bool
        Whether channels may have a basis.
    coder : {"range", "best"}
        Of the levels.
    hints : Hints
        Whose memory the stream's is.
    """

    planes: torch.Tensor
    shape: PlaneShape
    normalization: Normalization
    weights: Weights | None
    bases: tuple[Basis, ...]
    uses_klt: bool
    coder: Coder
    hints: Hints

    def sections(self, target: Target) -> Sequence[bytes]:
        """Code at a target, and keep what the next step of the stream needs."""
        coded, decider = self._coded(target)
        channels = coded.plan.channels
        if channels.rotation is not None and channels.is_new:
            channels.rotation.store(self.hints.memory)
        kept = _kept_of(coded, target.of(decider), decider)
        kept = kept.after(self._kept, is_kept=coded.plan.is_kept)
        kept.store(self.hints.memory, lasts=self.hints.role == "gradient")
        return coded.sections

    @cached_property
    def _kept(self) -> Kept | None:
        return Kept.of(self.hints.memory)

    def _coded(self, target: Target) -> tuple[Coded, Decider]:
        """Return the frame, and what decided its step."""
        if target.num_bits is None:
            return self._coded_once(target), Decider.ERROR
        last = self._kept.last_decider if self._kept else None
        decider = last if last in target.deciders else target.deciders[0]
        now = target.of(decider)
        plan = self._plan(now)
        if last is None and _is_limited(plan, target):
            decider = target.likely_limit
            now = target.of(decider)
        coded = self._coded_at(now, plan)
        for _ in range(len(target.deciders) - 1):
            better = _better(coded, target, decider, is_first=last is None)
            if better is decider:
                break
            # The buffers of a plan serve the next one: only the last holds its values.
            decider, now, plan = better, target.of(better), coded.plan
            if plan.left_out > now.max_left_out(self.planes.numel()):
                plan = self._plan(now)
            coded = self._coded_at(now, plan)
        return coded, decider

    def _coded_once(self, target: Target) -> Coded:
        """Code at a step or an error, with no more memory than that takes."""
        plan = self._plan(target)
        clamps = self.normalization.is_nonnegative
        quantized = quantize_for(plan, self.planes, target, clamps=clamps)
        # The coder of fewest bytes quantizes anew.
        plan = plan if self.coder == "best" else _without_values(plan)
        return Coded(plan, quantized, self._written(plan, quantized))

    def _coded_at(self, target: Target, plan: Plan) -> Coded:
        if target.num_bits is None:
            clamps = self.normalization.is_nonnegative
            quantized = quantize_for(plan, self.planes, target, clamps=clamps)
            return Coded(plan, quantized, self._written(plan, quantized))
        coded = code_at_rate(plan, target.num_bits, partial(self._written, plan))
        if plan.channels.is_new and coded.num_bits > _TOO_LARGE * target.num_bits:
            # The channel basis alone would take what the target allows.
            plan = self._make_plan(target, {}, None, use_klt=False)
            coded = code_at_rate(plan, target.num_bits, partial(self._written, plan))
        return coded

    def _written(self, plan: Plan, quantized: Quantized) -> Sequence[bytes]:
        return write_sections(
            plan, quantized, self.normalization, self.coder, self.weights
        )

    def _plan(self, target: Target) -> Plan:
        memory, kept = self.hints.memory, self._kept
        plan = self._make_plan(target, memory, kept, use_klt=self.uses_klt)
        rotated = plan.channels.rotation is not None and plan.channels.is_new
        num_values = self.planes.numel()
        size = plan.transform.num_rows, self.shape.num_channels, num_values
        is_too_large = rotated and not klt.is_allowed(*size)
        if is_too_large or plan.left_out > target.max_left_out(num_values):
            # Or the energies are too unlike for a channel basis in float32.
            plan = self._make_plan(target, memory, kept, use_klt=False)
        return plan

    def _make_plan(
        self, target: Target, memory: Memory, kept: Kept | None, *, use_klt: bool
    ) -> Plan:
        told = self.planes, self.shape, target, memory, kept, self.bases
        return make_plan(*told, use_klt=use_klt)


def _without_values(plan: Plan) -> Plan:
    """Return a plan that does not hold on to tensors while levels are coded."""
    return replace(plan, rows=_NOTHING, coefficients=_NOTHING)


def _is_limited(plan: Plan, target: Target) -> bool:
    """Return whether bits are likely to be a limit of a stream's first frame."""
    if target.num_bits is None or target.distortion is None:
        return False
    if plan.is_kept:
        # Of other streams, which had a limit if it is coarser than the error allows.
        return quantize(plan, plan.step).distortion > _COARSER * target.distortion
    return plan.expected_bits > _TOO_LARGE * target.num_bits


def _better(
    coded: Coded, target: Target, decider: Decider, *, is_first: bool
) -> Decider:
    """Return what should have decided a step."""
    if target.distortion is None or target.num_bits is None:
        return decider
    size = coded.num_bits / target.num_bits
    error = coded.quantized.distortion
    if decider is Decider.ERROR and size > _TOO_LARGE:
        return Decider.BITS
    if decider is Decider.BITS and error < _FINER * target.distortion:
        return Decider.ERROR
    coarser = 1.0 if is_first else _COARSER
    if decider is Decider.BITS and error > coarser * target.most_distortion:
        return Decider.MOST_ERROR
    if decider is Decider.MOST_ERROR and size < _SMALLER:
        return Decider.BITS
    return decider


def _kept_of(coded: Coded, target: Target, decider: Decider) -> Kept:
    """Return what a frame was coded by, for the next step of a stream."""
    plan, quantized = coded.plan, coded.quantized
    shape = plan.transform.shape
    num_values = shape.num_samples * shape.num_channels * shape.num_positions
    cost, num_levels = coded.num_bits / num_values, quantized.num_levels
    bits_a_level = coded.num_bits / num_levels if num_levels else 0.0
    if decider is Decider.BITS:
        cost = quantized.distortion / target.energy
    return Kept(
        (shape.num_channels, shape.num_positions),
        str(plan.transform.basis),
        plan.transform.has_mean,
        plan.channels.rotation is not None,
        quantized.step / allowed_rms(target, num_values),
        quantized.gain or 0.0,
        quantized.near_zero,
        cost,
        cost,
        bits_a_level,
        decider,
    )
