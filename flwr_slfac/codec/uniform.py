"""k-bit uniform quantization between a minimum and a maximum, per tensor or channel.

A grid is its two ends, on the wire in the tensor's own dtype, so both are exact. A
value becomes the number of its nearest grid point::

    tensor --grid_ends--> lo, hi --grid_codes--> codes 0 .. 2**bits - 1 --pack_codes-->
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from flwr_slfac.codec.base import (
    Codec,
    Hints,
    Memory,
    as_bytes,
    from_bytes,
    register,
)
from flwr_slfac.codec.packing import pack_fields, unpack_fields
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError, SettingError

Per = Literal["tensor", "channel"]
_PERS: tuple[Per, ...] = get_args(Per)
_MAX_BITS = 16
_WORD_BITS = 64
# Widths whose packing is a plain copy.
_WHOLE_BYTES = {8: "<u1", 16: "<u2"}


@register
@dataclass(frozen=True)
class Uniform(Codec):
    """Min-max linear quantization to `bits` bits, rounding to nearest.

    The plain quantizer that the literature compares with. The error is at most 0.51
    steps, a step being ``(max - min) / (2**bits - 1)`` of the tensor or channel, plus
    two units in the last place of the largest magnitude; the extremes are exact.

    Parameters
    ----------
    bits : int, default 8
        1 to 16 bits a value.
    per : {"tensor", "channel"}, default "tensor"
        What shares one range. Channels are dimension 1 of ``(N, C, H, W)`` and
        ``(N, D)``, the last of ``(N, T, D)``; vectors and scalars are one channel.
        Each range costs two values of the tensor's dtype.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> decode(encode(torch.tensor([0.0, 0.4, 1.0]), Uniform(bits=1)))
    tensor([0., 0., 1.])
    """

    codec_id: ClassVar[str] = "uniform"
    bits: int = 8
    per: Per = "tensor"

    def __post_init__(self) -> None:
        require_bits(self.bits, 1, _MAX_BITS)
        if self.per not in _PERS:
            raise SettingError(f"per is {self.per!r}; give 'tensor' or 'channel'")

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Return bits and grouping, the grids' ends, the packed codes."""
        if tensor.numel() == 0:
            return []
        lo, hi = grid_ends(tensor, self.per)
        codes = grid_codes(tensor, lo, hi, 2**self.bits - 1)
        ends = as_bytes(torch.stack([lo, hi]))
        header = bytes([self.bits, _PERS.index(self.per)])
        return [header, ends, pack_codes(codes, self.bits)]

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Return the grid points."""
        if frame.num_elements == 0:
            return decode_empty(frame, device)
        header, ends, packed = some_sections(frame, 3)
        if header.nbytes != 2 or not 1 <= header[0] <= _MAX_BITS or header[1] > 1:
            raise DecodeError(f"codec 'uniform' has no header {bytes(header)!r}")
        bits, per = header[0], _PERS[header[1]]
        shape = _ends_shape(frame.shape, per)
        lo, hi = from_bytes(ends, frame.dtype, (2, *shape), device)
        require_finite_ends(lo, hi)
        codes = unpack_codes(packed, bits, frame.num_elements, device)
        return grid_points(codes.reshape(frame.shape), lo, hi, 2**bits - 1)


def require_bits(bits: int, low: int, high: int) -> None:
    """Raise SettingError unless `bits` is a whole number in range."""
    if type(bits) is not int or not low <= bits <= high:
        raise SettingError(f"bits is {bits!r}; give a whole number {low} to {high}")


def some_sections(frame: Frame, number: int) -> tuple[memoryview, ...]:
    """Return a frame's sections, or raise DecodeError if there are not `number`."""
    if len(frame.sections) != number:
        raise DecodeError(
            f"{len(frame.sections)} sections in a frame of codec {frame.codec_id!r}, "
            f"not {number}"
        )
    return frame.sections


def decode_empty(frame: Frame, device: torch.device) -> torch.Tensor:
    """Return the empty tensor of a frame, which has no section."""
    some_sections(frame, 0)
    return torch.empty(frame.shape, dtype=frame.dtype, device=device)


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def channel_dim(num_dims: int) -> int | None:
    """Return the dimension of channels or features, None for one channel in all."""
    if num_dims < 2:
        return None
    return 2 if num_dims == 3 else 1


