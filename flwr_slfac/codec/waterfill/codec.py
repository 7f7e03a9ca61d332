"""Reverse water-filling by one step for all coefficients, and a range coder.

Under mean-square error a Gaussian vector is best coded by giving each component the
same distortion, or none where its variance is below the water level (Cover and Thomas,
Elements of Information Theory, 2nd ed., 10.3.3). A uniform step for all components,
followed by an entropy coder that knows each one's variance, does this within 0.25 bits
a value (Gish and Pierce 1968), and within less at low rates (Sullivan 1996).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, cast, get_args

import torch

from flwr_slfac.codec.base import Codec, Hints, Memory
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.registry import register
from flwr_slfac.codec.transforms import parse_basis
from flwr_slfac.codec.waterfill import klt
from flwr_slfac.codec.waterfill.budget import error_allowed, variation, weights_of
from flwr_slfac.codec.waterfill.levels import Quantized, quantize
from flwr_slfac.codec.waterfill.normalize import Normalization, normalize
from flwr_slfac.codec.waterfill.plan import Plan, keep_choice, make_plan
from flwr_slfac.codec.waterfill.quantize import quantize_for
from flwr_slfac.codec.waterfill.sample import CoefficientSample
from flwr_slfac.codec.waterfill.sections import (
    LENGTH_BYTES,
    read_sections,
    write_sections,
    zero_sections,
)
from flwr_slfac.codec.waterfill.solver import solve
from flwr_slfac.codec.waterfill.streams import Coder
from flwr_slfac.codec.waterfill.target import Target
from flwr_slfac.codec.waterfill.transform import energy
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import SettingError

# Of the frame around the sections of a map: 9 fixed, 9 of the id, 16 of the shape, 4 of
# the checksum; each section's length is more.
_FRAME_BYTES = 38
# Our choice: careful on any network, see README.md beside the codecs.
_DEFAULT_NRMSE = 0.1
# Our choice: longer than the name and level of any wavelet.
_MAX_BASIS_TEXT = 16
# Exponents of steps stay within float32's range.
_WIDEST = 120
# Passes to meet a number of bits, how near is near enough, and the least share of it to
# aim at: our choice, each pass codes the whole tensor.
_MOST_PASSES, _CLOSE, _LEAST_SHARE = 4, 0.01, 0.02
# A frame that is larger than this, relative to what is allowed, is tried again without
# a channel basis.
_TOO_LARGE = 1.02
# What may be aimed at, and the most of it, which only bits may reach.
_TARGETS = {"nrmse": 1.0, "noise": 1.0, "bits": 32.0, "step": math.inf}
# In place of no bits at all, where their reciprocal is taken.
_LEAST_BITS = 1e-9


@register
@dataclass(frozen=True)
class Waterfill(Codec):
    """Orthonormal transform, one step by reverse water-filling, range coding.

    Our choice, because one step for all coefficients is the optimum of reverse
    water-filling: see README.md beside the codecs, and the sources in this module.

    Give one of `nrmse`, `noise`, `bits`, `step`; none of them means ``nrmse=0.1``.

    Parameters
    ----------
    nrmse : float, optional
        Relative error to hit, ``norm(x - decoded) / norm(x)``, in (0, 1).
    noise : float, optional
        Share of the variance that mini-batches give the gradients of weights anyway,
        which coding may add to it, in (0, 1); our reading, see `budget`. Of a gradient,
        frequencies are weighed where `Hints.activations` tell how.
    bits : float, optional
        Bits per value to hit, the whole frame counted, in (0, 32]. Where headers alone
        take more, the frame is about as small as it can be.
    step : float, optional
        Quantization step of all coefficients, in the unit of the tensor; at least
        2**-22 of the largest coefficient is used.
    basis : str, default "auto"
        Spatial basis, see `parse_basis`, or ``"auto"``: the one of identity, DCT and
        a wavelet that the tensor suits.
    channels : {"klt", None}, default "klt"
        Whether channels may be decorrelated by their Karhunen-Loeve basis. It is used
        where it saves more than it costs, and reused over steps by `Hints.memory`; so
        is what trials chose, which come every sixteenth step.
    coder : {"range", "fast", "best"}, default "range"
        ``"range"`` comes within about a percent of the entropy of its model; ``"fast"``
        is Huffman coding of several values at once (zstd), some percent larger, and
        quicker than ``"range"`` only where the reference kernels run. ``"best"`` takes
        about a tenth fewer bytes than ``"range"``, and many times as long: it quantizes
        by a trellis and mixes contexts, see `trellis`.

    Raises
    ------
    SettingError
        If more than one target is given, or a setting is out of range; from `encode`,
        if `basis` is a wavelet that cannot do the sizes of the tensor.

    Notes
    -----
    Samples, channels and positions are dimensions (N), (C), (H, W) of (N, C, H, W);
    tokens (N, T, D) have D channels, vectors (N, D) D channels of one position, a
    tensor of one dimension is one channel.

    The relative error is within 2 percent of `nrmse` where the tensor has enough
    coefficients to be that fine about, and `nrmse` is 1e-5 or more. Arithmetic is in
    float32. A tensor without negative values decodes without negative values.

    Examples
    --------
    >>> import torch
    >>> from flwr_slfac.codec import decode, encode
    >>> x = torch.randn(16, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> error = (decode(encode(x, Waterfill(nrmse=0.1))) - x).norm() / x.norm()
    >>> bool(abs(error / 0.1 - 1) < 0.02)
    True
    """

    codec_id: ClassVar[str] = "waterfill"

    nrmse: float | None = None
    noise: float | None = None
    bits: float | None = None
    step: float | None = None
    basis: str = "auto"
    channels: str | None = "klt"
    coder: str = "range"

    def __post_init__(self) -> None:
        self._require_one_target()
        if self.channels not in ("klt", None):
            raise SettingError(f"channels is {self.channels!r}; give 'klt' or None")
        if self.coder not in get_args(Coder):
            raise SettingError(f"coder is {self.coder!r}; use one of {get_args(Coder)}")
        if self.basis != "auto" and len(str(parse_basis(self.basis))) > _MAX_BASIS_TEXT:
            raise SettingError(f"basis {self.basis!r} is too long a name")

    def _require_one_target(self) -> None:
        given = [n for n in _TARGETS if getattr(self, n) is not None]
        if len(given) > 1:
            raise SettingError(f"{' and '.join(given)} are given; give one of them")
        for name in given:
            value, limit = getattr(self, name), _TARGETS[name]
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value <= limit
                or (value == limit and name != "bits")
            ):
                raise SettingError(
                    f"{name} is {value!r}; give a number above 0 and "
                    f"{'below' if name != 'bits' else 'up to'} {limit:g}"
                )

    @property
    def wants_activations(self) -> bool:
        """Whether a gradient is weighed by its activations: if `noise` is given."""
        return self.noise is not None

    @property
    def relative_error(self) -> float | None:
        """The root of `noise`, or the error that `nrmse` asks for; None for others."""
        if self.noise is not None:
            return math.sqrt(self.noise)
        if self.bits is not None or self.step is not None:
            return None
        return _DEFAULT_NRMSE if self.nrmse is None else self.nrmse

    def aiming_at(self, relative_error: float) -> "Waterfill":
        """Return the codec with another `noise` or `nrmse`, if that is its target."""
        if self.noise is not None:
            return replace(self, noise=relative_error**2)
        return replace(self, nrmse=relative_error) if self.relative_error else self

    def settled(self, tensor: torch.Tensor, hints: Hints) -> "Waterfill":
        """Return the codec with the `nrmse` that `noise` allows activations."""
        if self.noise is None or hints.role == "gradient":
            return self
        error = error_allowed(self.noise, tensor, hints)
        return replace(self, noise=None, nrmse=error) if error else self

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Code the tensor at the step that meets the target."""
        if tensor.numel() == 0:
            return zero_sections()
        shape = PlaneShape.of(tensor.shape)
        planes = shape.to_planes(tensor.contiguous()).contiguous()
        x, normalization = normalize(planes)
        weights, basis = weights_of(hints, self.noise, self.basis)
        if weights is not None:
            x = weights.apply(x, shape)
            normalization = replace(normalization, is_nonnegative=False)
        total = energy(x)
        if total == 0.0:
            return zero_sections()
        target = self._target(total, x, hints, normalization.exponent)
        plan = self._plan(x, shape, target, hints.memory, basis)
        if target.num_bits is None:
            clamps, coder = normalization.is_nonnegative, self._coder
            quantized = quantize_for(plan, x, target, clamps=clamps)
            plan = plan if coder == "best" else _without_values(plan)
            sections = write_sections(plan, quantized, normalization, coder, weights)
        else:
            quantized, sections = self._fit_bits(plan, target.num_bits, normalization)
            size = 8 * sum(map(len, sections))
            if plan.channels.is_new and size > _TOO_LARGE * target.num_bits:
                # The channel basis alone would take what the target allows.
                plan = make_plan(x, shape, target, {}, basis=self.basis, use_klt=False)
                quantized, sections = self._fit_bits(
                    plan, target.num_bits, normalization
                )
        if plan.channels.rotation is not None and plan.channels.is_new:
            plan.channels.rotation.store(hints.memory)
        bits = 8 * sum(map(len, sections)) / x.numel()
        found = quantized.step, quantized.gain, quantized.near_zero
        keep_choice(hints.memory, plan, target, *found, bits)
        return sections

    @property
    def _coder(self) -> Coder:
        return cast(Coder, self.coder)

    def _fit_bits(
        self, plan: Plan, num_bits: float, normalization: Normalization
    ) -> tuple[Quantized, list[bytes]]:
        """Code at the step that meets a number of bits, all headers counted."""
        sample = CoefficientSample(plan)
        wanted, step = num_bits, plan.step
        best = math.inf
        for _ in range(_MOST_PASSES):
            step = solve(
                lambda s: 1 / max(sample.bits(s), _LEAST_BITS), 1 / wanted, step
            )
            quantized = quantize(plan, step)
            candidate = write_sections(plan, quantized, normalization, self._coder)
            num_bytes = sum(map(len, candidate)) + LENGTH_BYTES * len(candidate)
            reached = 8 * (num_bytes + _FRAME_BYTES)
            off = abs(reached / num_bits - 1)
            if off < best:
                best, found = off, (quantized, candidate)
            if off < _CLOSE:
                break
            wanted = max(wanted + num_bits - reached, _LEAST_SHARE * num_bits)
        return found

    def _plan(
        self,
        x: torch.Tensor,
        shape: PlaneShape,
        target: Target,
        memory: Memory,
        basis: str,
    ) -> Plan:
        make = partial(make_plan, x, shape, target, memory, basis=basis)
        plan = make(use_klt=self.channels is not None)
        rotated = plan.channels.rotation is not None and plan.channels.is_new
        size = plan.transform.num_rows, shape.num_channels, x.numel()
        is_too_large = rotated and not klt.is_allowed(*size)
        if is_too_large or plan.left_out > target.max_left_out(x.numel()):
            # Or the energies are too unlike for a channel basis in float32.
            plan = make(use_klt=False)
        return plan

    def _target(
        self, total: float, x: torch.Tensor, hints: Hints, exponent: int
    ) -> Target:
        if self.step is not None:
            mantissa, power = math.frexp(self.step)
            power = min(max(power - exponent, -_WIDEST), _WIDEST)
            return Target(total, step=math.ldexp(mantissa, power))
        if self.bits is not None:
            return Target(total, num_bits=self.bits * x.numel())
        if self.noise is not None:
            return Target(total, distortion=self.noise * variation(x, total, hints))
        nrmse = _DEFAULT_NRMSE if self.nrmse is None else self.nrmse
        return Target(total, distortion=nrmse**2 * total)

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Decode with the stream's channel basis, or raise DecodeError."""
        return read_sections(frame, memory, device)


def _without_values(plan: Plan) -> Plan:
    """Return a plan that does not hold on to tensors while levels are coded."""
    rows = plan.rows.new_empty(len(plan.rows), 0)
    return replace(plan, rows=rows, coefficients=rows.new_empty(0))
