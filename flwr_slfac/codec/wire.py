"""The frame: one tensor as self-describing bytes, checked before it is trusted.

Little-endian layout, version 1::

    offset  bytes    field
    0       4        magic, b"SLFC"
    4       1        version of this layout
    5       1        dtype of the tensor (index into DTYPES)
    6       1        number of dimensions D, at most 8
    7       1        length L of the codec id
    8       1        number of sections S
    9       L        codec id, ASCII
            4 * D    shape
            4 * S    section lengths
            ...      sections, back to back
    end-4   4        CRC-32 of all bytes before it

The checksum finds accidents, not attackers: authentication is the transport's.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flwr_slfac.errors import DecodeError, EncodeError

MAGIC = b"SLFC"
VERSION = 1
MAX_DIMS = 8
MAX_SECTIONS = 255
_FIXED = struct.Struct("<4s5B")
_CHECKSUM = struct.Struct("<I")
_U32_MAX = 2**32 - 1

# The position is the wire's code for the dtype: append, never reorder.
DTYPES: tuple[torch.dtype, ...] = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)


@dataclass(frozen=True)
class Frame:
    """What a frame declares: who coded which tensor, and the coded sections."""

    codec_id: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    sections: tuple[memoryview, ...]

    @property
    def num_elements(self) -> int:
        """Number of elements of the declared tensor."""
        return math.prod(self.shape)


def pack_frame(
    codec_id: str,
    dtype: torch.dtype,
    shape: Sequence[int],
    sections: Sequence[bytes | memoryview],
) -> bytes:
    """Lay a coded tensor out as one frame.

    Raises
    ------
    EncodeError
        If the dtype is not on the wire, or a length does not fit its field.
    """
    if dtype not in DTYPES:
        raise EncodeError(
            f"dtype {dtype} has no code on the wire; convert the tensor to one of "
            + ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        )
    if len(sections) > MAX_SECTIONS:
        raise EncodeError(
            f"{len(sections)} sections do not fit a frame (at most {MAX_SECTIONS})"
        )
    if len(shape) > MAX_DIMS:
        raise EncodeError(
            f"a tensor of {len(shape)} dimensions does not fit a frame (at most "
            f"{MAX_DIMS}); flatten some of them"
        )
    lengths = [memoryview(s).nbytes for s in sections]
    if max([*shape, *lengths], default=0) > _U32_MAX:
        raise EncodeError("a dimension or a section is 4 GiB or more; send less")
    name = codec_id.encode("ascii")
    head = _FIXED.pack(
        MAGIC, VERSION, DTYPES.index(dtype), len(shape), len(name), len(sections)
    )
    table = struct.pack(f"<{len(shape) + len(sections)}I", *shape, *lengths)
    parts = [head, name, table, *sections]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join([*parts, _CHECKSUM.pack(checksum)])


def unpack_frame(data: bytes, *, max_elements: int) -> Frame:
    """Check a frame and take it apart without copying its sections.

    Parameters
    ----------
    data : bytes
        What `pack_frame` made, or anything at all.
    max_elements : int
        Largest number of elements the caller is ready to allocate.

    Raises
    ------
    DecodeError
        If any field is not what a frame of version 1 can hold.
    """
    view = memoryview(data).cast("B")
    if len(view) < _FIXED.size + _CHECKSUM.size:
        raise DecodeError(f"{len(view)} bytes are too few for a frame")
    magic, version, dtype_code, ndim, id_length, num_sections = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise DecodeError(f"not a frame: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise DecodeError(
            f"frame version {version} is not known here (known: {VERSION}); run the "
            "same release of flwr-slfac on both sides"
        )
    if dtype_code >= len(DTYPES):
        raise DecodeError(f"dtype code {dtype_code} is unknown")
    if ndim > MAX_DIMS:
        raise DecodeError(f"{ndim} dimensions, at most {MAX_DIMS} are allowed")
    table_start = _FIXED.size + id_length
    body_start = table_start + 4 * (ndim + num_sections)
    if body_start + _CHECKSUM.size > len(view):
        raise DecodeError("the frame ends inside its header")
    try:
        codec_id = bytes(view[_FIXED.size : table_start]).decode("ascii")
    except UnicodeDecodeError as error:
        raise DecodeError("the codec id is not ASCII") from error
    table = struct.unpack_from(f"<{ndim + num_sections}I", view, table_start)
    shape, lengths = table[:ndim], table[ndim:]
    # Without its zeros: torch computes strides for an empty tensor too, and overflows.
    num_elements = math.prod(size for size in shape if size)
    if num_elements > max_elements:
        raise DecodeError(
            f"the frame declares shape {shape}, {num_elements} elements; the limit is "
            f"{max_elements}"
        )
    body_end = len(view) - _CHECKSUM.size
    if body_start + sum(lengths) != body_end:
        raise DecodeError(
            f"the sections claim {sum(lengths)} bytes, {body_end - body_start} are here"
        )
    (checksum,) = _CHECKSUM.unpack_from(view, body_end)
    if zlib.crc32(view[:body_end]) != checksum:
        raise DecodeError("the checksum does not match: bytes were changed on the way")
    sections = []
    start = body_start
    for length in lengths:
        sections.append(view[start : start + length])
        start += length
    return Frame(codec_id, DTYPES[dtype_code], shape, tuple(sections))
