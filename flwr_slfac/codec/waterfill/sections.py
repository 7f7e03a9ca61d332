"""The sections of a Waterfill frame: how each is laid out, and checked when read.

::

    0  header        layout, flags, step, scale, basis
    1  parameters    scales, centroids, and the model of each stream
    2  words         all symbols of streams, see `words`

With coder "best", where it pays, the header and one section more, see `trellis`.
A tensor without energy has the header alone.
"""

from dataclasses import replace

import torch

from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.kernels import kernels
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import Basis, parse_basis
from flwr_slfac.codec.waterfill import header, klt
from flwr_slfac.codec.waterfill.digits import Ints
from flwr_slfac.codec.waterfill.energies import (
    class_offset,
    frequency_groups,
    num_groups,
)
from flwr_slfac.codec.waterfill.frame_streams import (
    Coefficients,
    ListReader,
    read_at_once,
    read_one_by_one,
    write_streams,
)
from flwr_slfac.codec.waterfill.levels import Quantized
from flwr_slfac.codec.waterfill.normalize import Normalization, denormalize
from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.codec.waterfill.stream_reader import StreamReader
from flwr_slfac.codec.waterfill.streams import Coder
from flwr_slfac.codec.waterfill.transform import Transform
from flwr_slfac.codec.waterfill.trellis import TrellisReader, encode_like
from flwr_slfac.codec.waterfill.weights import Weights
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError, SettingError

_Reader = StreamReader | ListReader | TrellisReader
# Of a section, in the frame.
LENGTH_BYTES = 4


def zero_sections() -> list[bytes]:
    """Return the sections of a tensor of zeros, or of none."""
    return [header.Header(header.ZERO).pack()]


def write_sections(
    plan: Plan,
    quantized: Quantized,
    normalization: Normalization,
    coder: Coder,
    weights: Weights | None = None,
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
    coder : {"range", "best"}
        Of the levels; "best" where that is smaller.
    weights : Weights, optional
        Of which the planes are weighted spectra.

    Returns
    -------
    list of bytes
        Header, parameters and words.
    """
    if coder == "best":
        sections = write_sections(plan, quantized, normalization, "range", weights)
        return _with_trellis(sections, plan, quantized)
    flags, lists, fingerprint = _rotation_streams(plan.channels)
    flags |= header.NONNEGATIVE if normalization.is_nonnegative else 0
    flags |= header.MEAN if plan.transform.has_mean else 0
    flags |= header.WEIGHTED if weights is not None else 0
    head = header.Header(
        flags,
        quantized.step,
        normalization.exponent,
        class_offset(quantized.step),
        plan.transform.num_rows if flags & header.ROTATED else 0,
        "" if weights is not None else str(plan.transform.basis),
        fingerprint,
        b"" if weights is None else weights.pack(),
    )
    return [head.pack(), *write_streams(lists, plan, quantized)]


def _with_trellis(
    sections: list[bytes], plan: Plan, quantized: Quantized
) -> list[bytes]:
    """Return the sections of the same by the coder "best", if they are smaller."""
    lists = _rotation_streams(plan.channels)[1]
    found = encode_like(plan, quantized, lists)
    if found is None:
        return sections
    step, data = found
    head = header.Header.unpack(memoryview(sections[0]))
    flags, offset = head.flags | header.TRELLIS, class_offset(step)
    head = replace(head, flags=flags, step=step, offset=offset)
    is_smaller = len(data) < sum(map(len, sections[1:])) + LENGTH_BYTES
    return [head.pack(), data] if is_smaller else sections


def _rotation_streams(
    channels: klt.ChannelTransform,
) -> tuple[int, list[Ints], bytes]:
    """Return flags of the channel basis, its lists if it is new, its fingerprint."""
    rotation = channels.rotation
    if rotation is None:
        return 0, [], b""
    if not channels.is_new:
        return header.ROTATED | header.REUSED, [], rotation.fingerprint()
    return header.ROTATED, rotation.lists(), rotation.fingerprint()


def read_sections(frame: Frame, memory: Memory, device: torch.device) -> torch.Tensor:
    """Undo `write_sections` and the transform.

    Raises
    ------
    DecodeError
        If a section is not valid, or needs a basis that `memory` does not hold.
    """
    if not 1 <= len(frame.sections) <= 3:
        raise DecodeError(f"{len(frame.sections)} sections in codec 'waterfill'")
    head = header.Header.unpack(frame.sections[0])
    if head.flags & header.ZERO:
        return torch.zeros(frame.shape, dtype=frame.dtype, device=device)
    _require_streams(head, frame)
    shape = PlaneShape.of(frame.shape)
    reader = _reader(head, frame) if head.brings_rotation else None
    rotation, is_new = _read_rotation(head, shape, frame, reader, memory)
    matrix = None if rotation is None else rotation.matrix(device)[: head.num_rows]
    weights = None
    if head.flags & header.WEIGHTED:
        weights = Weights.unpack(head.weights, shape.sizes)
    basis = _read_basis("dct" if weights else head.basis, shape)
    coefficients, order = _read_coefficients(head, shape, basis, frame, reader)
    transform = Transform(shape, basis, matrix, bool(head.flags & header.MEAN), order)
    clamps = bool(head.flags & header.NONNEGATIVE)
    values = torch.from_numpy(coefficients).to(device)
    if weights is not None:
        values.mul_(weights.scales(shape, undo=True)[:, None].to(device))
    rows = transform.inverse_rows(values, is_nonnegative=clamps)
    # As large as the tensor: not to be kept while channels are turned back.
    del coefficients, values
    planes = transform.unrotate(rows, is_nonnegative=clamps)
    result = denormalize(planes, head.exponent, shape, frame)
    if rotation is not None and is_new:
        rotation.store(memory)
    return result


def _require_streams(head: header.Header, frame: Frame) -> None:
    num_sections = 2 if head.is_trellis else 3
    if len(frame.sections) != num_sections or frame.num_elements == 0:
        raise DecodeError("sections of codec 'waterfill' are missing")


def _reader(head: header.Header, frame: Frame) -> _Reader:
    if head.is_trellis:
        return TrellisReader(frame.sections[1])
    loops = kernels().frames
    if loops is not None:
        return ListReader(loops, *frame.sections[1:])
    return StreamReader(*frame.sections[1:])


def _read_coefficients(
    head: header.Header,
    shape: PlaneShape,
    basis: Basis,
    frame: Frame,
    reader: _Reader | None,
) -> Coefficients:
    """Return coefficients (S, N * r), and the planes that its columns are."""
    num_rows = head.num_rows or shape.num_channels
    groups = frequency_groups(basis, shape, num_rows)
    sizes = shape.num_samples, num_rows, num_groups(shape, num_rows)
    if head.is_trellis and reader is None:
        reader = TrellisReader(frame.sections[1])
    if isinstance(reader, TrellisReader):
        told = basis, shape, groups, head.offset, head.step
        return reader.coefficients(sizes, *told)
    if not isinstance(reader, StreamReader):
        lists = reader.sizes if reader else []
        found = read_at_once(
            frame.sections[1:], lists, sizes, groups, head.offset, head.step
        )
        if found is not None:
            return found
    if not isinstance(reader, StreamReader):
        reader = StreamReader(*frame.sections[1:])
    return read_one_by_one(reader, sizes, groups, head.offset, head.step)


def _read_rotation(
    head: header.Header,
    shape: PlaneShape,
    frame: Frame,
    reader: _Reader | None,
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
    if reader is None:
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
