"""What PowerQuant and EasyQuant share: a frame, and a histogram on which they search.

::

    tensor --> sign, largest magnitude, magnitudes in [0, 1]
                 magnitudes --histogram--> search of one parameter --> codes
    bytes  <-- bits, sign and parameter, a byte each; the largest magnitude; the codes

Counts are integers, so the search's answer does not depend on the order of sums: the
same on any number of threads. Bins are even in the square root of the magnitude, which
resolves small values where bell-shaped data has most of its mass.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import work_dtype
from flwr_slfac.codec.minmax import require_finite_ends
from flwr_slfac.codec.packing import pack_codes, unpack_codes
from flwr_slfac.codec.wire import Frame, as_bytes, from_bytes, require_sections
from flwr_slfac.errors import DecodeError

# Below 2 bits a sign leaves no level but zero; above 8, a search gains little over a
# linear grid (our choice).
BITS = range(2, 9)
# Parameters are 32nds, so that one byte holds those of both grids (our choice).
PARTS = 32
_HEADER = struct.Struct("<3B")
# Our choice: 32 bins for each of the 255 levels of 8 bits.
NUM_BINS = 8192
Array: TypeAlias = npt.NDArray[np.float64]

# Magnitude that stands for each bin, in (0, 1).
BIN_CENTERS: Array = np.square((np.arange(NUM_BINS) + 0.5) / NUM_BINS)

# From magnitudes in [0, 1] and the last code to the parameter found and their codes.
Quantizer = Callable[[torch.Tensor, int], tuple[int, torch.Tensor]]


def magnitude_counts(unit: torch.Tensor) -> Array:
    """Count magnitudes in [0, 1] per bin."""
    bins = (unit.sqrt() * NUM_BINS).to(torch.int32).clamp_(max=NUM_BINS - 1)
    counts = torch.bincount(bins.reshape(-1), minlength=NUM_BINS)
    return counts.to("cpu").numpy().astype(np.float64)


def encode_magnitudes(
    tensor: torch.Tensor, bits: int, quantizer: Quantizer
) -> Sequence[bytes | memoryview]:
    """Return the sections of a tensor that is not empty, coded by a quantizer."""
    signed = bool((tensor < 0).any())
    last = _last_code(bits, signed=signed)
    largest = tensor.abs().amax()
    dtype = work_dtype(tensor.dtype)
    unit = tensor.abs().to(dtype) / (largest.to(dtype) if largest > 0 else 1)
    parameter, codes = quantizer(unit, last)
    if signed:
        codes = torch.where(tensor < 0, last - codes, last + codes)
    header = _HEADER.pack(bits, signed, parameter)
    return [header, as_bytes(largest), pack_codes(codes, bits)]


@dataclass(frozen=True)
class Magnitudes:
    """The sections of a frame that is not empty, checked.

    Parameters
    ----------
    signed : bool
        Whether codes carry a sign: 0 to ``2 * last``, `last` for zero.
    parameter : int
        What the encoder found.
    last : int
        The last code of a magnitude.
    largest : Tensor ()
        What it stands for, in the frame's dtype.
    codes : Tensor
        One a value; may exceed what the encoder writes.
    """

    signed: bool
    parameter: int
    last: int
    largest: torch.Tensor
    codes: torch.Tensor


def decode_magnitudes(
    frame: Frame, codec_id: str, grid: range, device: torch.device
) -> Magnitudes:
    """Read what `encode_magnitudes` made.

    Raises
    ------
    DecodeError
        If a section is not valid, or the parameter is not on the grid.
    """
    header, largest_bytes, packed = require_sections(frame, 3)
    if header.nbytes != _HEADER.size:
        raise DecodeError(f"codec {codec_id!r} has no header {bytes(header)!r}")
    bits, signed, parameter = _HEADER.unpack(header)
    if bits not in BITS or signed > 1 or parameter not in grid:
        raise DecodeError(f"codec {codec_id!r} has no header {bytes(header)!r}")
    largest = from_bytes(largest_bytes, frame.dtype, (), device)
    require_finite_ends(largest, largest)
    codes = unpack_codes(packed, bits, frame.num_elements, device)
    last = _last_code(bits, signed=bool(signed))
    return Magnitudes(bool(signed), parameter, last, largest, codes)


def _last_code(bits: int, *, signed: bool) -> int:
    """Return the last code of magnitudes; a sign, where there is one, takes a bit."""
    return int(2 ** (bits - 1) - 1 if signed else 2**bits - 1)
