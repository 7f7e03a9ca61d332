"""The sections of a Waterfill frame: how each is laid out, and checked when read.

::

    0  header        layout, flags, step, scale, basis
    1  parameters    scales, centroids, and the model of each stream
    2  words         all symbols of streams, see `words`
    3  frames        only with coder "fast": streams of zstd

A tensor without energy has the header alone.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.kernels import kernels
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import Basis, parse_basis
from flwr_slfac.codec.waterfill import header, klt
from flwr_slfac.codec.waterfill.digits import (
    LARGE,
    QUINARY,
    SMALL,
    TERNARY,
    Digits,
    Ints,
)
from flwr_slfac.codec.waterfill.energies import (
    EnergyClasses,
    EnergyModel,
    frequency_groups,
)
from flwr_slfac.codec.waterfill.normalize import Normalization, denormalize
from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.codec.waterfill.quantize import Quantized
from flwr_slfac.codec.waterfill.sample import CENTROID_UNIT, class_offset
from flwr_slfac.codec.waterfill.stream_reader import StreamReader
from flwr_slfac.codec.waterfill.stream_writer import StreamWriter
from flwr_slfac.codec.waterfill.streams import Coder
from flwr_slfac.codec.waterfill.transform import Transform
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError, SettingError

# Classes up to which a class's coefficients are mostly within 1, 2 and 7 steps.
_LAST_TERNARY, _LAST_QUINARY, _LAST_SMALL = 6, 8, 12
# From here on, with a deviation of 2**4.5 steps, the lowest bit is as good as random;
# every second class has one such bit more.
_FIRST_WITH_LOW_BITS = 17


def zero_sections() -> list[bytes]:
    """Return the sections of a tensor of zeros, or of none."""
    return [header.Header(header.ZERO).pack()]


def write_sections(
    plan: Plan, quantized: Quantized, normalization: Normalization, coder: Coder
) -> list[bytes]:
    """Code everything.

    Parameters
    ----------
    plan : Plan
        What was settled before the step.
    quantized : Quantized
        The integers.
    normalization : Normalization
        Of the tensor.
    coder : {"range", "fast"}
        Whether zstd takes the coefficients.

    Returns
    -------
    list of bytes
        Header, parameters, words, and frames of the fast coder.
    """
    writer = StreamWriter(coder)
    flags, fingerprint = _write_rotation(writer, plan.channels)
    flags |= header.FAST if coder == "fast" else 0
    flags |= header.NONNEGATIVE if normalization.is_nonnegative else 0
    flags |= header.MEAN if plan.transform.has_mean else 0
    plan.energy_model.write(writer)
    offset = class_offset(quantized.step)
    classes = EnergyClasses(*plan.energies, offset)
    present = np.flatnonzero(classes.counts)
    writer.stream(np.diff(quantized.shifts[present], prepend=0), LARGE)
    values = classes.split(quantized.levels)
    _write_values(writer, [(int(number), values[number]) for number in present])
    head = header.Header(
        flags,
        quantized.step,
        normalization.exponent,
        offset,
        plan.transform.num_rows if flags & header.ROTATED else 0,
        str(plan.transform.basis),
        fingerprint,
    )
    sections = [head.pack(), *writer.finish()]
    return sections if coder == "fast" else sections[:3]


def _write_rotation(
    writer: StreamWriter, channels: klt.ChannelTransform
) -> tuple[int, bytes]:
    """Add a new channel basis to the streams; return its flags and fingerprint."""
    rotation = channels.rotation
    if rotation is None:
        return 0, b""
    if not channels.is_new:
        return header.ROTATED | header.REUSED, rotation.fingerprint()
    rotation.write(writer)
    return header.ROTATED, rotation.fingerprint()


def _digits(number: int) -> Digits:
    """Return how to cut the coefficients of a class into symbols."""
    if number <= _LAST_TERNARY:
        return TERNARY
    if number <= _LAST_QUINARY:
        return QUINARY
    return SMALL if number <= _LAST_SMALL else LARGE


def _num_low_bits(number: int) -> int:
    """Return how many bits of a class's coefficients are as good as random."""
    return max(0, (number - _FIRST_WITH_LOW_BITS) // 2 + 1)


def _write_values(writer: StreamWriter, classes: list[tuple[int, Ints]]) -> None:
    """Code the levels of classes: their low bits as they are, the rest by models."""
    parts, low_bits = [], []
    for number, values in classes:
        if num_low := _num_low_bits(number):
            raised = values.astype(np.int64) + (1 << num_low >> 1)
            values = raised >> num_low
            low_bits.append((raised - (values << num_low), num_low))
        parts.append((values, _digits(number)))
    writer.bulk(parts)
    for values, num_low in low_bits:
        writer.raw(values, num_low)


def _read_levels(reader: StreamReader, counts: list[tuple[int, int]]) -> Iterator[Ints]:
    """Undo `_write_values`, for classes and their numbers of values."""
    parts = [(count, _digits(number)) for number, count in counts]
    for (number, count), values in zip(counts, reader.bulk(parts), strict=True):
        if num_low := _num_low_bits(number):
            low = reader.raw(count, num_low)
            low -= 1 << num_low >> 1
            low += values.astype(np.int64) << num_low
            yield low
        else:
            yield values


def read_sections(frame: Frame, memory: Memory, device: torch.device) -> torch.Tensor:
    """Undo `write_sections` and the transform.

    Raises
    ------
    DecodeError
        If a section is not valid, or needs a basis that `memory` does not hold.
    """
    if not 1 <= len(frame.sections) <= 4:
        raise DecodeError(f"{len(frame.sections)} sections in codec 'waterfill'")
    head = header.Header.unpack(frame.sections[0])
    if head.flags & header.ZERO:
        return torch.zeros(frame.shape, dtype=frame.dtype, device=device)
    reader = _reader(head, frame)
    shape = PlaneShape.of(frame.shape)
    rotation, is_new = _read_rotation(head, shape, frame, reader, memory)
    matrix = None if rotation is None else rotation.matrix(device)[: head.num_rows]
    basis = _read_basis(head.basis, shape)
    coefficients, order = _read_coefficients(head, shape, basis, reader)
    reader.finish()
    transform = Transform(shape, basis, matrix, bool(head.flags & header.MEAN), order)
    planes = transform.inverse(
        torch.from_numpy(coefficients).to(device),
        is_nonnegative=bool(head.flags & header.NONNEGATIVE),
    )
    result = denormalize(planes, head.exponent, shape, frame)
    if rotation is not None and is_new:
        rotation.store(memory)
    return result


def _reader(head: header.Header, frame: Frame) -> StreamReader:
    is_fast = bool(head.flags & header.FAST)
    if len(frame.sections) != (4 if is_fast else 3) or frame.num_elements == 0:
        raise DecodeError("sections of codec 'waterfill' are missing")
    frames = frame.sections[3] if is_fast else memoryview(b"")
    coder: Coder = "fast" if is_fast else "range"
    return StreamReader(coder, frame.sections[1], frame.sections[2], frames)


def _read_coefficients(
    head: header.Header, shape: PlaneShape, basis: Basis, reader: StreamReader
) -> tuple[npt.NDArray[np.float32], Ints]:
    """Return coefficients (S, N * r), and the planes that its columns are."""
    num_rows = head.num_rows or shape.num_channels
    groups = frequency_groups(basis, shape, num_rows)
    num_groups = int(groups.max()) + 1
    model = EnergyModel.read(reader, shape.num_samples, num_rows, num_groups)
    energies = model.of_planes()
    order = np.argsort(-energies.astype(np.int16), kind="stable")
    classes = EnergyClasses(model.frequencies[groups], energies[order], head.offset)
    return classes.join(_read_values(reader, classes, head.step)), order


def _read_rotation(
    head: header.Header,
    shape: PlaneShape,
    frame: Frame,
    reader: StreamReader,
    memory: Memory,
) -> tuple[klt.Rotation | None, bool]:
    num_channels = shape.num_channels
    if not head.flags & header.ROTATED:
        if head.num_rows:
            raise DecodeError("rows of a channel basis where there is none")
        return None, False
    if not 1 <= head.num_rows <= num_channels <= klt.MAX_CHANNELS:
        raise DecodeError(
            f"{head.num_rows} rows of a channel basis for {num_channels} channels (at "
            f"most {klt.MAX_CHANNELS})"
        )
    if head.flags & header.REUSED:
        old = klt.stored_rotation(memory)
        if old is None or old.fingerprint() != head.fingerprint:
            raise DecodeError(
                "the frame needs a channel basis that was not received; start both "
                "sides with an empty memory"
            )
        if old.codes.shape[1] != num_channels or len(old.codes) < head.num_rows:
            raise DecodeError("the channel basis in memory does not fit the frame")
        return old, False
    if not klt.is_allowed(head.num_rows, num_channels, frame.num_elements):
        raise DecodeError("a channel basis larger than the tensor")
    rotation = klt.Rotation.read(reader, head.num_rows, num_channels)
    if rotation.fingerprint() != head.fingerprint:
        raise DecodeError("the channel basis has another fingerprint than it claims")
    return rotation, True


def _read_basis(text: str, shape: PlaneShape) -> Basis:
    try:
        basis = parse_basis(text)
        basis.num_levels(*(shape.sizes or (1,)))
    except SettingError as error:
        raise DecodeError(f"the spatial basis is not valid: {error}") from error
    return basis


def _read_values(
    reader: StreamReader, classes: EnergyClasses, step: float
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield the coefficients of each class at their centroids."""
    present = np.flatnonzero(classes.counts)
    shifts = np.cumsum(reader.stream(len(present), LARGE).astype(np.int64))
    if np.abs(shifts).max() > CENTROID_UNIT:
        raise DecodeError("a centroid of codec 'waterfill' is out of range")
    counts = [(number, classes.counts[number]) for number in present.tolist()]
    all_levels = _read_levels(reader, counts)
    for (number, _), shift, levels in zip(counts, shifts, all_levels, strict=True):
        # A crafted step may overflow; `denormalize` finds what is not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            taken = np.float32(shift / CENTROID_UNIT) * np.float32(step)
        values = np.empty(levels.size, np.float32)
        kernels().to_values(levels, step, float(taken), values)
        yield number, values
