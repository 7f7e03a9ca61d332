"""How an update lies on the wire: one frame of `codec.wire` with a name of its own.

The frame's shape is the number of quantized values; its sections, little-endian::

    header   bits u8, bucket u16, fingerprint of the reference u32
    modes    one byte a tensor, in the reference's order: unchanged, exact, quantized
    scales   bfloat16, one a bucket, tensors end to end; a tensor begins a new bucket
    codes    `bits` bits a value, tensors end to end without gaps
    exact    new values in their own dtype, tensors end to end

The frame's codec id is not a codec's, so `codec.decode` refuses it.
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import accumulate

import torch

from flwr_slfac.codec.wire import Frame, as_bytes, from_bytes
from flwr_slfac.errors import DecodeError, DivergedError
from flwr_slfac.lightweight.quantization.qsgd import MAX_BITS, MIN_BITS
from flwr_slfac.states import State

FRAME_ID = "qsgd-update"
HEADER = struct.Struct("<BHI")
UNCHANGED, EXACT, QUANTIZED = range(3)
_CPU = torch.device("cpu")
# A scale rounded up to bfloat16 grows by less than this factor.
SCALE_SLACK = 1 + 2**-7


def read_header(frame: Frame, reference: State) -> tuple[int, int, bytes]:
    """Return bits, bucket and modes that fit the reference."""
    lengths = [section.nbytes for section in frame.sections]
    if frame.codec_id != FRAME_ID or lengths[:2] != [HEADER.size, len(reference)]:
        raise DecodeError("not a model update, or not one of this model")
    bits, bucket, fingerprint = HEADER.unpack(frame.sections[0])
    if len(lengths) != 5 or not MIN_BITS <= bits <= MAX_BITS or bucket == 0:
        raise DecodeError(f"no update has {bits} bits and buckets of {bucket}")
    if fingerprint != fingerprint_of(reference):
        raise DecodeError(
            "the update was taken against another model than the one given; keep the "
            "model that the device received until its update is here"
        )
    modes = bytes(frame.sections[1])
    for mode, tensor in zip(modes, reference.values(), strict=True):
        last = QUANTIZED if tensor.is_floating_point() else EXACT
        if mode > last:
            raise DecodeError(f"no tensor of {tensor.dtype} is sent in mode {mode}")
    return bits, bucket, modes


def exact_values(
    section: memoryview, reference: State, modes: bytes
) -> Iterator[torch.Tensor]:
    """Return the tensors that travelled exactly, in order, checked."""
    chosen = [t for t, m in zip(reference.values(), modes, strict=True) if m == EXACT]
    ends = list(accumulate((t.numel() * t.element_size() for t in chosen), initial=0))
    if section.nbytes != ends[-1]:
        raise DecodeError(f"{section.nbytes} bytes of exact values, not {ends[-1]}")
    values = []
    for old, start, end in zip(chosen, ends, ends[1:], strict=False):
        value = from_bytes(section[start:end], old.dtype, old.shape, _CPU)
        if old.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DecodeError("an exact value of the update is not finite")
        if old.dtype is torch.bool and value.view(torch.uint8).gt(1).any():
            raise DecodeError("a bool of the update is neither 0 nor 1")
        values.append(value)
    return iter(values)


def fingerprint_of(reference: State) -> int:
    """Return a checksum of names, dtypes, shapes and values."""
    checksum = 0
    for name, tensor in reference.items():
        layout = f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/"
        checksum = zlib.crc32(layout.encode(), checksum)
        checksum = zlib.crc32(as_bytes(tensor), checksum)
    return checksum


def rounded_up(scales: torch.Tensor) -> torch.Tensor:
    """Return scales in bfloat16, none below the given one."""
    bits = scales.to(torch.float32).view(torch.int32)
    # A float's upper half is its bfloat16: one more if anything was cut off.
    half = (bits >> 16) + ((bits & 0xFFFF) != 0)
    rounded = half.to(torch.int16).view(torch.bfloat16)
    # float64 may lie above its float32, and the largest float32 has none above it.
    low = rounded.to(scales.dtype) < scales
    rounded = (half + low).to(torch.int16).view(torch.bfloat16)
    if not bool(torch.isfinite(rounded).all()):
        raise DivergedError(
            f"a value of magnitude {float(scales.max()):g} is too large"
        )
    return rounded
