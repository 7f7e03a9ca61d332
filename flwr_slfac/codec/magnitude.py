"""What PowerQuant and EasyQuant share: a frame, and a histogram on which they search.

Counts are integers, so the search's answer does not depend on the order of sums: the
same on any number of threads. Bins are even in the square root of the magnitude, which
resolves small values where bell-shaped data has most of its mass.

Sections: bits, sign and what was searched, a byte each; the largest magnitude; codes.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import as_bytes, from_bytes
from flwr_slfac.codec.uniform import (
    pack_codes,
    require_finite_ends,
    some_sections,
    unpack_codes,
    work_dtype,
)
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError

BITS = range(2, 9)
_HEADER = struct.Struct("<3B")
NUM_BINS = 8192
Array: TypeAlias = npt.NDArray[np.float64]

# Magnitude that stands for each bin, in (0, 1).
BIN_CENTERS: Array = np.square((np.arange(NUM_BINS) + 0.5) / NUM_BINS)


def magnitude_counts(unit: torch.Tensor) -> Array:
    """Count magnitudes in [0, 1] per bin."""
    bins = (unit.sqrt() * NUM_BINS).to(torch.int32).clamp_(max=NUM_BINS - 1)
    counts = torch.bincount(bins.reshape(-1), minlength=NUM_BINS)
    return counts.to("cpu").numpy().astype(np.float64)


def symmetric_last(bits: int, *, signed: bool) -> int:
    """Return the last code of magnitudes; a sign, where there is one, takes a bit."""
    return int(2 ** (bits - 1) - 1 if signed else 2**bits - 1)


def with_sign(codes: torch.Tensor, tensor: torch.Tensor, last: int) -> torch.Tensor:
    """Fold the sign of `tensor` into magnitude codes: 0 to ``2 * last``."""
    return torch.where(tensor < 0, last - codes, last + codes)


# From magnitudes in [0, 1] and the last code to what was searched and their codes.
Quantizer = Callable[[torch.Tensor, int], tuple[int, torch.Tensor]]


def encode_magnitudes(
    tensor: torch.Tensor, bits: int, quantizer: Quantizer
) -> Sequence[bytes | memoryview]:
    """Return the sections of a tensor whose magnitudes a quantizer codes."""
    if tensor.numel() == 0:
        return []
    signed = bool((tensor < 0).any())
    last = symmetric_last(bits, signed=signed)
    largest = tensor.abs().amax()
    dtype = work_dtype(tensor.dtype)
    unit = tensor.abs().to(dtype) / (largest.to(dtype) if largest > 0 else 1)
    searched, codes = quantizer(unit, last)
    if signed:
        codes = with_sign(codes, tensor, last)
    header = _HEADER.pack(bits, signed, searched)
    return [header, as_bytes(largest), pack_codes(codes, bits)]


@dataclass(frozen=True)
class Magnitudes:
    """The sections of a frame that is not empty, checked.

    Parameters
    ----------
    signed : bool
        Whether codes carry a sign: 0 to ``2 * last``, `last` for zero.
    searched : int
        What the encoder searched.
    last : int
        The last code of a magnitude.
    largest : Tensor ()
        What it stands for, in the frame's dtype.
    codes : Tensor
        One a value; may exceed what the encoder writes.
    """

    signed: bool
    searched: int
    last: int
    largest: torch.Tensor
    codes: torch.Tensor


def decode_magnitudes(
    frame: Frame, codec_id: str, choices: range, device: torch.device
) -> Magnitudes:
    """Read what `encode_magnitudes` made.

    Raises
    ------
    DecodeError
        If a section is not valid, or what was searched is none of the choices.
    """
    header, largest_bytes, packed = some_sections(frame, 3)
    if header.nbytes != _HEADER.size:
        raise DecodeError(f"codec {codec_id!r} has no header {bytes(header)!r}")
    bits, signed, searched = _HEADER.unpack(header)
    if bits not in BITS or signed > 1 or searched not in choices:
        raise DecodeError(f"codec {codec_id!r} has no header {bytes(header)!r}")
    largest = from_bytes(largest_bytes, frame.dtype, (), device)
    require_finite_ends(largest, largest)
    codes = unpack_codes(packed, bits, frame.num_elements, device)
    last = symmetric_last(bits, signed=bool(signed))
    return Magnitudes(bool(signed), searched, last, largest, codes)
