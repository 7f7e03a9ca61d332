"""From planes and a target to the sections of a frame.

A distortion may have a most number of bits beside it. Which of the two decides seldom
changes from step to step of a stream, so the one that decided last is tried first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.waterfill import klt
from flwr_slfac.codec.waterfill.levels import Quantized
from flwr_slfac.codec.waterfill.normalize import Normalization
from flwr_slfac.codec.waterfill.plan import Plan, make_plan
from flwr_slfac.codec.waterfill.quantize import quantize_for
from flwr_slfac.codec.waterfill.rate import Coded, code_at_rate
from flwr_slfac.codec.waterfill.reuse import Kept, allowed_rms, kept_fineness
from flwr_slfac.codec.waterfill.sections import write_sections
from flwr_slfac.codec.waterfill.streams import Coder
from flwr_slfac.codec.waterfill.target import Target
from flwr_slfac.codec.waterfill.weights import Weights

# A frame that is larger than this, relative to what is allowed, is tried again without
# a channel basis.
_TOO_LARGE = 1.02
# A limited frame whose error is below this share of what is allowed was not limited.
_FINER = 0.9


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
    basis : str
        Spatial basis, or "auto".
    uses_klt : bool
        Whether channels may have a basis.
    coder : {"range", "fast"}
        Of the levels.
    memory : dict of str to Tensor
        Of the stream.
    """

    planes: torch.Tensor
    shape: PlaneShape
    normalization: Normalization
    weights: Weights | None
    basis: str
    uses_klt: bool
    coder: Coder
    memory: Memory

    def sections(self, target: Target) -> Sequence[bytes]:
        """Code at a target, and keep what the next step of the stream needs."""
        coded, met = self._coded(target)
        plan, quantized = coded.plan, coded.quantized
        if plan.channels.rotation is not None and plan.channels.is_new:
            plan.channels.rotation.store(self.memory)
        _keep_choice(self.memory, plan, met, quantized, coded.num_bits)
        return coded.sections

    def _coded(self, target: Target) -> tuple[Coded, Target]:
        """Return the frame, and the target that it met."""
        if target.distortion is None or target.num_bits is None:
            return self._coded_at(target), target
        fine, rate = replace(target, num_bits=None), replace(target, distortion=None)
        if kept_fineness(self.memory) is not None:
            coded = self._coded_at(rate)
            if coded.quantized.distortion >= _FINER * target.distortion:
                return coded, rate
        coded = self._coded_at(fine)
        if coded.num_bits <= _TOO_LARGE * target.num_bits:
            return coded, target
        return self._coded_at(rate), rate

    def _coded_at(self, target: Target) -> Coded:
        plan = self._plan(target)
        if target.num_bits is None:
            clamps = self.normalization.is_nonnegative
            quantized = quantize_for(plan, self.planes, target, clamps=clamps)
            plan = _without_values(plan)
            return Coded(plan, quantized, self._written(plan, quantized))
        coded = code_at_rate(plan, target.num_bits, partial(self._written, plan))
        if plan.channels.is_new and coded.num_bits > _TOO_LARGE * target.num_bits:
            # The channel basis alone would take what the target allows.
            plan = self._make_plan(target, {}, use_klt=False)
            coded = code_at_rate(plan, target.num_bits, partial(self._written, plan))
        return coded

    def _written(self, plan: Plan, quantized: Quantized) -> Sequence[bytes]:
        return write_sections(
            plan, quantized, self.normalization, self.coder, self.weights
        )

    def _plan(self, target: Target) -> Plan:
        plan = self._make_plan(target, self.memory, use_klt=self.uses_klt)
        rotated = plan.channels.rotation is not None and plan.channels.is_new
        num_values = self.planes.numel()
        size = plan.transform.num_rows, self.shape.num_channels, num_values
        is_too_large = rotated and not klt.is_allowed(*size)
        if is_too_large or plan.left_out > target.max_left_out(num_values):
            # Or the energies are too unlike for a channel basis in float32.
            plan = self._make_plan(target, self.memory, use_klt=False)
        return plan

    def _make_plan(self, target: Target, memory: Memory, *, use_klt: bool) -> Plan:
        return make_plan(
            self.planes, self.shape, target, memory, basis=self.basis, use_klt=use_klt
        )


def _without_values(plan: Plan) -> Plan:
    """Return a plan that does not hold on to tensors while levels are coded."""
    rows = plan.rows.new_empty(len(plan.rows), 0)
    return replace(plan, rows=rows, coefficients=rows.new_empty(0))


def _keep_choice(
    memory: Memory,
    plan: Plan,
    target: Target,
    quantized: Quantized,
    num_bits: int,
) -> None:
    """Keep a plan's choice for the next step of a stream.

    Parameters
    ----------
    memory : dict of str to Tensor
        Of the stream; the channel basis is in it already.
    plan : Plan
        By which a frame was coded.
    target : Target
        What it had to meet.
    quantized : Quantized
        What it holds.
    num_bits : int
        It took.
    """
    old = Kept.of(memory) if plan.is_kept else None
    shape = plan.transform.shape
    num_values = plan.rows.shape[0] * shape.num_channels * shape.num_positions
    bits, num_levels = num_bits / num_values, quantized.num_levels
    Kept(
        (shape.num_channels, shape.num_positions),
        str(plan.transform.basis),
        plan.transform.has_mean,
        plan.channels.rotation is not None,
        quantized.step / allowed_rms(target, num_values),
        quantized.gain or 0.0,
        quantized.near_zero,
        old.age + 1 if old else 0,
        old.first_bits if old else bits,
        bits,
        num_bits / num_levels if num_levels else 0.0,
        target.distortion is None and target.num_bits is not None,
    ).store(memory)
