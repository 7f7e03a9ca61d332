r"""Reverse water-filling by one step for all coefficients, and a range coder.

::

    tensor (N, C, H, W)
      -> channel KLT -> mean of samples -> spatial basis     all orthonormal
      -> energy of sample n, channel k, frequency f  ~  a[n] * u[k] * v[f]
      -> one step, dead zone -> integers -> streams by a[n] * u[k] * v[f]
      -> a model a stream -> range coder  ==>  bytes

Under mean-square error a Gaussian vector is best coded by giving each component the
same distortion, or none where its variance is below the water level (Cover and Thomas,
Elements of Information Theory, 2nd ed., 10.3.3). A uniform step for all components,
followed by an entropy coder that knows each one's variance, does this within 0.25 bits
a value (Gish and Pierce 1968), and within less at low rates (Sullivan 1996).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from flwr_slfac.codec.base import Codec, Hints, Memory
from flwr_slfac.codec.registry import register
from flwr_slfac.codec.transforms import parse_basis
from flwr_slfac.codec.waterfill.plan import Plan, Target, make_plan
from flwr_slfac.codec.waterfill.sections import (
    Wrapping,
    no_energy,
    read_sections,
    write_sections,
)
from flwr_slfac.codec.waterfill.solve import solve
from flwr_slfac.codec.waterfill.step import Search, quantize, quantize_to
from flwr_slfac.codec.waterfill.transform import Shape, energy
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import SettingError

_FRAME_BYTES = 38
_MAX_BASIS_TEXT = 16
_WIDEST = 120
_SAFE_RANGE = (1e-12, 1e12)


@register
@dataclass(frozen=True)
class Waterfill(Codec):
    """Orthonormal transform, one step by reverse water-filling, range coding.

    Give one of `nrmse`, `bits` and `step`; none of them means ``nrmse=0.1``.

    Parameters
    ----------
    nrmse : float, optional
        Relative error to hit, ``norm(x - decoded) / norm(x)``, in (0, 1).
    bits : float, optional
        Bits per value to hit, the whole frame counted, in (0, 32]. Where headers alone
        take more, the frame is about as small as it can be.
    step : float, optional
        Quantization step of all coefficients, in the unit of the tensor; at least
        2**-22 of the largest coefficient is used.
    basis : str
        Spatial basis, see `parse_basis`, or ``"auto"``: the one of identity, DCT and
        a wavelet that the tensor suits.
    channels : "klt" or None
        Whether channels may be decorrelated by their Karhunen-Loeve basis. It is used
        where it saves more than it costs, and reused over steps by `Hints.memory`.
    coder : {"range", "fast"}
        ``"range"`` comes within about a percent of the entropy of its model; ``"fast"``
        is Huffman coding of several values at once (zstd), some percent larger.

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
    bits: float | None = None
    step: float | None = None
    basis: str = "auto"
    channels: str | None = "klt"
    coder: str = "range"

    def __post_init__(self) -> None:
        given = [n for n in ("nrmse", "bits", "step") if getattr(self, n) is not None]
        if len(given) > 1:
            raise SettingError(f"{' and '.join(given)} are given; give one of them")
        limits = {"nrmse": 1.0, "bits": 32.0, "step": math.inf}
        for name in given:
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value <= limits[name]
                or value == (1.0 if name == "nrmse" else math.inf)
            ):
                raise SettingError(
                    f"{name} is {value!r}; give a number above 0 and "
                    f"{'below' if name != 'bits' else 'up to'} {limits[name]:g}"
                )
        if self.channels not in ("klt", None):
            raise SettingError(f"channels is {self.channels!r}; give 'klt' or None")
        if self.coder not in ("range", "fast"):
            raise SettingError(f"coder is {self.coder!r}; give 'range' or 'fast'")
        if self.basis != "auto" and len(str(parse_basis(self.basis))) > _MAX_BASIS_TEXT:
            raise SettingError(f"basis {self.basis!r} is too long a name")

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Code the tensor at the step that meets the target."""
        if tensor.numel() == 0:
            return no_energy()
        shape = Shape.of(tensor.shape)
        x, exponent, is_nonnegative = _normalized(shape.planes(tensor.contiguous()))
        total = energy(x)
        if total == 0.0:
            return no_energy()
        target = self._target(total, x.numel(), exponent)
        plan = self._plan(x, shape, target, hints.memory)
        frame = Wrapping(self.coder == "fast", exponent, is_nonnegative)
        if target.num_bits is not None:
            sections = _fit_bits(frame, plan, target.num_bits)
            size = 8 * sum(map(len, sections))
            if plan.channels.is_new and size > 1.02 * target.num_bits:
                # The channel basis alone would take what the target allows.
                plan = make_plan(x, shape, target, {}, basis=self.basis, use_klt=False)
                sections = _fit_bits(frame, plan, target.num_bits)
        elif target.step is not None:
            quantized = quantize(plan, Search(plan), target.step)
            sections = write_sections(frame, plan, quantized)
        else:
            wanted = target.distortion or 0.0
            quantized = quantize_to(plan, x, wanted, is_nonnegative=is_nonnegative)
            sections = write_sections(frame, plan, quantized)
        if plan.channels.rotation is not None and plan.channels.is_new:
            plan.channels.rotation.remember(hints.memory)
        return sections

    def _plan(
        self, x: torch.Tensor, shape: Shape, target: Target, memory: Memory
    ) -> Plan:
        plan = make_plan(
            x,
            shape,
            target,
            memory,
            basis=self.basis,
            use_klt=self.channels is not None,
        )
        if plan.left_out > target.spare(x.numel()):
            # The energies are too unlike for a channel basis in float32.
            plan = make_plan(x, shape, target, memory, basis=self.basis, use_klt=False)
        return plan

    def _target(self, total: float, num_values: int, exponent: int) -> Target:
        if self.step is not None:
            mantissa, power = math.frexp(self.step)
            power = min(max(power - exponent, -_WIDEST), _WIDEST)
            return Target(total, step=math.ldexp(mantissa, power))
        if self.bits is not None:
            return Target(total, num_bits=self.bits * num_values)
        nrmse = 0.1 if self.nrmse is None else self.nrmse
        return Target(total, distortion=nrmse**2 * total)

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Decode, or raise DecodeError."""
        return read_sections(frame, memory, device)


