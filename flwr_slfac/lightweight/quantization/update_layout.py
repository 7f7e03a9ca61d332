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

import torch

from flwr_slfac.codec.wire import as_bytes
from flwr_slfac.errors import DivergedError
from flwr_slfac.states import State

FRAME_ID = "qsgd-update"
# Header, modes, scales, codes and exact values.
NUM_SECTIONS = 5
HEADER = struct.Struct("<BHI")
# How a tensor travels: its byte among the modes.
UNCHANGED, EXACT, QUANTIZED = range(3)
# A scale rounded up to bfloat16, of 8 significant bits, grows by less than this factor.
SCALE_SLACK = 1 + 2**-7


def fingerprint_of(reference: State) -> int:
    """Return the CRC-32 of names, dtypes, shapes and values, in the state's order."""
    checksum = 0
    for name, tensor in reference.items():
        layout = f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/"
        checksum = zlib.crc32(layout.encode(), checksum)
        checksum = zlib.crc32(as_bytes(tensor), checksum)
    return checksum


def rounded_up(scales: torch.Tensor) -> torch.Tensor:
    """Return scales in bfloat16, none below the given one.

    Parameters
    ----------
    scales : Tensor
        float32 or float64, at least 0.

    Raises
    ------
    DivergedError
        If one is above the largest bfloat16.
    """
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


def work_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype that an update of this tensor is computed in, on both sides."""
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32