def _ends_shape(shape: Sequence[int], per: Per) -> tuple[int, ...]:
    kept = channel_dim(len(shape)) if per == "channel" else None
    return tuple(size if dim == kept else 1 for dim, size in enumerate(shape))


def grid_ends(tensor: torch.Tensor, per: Per) -> tuple[torch.Tensor, torch.Tensor]:
    """Return minimum and maximum, keeping dimensions, of each tensor or channel."""
    kept = channel_dim(tensor.ndim) if per == "channel" else None
    dims = [dim for dim in range(tensor.ndim) if dim != kept]
    # Adding 0 makes -0 to 0: which of them is the minimum depends on the threads.
    return tensor.amin(dims, keepdim=True) + 0.0, tensor.amax(dims, keepdim=True) + 0.0


def grid_codes(
    tensor: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor, last: int
) -> torch.Tensor:
    """Return the number, 0 to `last`, of the grid point nearest to each value.

    The result is a float tensor of whole numbers; `lo` and `hi` broadcast.
    """
    dtype = work_dtype(tensor.dtype)
    x, lo, hi = tensor.to(dtype), lo.to(dtype), hi.to(dtype)
    overflows = torch.isinf(hi - lo)
    if overflows.any():
        half = torch.where(overflows, 0.5, 1.0).to(dtype)
        x, lo, hi = x * half, lo * half, hi * half
    span = hi - lo
    span = torch.where(span == 0, 1, span)
    # Dividing, not multiplying by 1 / span: a subnormal's reciprocal is infinite.
    return ((x - lo) / span).mul_(last).round_()


def grid_points(
    codes: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor, last: int
) -> torch.Tensor:
    """Return the grid point of each code, in the dtype of `lo`."""
    dtype = work_dtype(lo.dtype)
    # lo + part * (hi - lo) would overflow where hi - lo does.
    part = codes.to(dtype) / last
    points = (1 - part) * lo.to(dtype)
    return points.add_(part.mul_(hi.to(dtype))).to(lo.dtype)


def require_finite_ends(lo: torch.Tensor, hi: torch.Tensor) -> None:
    """Raise DecodeError unless a grid's ends are finite."""
    if not (torch.isfinite(lo).all() and torch.isfinite(hi).all()):
        raise DecodeError("a range on the wire is not finite")


def num_packed_bytes(num_codes: int, bits: int) -> int:
    """Return the length of `num_codes` packed codes."""
    return math.ceil(num_codes * bits / 8)


def pack_codes(codes: torch.Tensor, bits: int) -> memoryview:
    """Pack whole numbers in [0, 2**bits), of any dtype, without gaps, in C order."""
    if bits in _WHOLE_BYTES:
        whole = codes.reshape(-1).to("cpu", torch.int32).numpy()
        return whole.astype(_WHOLE_BYTES[bits]).view(np.uint8).data
    flat = codes.reshape(-1).to("cpu", torch.int64).numpy()
    per_word = _WORD_BITS // bits
    records = np.zeros((math.ceil(flat.size / per_word), per_word), dtype=np.int64)
    records.reshape(-1)[: flat.size] = flat
    packed = pack_fields([(records[:, i], bits) for i in range(per_word)])
    return packed[: num_packed_bytes(flat.size, bits)]


def unpack_codes(
    section: memoryview, bits: int, num_codes: int, device: torch.device
) -> torch.Tensor:
    """Undo `pack_codes` to int64 (num_codes,), or raise DecodeError."""
    length = num_packed_bytes(num_codes, bits)
    if section.nbytes != length:
        raise DecodeError(
            f"{section.nbytes} bytes for {num_codes} codes of {bits} bits, not {length}"
        )
    if bits in _WHOLE_BYTES:
        whole = np.frombuffer(section, _WHOLE_BYTES[bits]).astype(np.int64)
        return torch.from_numpy(whole).to(device)
    per_word = _WORD_BITS // bits
    num_words = math.ceil(num_codes / per_word)
    padded = bytes(section).ljust(num_packed_bytes(num_words * per_word, bits), b"\0")
    fields = unpack_fields(memoryview(padded), [bits] * per_word, num_words)
    flat = np.stack(fields, axis=1).reshape(-1)[:num_codes]
    return torch.from_numpy(flat).to(device)
