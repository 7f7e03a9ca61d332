"""The sections of a Waterfill frame: how each is laid out, and checked when read.

::

    0  head          layout, flags, step, scale, basis
    1  parameters    scales, centroids, and the model of each stream
    2  words         all streams of the range coder
    3  frames        only with coder "fast": streams of zstd

A tensor without energy has the head alone.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.transforms import Basis, parse_basis
from flwr_slfac.codec.waterfill import klt
from flwr_slfac.codec.waterfill.entropy import (
    LARGE,
    QUINARY,
    SMALL,
    TERNARY,
    Coder,
    Digits,
    Reader,
    Writer,
)
from flwr_slfac.codec.waterfill.plan import Plan, frequency_groups
from flwr_slfac.codec.waterfill.scales import Partition, Scales
from flwr_slfac.codec.waterfill.step import CENTROID_UNIT, Quantized, offset_of
from flwr_slfac.codec.waterfill.transform import Shape, Transform
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError, SettingError

_Ints = npt.NDArray[Any]

_LAYOUT = 1
_HEAD = struct.Struct("<BBfhhHB")
_ZERO, _NONNEGATIVE, _MEAN, _ROTATED, _REUSED, _FAST = 1, 2, 4, 8, 16, 32
_FIRST_WITH_LOW_BITS = 17


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
class Wrapping:
    """What a frame says of its tensor as a whole, besides the plan."""

    is_fast: bool
    exponent: int
    is_nonnegative: bool


def no_energy() -> list[bytes]:
    """Return the sections of a tensor of zeros, or of none."""
    return [_Head(_ZERO).pack()]


def write_sections(frame: Wrapping, plan: Plan, quantized: Quantized) -> list[bytes]:
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


def read_sections(frame: Frame, memory: Memory, device: torch.device) -> torch.Tensor:
    """Undo `write_sections` and the transform.

    Raises
    ------
    DecodeError
        If a section is not valid, or needs a basis that `memory` does not hold.
    """
    if not 1 <= len(frame.sections) <= 4:
        raise DecodeError(f"{len(frame.sections)} sections in codec 'waterfill'")
    head = _Head.unpack(frame.sections[0])
    if head.flags & _ZERO:
        return torch.zeros(frame.shape, dtype=frame.dtype, device=device)
    reader = _reader(head, frame)
    shape = Shape.of(frame.shape)
    rotation, is_new = _read_rotation(head, shape, frame, reader, memory)
    matrix = None if rotation is None else rotation.matrix(device)[: head.num_rows]
    basis = _read_basis(head.basis, shape)
    coefficients, order = _read_coefficients(head, shape, basis, reader)
    reader.finish()
    transform = Transform(shape, basis, matrix, bool(head.flags & _MEAN), order)
    planes = transform.inverse(
        torch.from_numpy(coefficients).to(device),
        is_nonnegative=bool(head.flags & _NONNEGATIVE),
    )
    result = _finished(planes, head.exponent, shape, frame)
    if rotation is not None and is_new:
        rotation.remember(memory)
    return result


def _reader(head: _Head, frame: Frame) -> Reader:
    is_fast = bool(head.flags & _FAST)
    if len(frame.sections) != (4 if is_fast else 3) or frame.num_elements == 0:
        raise DecodeError("sections of codec 'waterfill' are missing")
    frames = frame.sections[3] if is_fast else memoryview(b"")
    coder: Coder = "fast" if is_fast else "range"
    return Reader(coder, frame.sections[1], frame.sections[2], frames)


def _read_coefficients(
    head: _Head, shape: Shape, basis: Basis, reader: Reader
) -> tuple[npt.NDArray[np.float32], _Ints]:
    """Return coefficients (S, N * r), and the planes that its columns are."""
    num_rows = head.num_rows or shape.num_channels
    groups = frequency_groups(basis, shape, num_rows)
    num_groups = int(groups.max()) + 1
    scales = Scales.read(reader, shape.num_samples, num_rows, num_groups)
    energies = scales.planes()
    order = np.argsort(-energies.astype(np.int16), kind="stable")
    partition = Partition(scales.frequencies[groups], energies[order], head.offset)
    return partition.join(_read_values(reader, partition, head.step)), order


def _read_rotation(
    head: _Head, shape: Shape, frame: Frame, reader: Reader, memory: Memory
) -> tuple[klt.Rotation | None, bool]:
    num_channels = shape.num_channels
    if not head.flags & _ROTATED:
        if head.num_rows:
            raise DecodeError("rows of a channel basis where there is none")
        return None, False
    if not 1 <= head.num_rows <= num_channels <= klt.MAX_CHANNELS:
        raise DecodeError(
            f"{head.num_rows} rows of a channel basis for {num_channels} channels (at "
            f"most {klt.MAX_CHANNELS})"
        )
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