def _normalized(x: torch.Tensor) -> tuple[torch.Tensor, int, bool]:
    """Return float32 values of safe magnitude and the power of two taken out.

    The third is whether no value is negative.
    """
    low, high = torch.aminmax(x)
    largest = max(-float(low), float(high))
    if largest == 0.0 or _SAFE_RANGE[0] < largest < _SAFE_RANGE[1]:
        return x.to(torch.float32), 0, float(low) >= 0
    exponent = math.frexp(largest)[1]
    half = exponent // 2
    wide = x.to(torch.float64) * 2.0**-half * 2.0 ** -(exponent - half)
    return wide.to(torch.float32), exponent, float(low) >= 0


def _fit_bits(frame: Wrapping, plan: Plan, num_bits: float) -> list[bytes]:
    """Code at the step that meets a number of bits, all headers counted."""
    search = Search(plan)
    wanted, step = num_bits, plan.step
    best, sections = math.inf, [b""]
    for _ in range(4):
        step = solve(lambda s: 1 / max(search.bits(s), 1e-9), 1 / wanted, step)
        candidate = write_sections(frame, plan, quantize(plan, search, step))
        reached = 8 * (sum(map(len, candidate)) + _FRAME_BYTES + 4 * len(candidate))
        off = abs(reached / num_bits - 1)
        if off < best:
            best, sections = off, candidate
        if off < 0.01:
            break
        wanted = max(wanted + num_bits - reached, 0.02 * num_bits)
    return sections
