"""The frame: one tensor as self-describing bytes, checked before it is trusted.

Codecs make and read its sections; this module knows nothing of what is in them.

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

import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flwr_slfac.errors import DecodeError, EncodeError

__all__ = [
    "DEFAULT_MAX_ELEMENTS",
    "DTYPES",
    "MAGIC",
    "MAX_DIMS",
    "MAX_SECTIONS",
    "VERSION",
    "Frame",
    "as_bytes",
    "from_bytes",
    "pack_frame",
    "raw_num_bytes",
    "require_sections",
    "unpack_frame",
]

# Our choice: four bytes that tell a frame from other data at a glance.
MAGIC = b"SLFC"
# Of this layout; another layout takes the next number.
VERSION = 1
# Our choice: no layer's activation has more, and the header stays short.
MAX_DIMS = 8
# A limit of the format: their number is one byte.
MAX_SECTIONS = 255
# Our choice: a GiB of float32, far above a batch of smashed data.
DEFAULT_MAX_ELEMENTS = 2**28
_FIXED = struct.Struct("<4s5B")
_CHECKSUM = struct.Struct("<I")
# A limit of the format: sizes and lengths are 32 bits wide.
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
    """What a frame declares: who coded which tensor, and the coded sections.

    Parameters
    ----------
    codec_id : str
        Name of the codec, ASCII.
    dtype : torch.dtype
        Of the tensor, one of `DTYPES`.
    shape : tuple of int
        Of the tensor, at most `MAX_DIMS` sizes of 0 or more.
    sections : tuple of memoryview
        What the codec made, at most `MAX_SECTIONS`; hostile until the codec has checked
        it.
    samples : sequence of int, optional
        Not of the frame: which samples the rows are, as the receiver knows them.
    """

    codec_id: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    sections: tuple[memoryview, ...]
    samples: Sequence[int] | None = None

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

    Parameters
    ----------
    codec_id : str
        Name of the codec, ASCII, at most 255 characters.
    dtype : torch.dtype
        Of the tensor, one of `DTYPES`.
    shape : sequence of int
        Of the tensor, at most `MAX_DIMS` sizes below 2**32.
    sections : sequence of bytes-like
        At most `MAX_SECTIONS`, each below 4 GiB.

    Returns
    -------
    bytes
        Header, sections and checksum, see the module.

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

    Returns
    -------
    Frame
        Its sections are views of `data`.

    Raises
    ------
    DecodeError
        If any field is not what a frame of version 1 can hold.
    """
    view = memoryview(data).cast("B")
    dtype, ndim, id_length, num_sections = _unpack_fixed(view)
    table_start = _FIXED.size + id_length
    body_start = table_start + 4 * (ndim + num_sections)
    body_end = len(view) - _CHECKSUM.size
    if body_start > body_end:
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
    if body_start + sum(lengths) != body_end:
        raise DecodeError(
            f"the sections claim {sum(lengths)} bytes, {body_end - body_start} are here"
        )
    (checksum,) = _CHECKSUM.unpack_from(view, body_end)
    if zlib.crc32(view[:body_end]) != checksum:
        raise DecodeError("the checksum does not match: bytes were changed on the way")
    ends = list(itertools.accumulate(lengths, initial=body_start))
    sections = tuple(view[start:end] for start, end in itertools.pairwise(ends))
    return Frame(codec_id, dtype, shape, sections)


def _unpack_fixed(view: memoryview) -> tuple[torch.dtype, int, int, int]:
    """Return dtype, number of dimensions, length of the codec id, and of sections."""
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
    return DTYPES[dtype_code], ndim, id_length, num_sections


def require_sections(frame: Frame, number: int) -> tuple[memoryview, ...]:
    """Return a frame's sections.

    Raises
    ------
    DecodeError
        If there are not `number`.
    """
    if len(frame.sections) != number:
        raise DecodeError(
            f"{len(frame.sections)} sections in a frame of codec {frame.codec_id!r}, "
            f"not {number}"
        )
    return frame.sections


def raw_num_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of the tensor in float32, the base of compression ratios."""
    return 4 * tensor.numel()


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's elements in C order as bytes, copied to the CPU if needed."""
    if tensor.numel() == 0:
        # Its strides may be anything, which a view as bytes would not allow.
        return memoryview(b"")
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def from_bytes(
    section: memoryview,
    dtype: torch.dtype,
    shape: Sequence[int],
    device: torch.device,
) -> torch.Tensor:
    """Copy bytes into a new tensor.

    Parameters
    ----------
    section : memoryview
        Elements in C order, little-endian.
    dtype, shape, device
        Of the tensor that is wanted.

    Raises
    ------
    DecodeError
        If the number of bytes is not that of dtype and shape.
    """
    if section.nbytes != math.prod(shape) * dtype.itemsize:
        raise DecodeError(
            f"{section.nbytes} bytes cannot fill shape {tuple(shape)} of {dtype}"
        )
    out = torch.empty(tuple(shape), dtype=dtype)
    if section.nbytes:
        out.reshape(-1).view(torch.uint8).numpy().data[:] = section
    if dtype is torch.bool:
        # Torch trusts a boolean's byte to be 0 or 1.
        out = out.view(torch.uint8) != 0
    return out.to(device)
