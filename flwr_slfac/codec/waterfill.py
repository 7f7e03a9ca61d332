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
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec import klt
from flwr_slfac.codec.base import Codec, Hints, Memory, register
from flwr_slfac.codec.basis import Basis, parse_basis
from flwr_slfac.codec.entropy import (
    LARGE,
    QUINARY,
    SMALL,
    TERNARY,
    Digits,
    Reader,
    Writer,
)
from flwr_slfac.codec.plan import Plan, Target, frequency_groups, make_plan
from flwr_slfac.codec.scales import Partition, Scales
from flwr_slfac.codec.solve import solve
from flwr_slfac.codec.step import (
    CENTROID_UNIT,
    Quantized,
    Search,
    offset_of,
    quantize,
    quantize_to,
)
from flwr_slfac.codec.transform import Shape, Transform, energy
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError, SettingError

_Ints = npt.NDArray[Any]

_LAYOUT = 1
_HEAD = struct.Struct("<BBfhhHB")
_ZERO, _NONNEGATIVE, _MEAN, _ROTATED, _REUSED, _FAST = 1, 2, 4, 8, 16, 32
_FRAME_BYTES = 38
_MAX_BASIS_TEXT = 16
_FIRST_WITH_LOW_BITS = 17
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
            return [_Head(_ZERO).pack()]
        shape = Shape.of(tensor.shape)
        x, exponent, is_nonnegative = _normalized(shape.planes(tensor.contiguous()))
        total = energy(x)
        if total == 0.0:
            return [_Head(_ZERO).pack()]
        target = self._target(total, x.numel(), exponent)
        plan = self._plan(x, shape, target, hints.memory)
        frame = _Frame(self.coder == "fast", exponent, is_nonnegative)
        if target.step is not None:
            sections = _write(frame, plan, quantize(plan, Search(plan), target.step))
        elif target.distortion is not None:
            wanted = target.distortion
            quantized = quantize_to(
                plan, x, wanted, is_nonnegative=frame.is_nonnegative
            )
            sections = _write(frame, plan, quantized)
        else:
            num_bits = target.num_bits or 0.0
            sections = _fit_bits(frame, plan, num_bits)
            if plan.channels.is_new and 8 * sum(map(len, sections)) > 1.02 * num_bits:
                # The channel basis alone would take what the target allows.
                plan = make_plan(x, shape, target, {}, basis=self.basis, use_klt=False)
                sections = _fit_bits(frame, plan, num_bits)
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
        return _decode(frame, memory, device)


@dataclass(frozen=True)
class _Head:
    """What precedes the streams."""

    flags: int
    step: float = 0.0
    exponent: int = 0
    offset: int = 0
    num_rows: int = 0
    basis: str = ""
    fingerprint: bytes = b""

    def pack(self) -> bytes:
        if self.flags & _ZERO:
            return bytes([_LAYOUT, self.flags])
        fixed = _HEAD.pack(
            _LAYOUT,
            self.flags,
            self.step,
            self.exponent,
            self.offset,
            self.num_rows,
            len(self.basis),
        )
        return fixed + self.basis.encode("ascii") + self.fingerprint

    @classmethod
    def unpack(cls, section: memoryview) -> "_Head":
        if len(section) < 2 or section[0] != _LAYOUT:
            raise DecodeError("not a layout of codec 'waterfill' that is known here")
        flags = section[1]
        if flags & _ZERO:
            if len(section) != 2 or flags != _ZERO:
                raise DecodeError("a zero tensor has nothing after its head")
            return cls(flags)
        if len(section) < _HEAD.size:
            raise DecodeError("the head of codec 'waterfill' ends early")
        _, _, step, exponent, offset, num_rows, length = _HEAD.unpack_from(section)
        rest = bytes(section[_HEAD.size :])
        if len(rest) != length + (4 if flags & _ROTATED else 0) or flags >= 64:
            raise DecodeError("the head of codec 'waterfill' has a wrong length")
        if not (math.isfinite(step) and step > 0) or abs(exponent) > 1100:
            raise DecodeError("the step of codec 'waterfill' is out of range")
        try:
            basis = rest[:length].decode("ascii")
        except UnicodeDecodeError as error:
            raise DecodeError("the basis name is not ASCII") from error
        return cls(flags, step, exponent, offset, num_rows, basis, rest[length:])


@dataclass(frozen=True)
class _Frame:
    """What the frame says of the tensor as a whole."""

    is_fast: bool
    exponent: int
    is_nonnegative: bool


def _normalized(x: torch.Tensor) -> tuple[torch.Tensor, int, bool]:
    """Return float32 values of safe magnitude, the power of two taken out, the sign.

    The last is whether no value is negative.
    """
    low, high = torch.aminmax(x)
    largest = max(-float(low), float(high))
    if largest == 0.0 or _SAFE_RANGE[0] < largest < _SAFE_RANGE[1]:
        return x.to(torch.float32), 0, float(low) >= 0
    exponent = math.frexp(largest)[1]
    half = exponent // 2
    wide = x.to(torch.float64) * 2.0**-half * 2.0 ** -(exponent - half)
    return wide.to(torch.float32), exponent, float(low) >= 0


def _write(frame: _Frame, plan: Plan, quantized: Quantized) -> list[bytes]:
    """Code everything: head, parameters, words, frames of the fast coder."""
    writer = Writer("fast" if frame.is_fast else "range")
    transform, rotation = plan.transform, plan.channels.rotation
    flags = _FAST if frame.is_fast else 0
    flags |= _NONNEGATIVE if frame.is_nonnegative else 0
    flags |= _MEAN if transform.has_mean else 0
    fingerprint = b""
    if rotation is not None:
        fingerprint = rotation.fingerprint()
        flags |= _ROTATED
        if plan.channels.is_new:
            rotation.write(writer)
        else:
            flags |= _REUSED
    plan.scales.write(writer)
    offset = offset_of(quantized.step)
    partition = Partition(*plan.energies, offset)
    present = np.flatnonzero(partition.counts)
    writer.stream(np.diff(quantized.shifts[present], prepend=0), LARGE)
    values = partition.split(quantized.levels)
    for number in present:
        _write_class(writer, values[number], int(number))
    head = _Head(
        flags,
        quantized.step,
        frame.exponent,
        offset,
        0 if rotation is None else transform.num_rows,
        str(transform.basis),
        fingerprint,
    )
    sections = [head.pack(), *writer.finish()]
    return sections if flags & _FAST else sections[:3]


def _digits(number: int) -> Digits:
    """Return how to cut the coefficients of a class into symbols."""
    if number <= 6:
        return TERNARY
    if number <= 8:
        return QUINARY
    return SMALL if number <= 12 else LARGE


def _num_low_bits(number: int) -> int:
    """Return how many bits of a class's coefficients are as good as random."""
    return max(0, (number - _FIRST_WITH_LOW_BITS) // 2 + 1)


def _write_class(writer: Writer, values: _Ints, number: int) -> None:
    num_low = _num_low_bits(number)
    if num_low:
        raised = values.astype(np.int64) + (1 << num_low >> 1)
        values = raised >> num_low
        writer.raw(raised - (values << num_low), num_low)
    writer.stream(values, _digits(number), bulk=True)


def _read_class(reader: Reader, count: int, number: int) -> _Ints:
    num_low = _num_low_bits(number)
    if not num_low:
        return reader.stream(count, _digits(number), bulk=True)
    low = reader.raw(count, num_low)
    high = reader.stream(count, _digits(number), bulk=True).astype(np.int64)
    return (high << num_low) + low - (1 << num_low >> 1)


def _fit_bits(frame: _Frame, plan: Plan, num_bits: float) -> list[bytes]:
    """Code at the step that meets a number of bits, all headers counted."""
    search = Search(plan)
    wanted, step = num_bits, plan.step
    best, sections = math.inf, [b""]
    for _ in range(4):
        step = solve(lambda s: 1 / max(search.bits(s), 1e-9), 1 / wanted, step)
        candidate = _write(frame, plan, quantize(plan, search, step))
        reached = 8 * (sum(map(len, candidate)) + _FRAME_BYTES + 4 * len(candidate))
        off = abs(reached / num_bits - 1)
        if off < best:
            best, sections = off, candidate
        if off < 0.01:
            break
        wanted = max(wanted + num_bits - reached, 0.02 * num_bits)
    return sections


def _decode(frame: Frame, memory: Memory, device: torch.device) -> torch.Tensor:
    """Undo `_write` and the transform."""
    if not 1 <= len(frame.sections) <= 4:
        raise DecodeError(f"{len(frame.sections)} sections in codec 'waterfill'")
    head = _Head.unpack(frame.sections[0])
    if head.flags & _ZERO:
        return torch.zeros(frame.shape, dtype=frame.dtype, device=device)
    is_fast = bool(head.flags & _FAST)
    if len(frame.sections) != (4 if is_fast else 3) or frame.num_elements == 0:
        raise DecodeError("sections of codec 'waterfill' are missing")
    frames = frame.sections[3] if is_fast else memoryview(b"")
    reader = Reader(
        "fast" if is_fast else "range", frame.sections[1], frame.sections[2], frames
    )
    shape = Shape.of(frame.shape)
    rotation, is_new = _read_rotation(head, shape, frame, reader, memory)
    matrix = None
    if rotation is not None:
        matrix = rotation.matrix(device)[: head.num_rows]
    basis = _read_basis(head.basis, shape)
    num_rows = head.num_rows or shape.num_channels
    groups = frequency_groups(basis, shape, num_rows)
    num_groups = int(groups.max()) + 1
    scales = Scales.read(reader, shape.num_samples, num_rows, num_groups)
    energies = scales.planes()
    order = np.argsort(-energies.astype(np.int16), kind="stable")
    partition = Partition(scales.frequencies[groups], energies[order], head.offset)
    coefficients = partition.join(_read_values(reader, partition, head.step))
    reader.finish()
    has_mean = bool(head.flags & _MEAN)
    transform = Transform(shape, basis, matrix, has_mean, order)
    planes = transform.inverse(
        torch.from_numpy(coefficients).to(device),
        is_nonnegative=bool(head.flags & _NONNEGATIVE),
    )
    if rotation is not None and is_new:
        rotation.remember(memory)
    return _finished(planes, head.exponent, shape, frame)


def _read_rotation(
    head: _Head, shape: Shape, frame: Frame, reader: Reader, memory: Memory
) -> tuple[klt.Rotation | None, bool]:
    num_channels = shape.num_channels
    if not head.flags & _ROTATED:
        if head.num_rows:
            raise DecodeError("rows of a channel basis where there is none")
        return None, False
    if not 1 <= head.num_rows <= min(num_channels, klt.MAX_CHANNELS):
        raise DecodeError(f"{head.num_rows} rows of a channel basis")
    if head.flags & _REUSED:
        old = klt.remembered(memory)
        if old is None or old.fingerprint() != head.fingerprint:
            raise DecodeError(
                "the frame needs a channel basis that was not received; start both "
                "sides with an empty memory"
            )
        if old.codes.shape[1] != num_channels or len(old.codes) < head.num_rows:
            raise DecodeError("the channel basis in memory does not fit the frame")
        return old, False
    if head.num_rows * num_channels > 4 * frame.num_elements + 64:
        raise DecodeError("a channel basis larger than the tensor")
    rotation = klt.Rotation.read(reader, head.num_rows, num_channels)
    if rotation.fingerprint() != head.fingerprint:
        raise DecodeError("the channel basis has another fingerprint than it claims")
    return rotation, True


def _read_basis(text: str, shape: Shape) -> Basis:
    try:
        basis = parse_basis(text)
        basis.num_levels(*(shape.sizes or (1,)))
    except SettingError as error:
        raise DecodeError(f"the spatial basis is not valid: {error}") from error
    return basis


def _read_values(
    reader: Reader, partition: Partition, step: float
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield the coefficients of each class at their centroids."""
    present = np.flatnonzero(partition.counts)
    shifts = np.cumsum(reader.stream(len(present), LARGE).astype(np.int64))
    if np.abs(shifts).max() > CENTROID_UNIT:
        raise DecodeError("a centroid of codec 'waterfill' is out of range")
    for number, shift in zip(present.tolist(), shifts, strict=True):
        levels = _read_class(reader, partition.counts[number], number)
        # A crafted step may overflow; `_finished` finds what is not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            scale = np.float32(step)
            values = np.multiply(levels, scale, dtype=np.float32)
            taken = np.float32(shift / CENTROID_UNIT) * scale
            values -= np.multiply(np.sign(levels), taken, dtype=np.float32)
        yield number, values


def _finished(
    planes: torch.Tensor, exponent: int, shape: Shape, frame: Frame
) -> torch.Tensor:
    """Bring planes to the scale, dtype and shape of the frame."""
    if shape.channels_last:
        planes = planes.transpose(1, 2)
    if exponent or frame.dtype in (torch.float16, torch.float64):
        largest = torch.finfo(frame.dtype).max
        wide = planes.to(torch.float64)
        half = exponent // 2
        wide = wide * 2.0**half * 2.0 ** (exponent - half)
        planes = wide.clamp_(-largest, largest)
    result = planes.to(frame.dtype).reshape(frame.shape).contiguous()
    if not bool(torch.isfinite(result.sum(dtype=torch.float32))) and not bool(
        torch.isfinite(result).all()
    ):
        raise DecodeError("the frame decodes to values that are not finite")
    return result
