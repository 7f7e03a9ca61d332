"""PowerQuant: quantization that is uniform after a power of the magnitude."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from flwr_slfac.codec.base import Codec, Hints, Memory, work_dtype
from flwr_slfac.codec.magnitude import (
    BIN_CENTERS,
    BITS,
    PARTS,
    Array,
    decode_magnitudes,
    encode_magnitudes,
    magnitude_counts,
)
from flwr_slfac.codec.registry import register
from flwr_slfac.codec.search import search_grid
from flwr_slfac.codec.settings import require_bits
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError

# In 32nds, 1/4 to 1. Our choice: 1 is the linear grid, 1/4 puts most levels near zero,
# and smaller powers serve only tails heavier than those of smashed data.
_EXPONENTS = range(PARTS // 4, PARTS + 1)


@register
@dataclass(frozen=True)
class PowerQuant(Codec):
    """Quantize ``sign(x) |x|**a`` evenly, with the exponent that errs least.

    Yvinec et al., PowerQuant: Automorphism Search for Non-Uniform Quantization, ICLR
    2023: the automorphisms of the positive reals under multiplication are the powers,
    and the best one minimises the reconstruction error. Our reading: one exponent a
    tensor, searched at every call among 8/32, 9/32, ... 32/32 on a histogram of the
    magnitudes by squared error; a tensor without negative values spends no sign.

    The error is at most ``2 max|x| / last``, where `last` is ``2**(bits - 1) - 1``, or
    ``2**bits - 1`` without negative values, plus two units in the last place of it.

    Parameters
    ----------
    bits : int, default 8
        2 to 8 bits a value.

    Raises
    ------
    SettingError
        If `bits` is out of range.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> decode(encode(torch.tensor([0.0, 1.0, -1.0]), PowerQuant(bits=2)))
    tensor([ 0.,  1., -1.])
    """

    codec_id: ClassVar[str] = "powerquant"
    skips_empty: ClassVar[bool] = True
    bits: int = 8

    def __post_init__(self) -> None:
        require_bits(self.bits, BITS[0], BITS[-1])

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Return bits, sign and exponent, the scale, the packed codes."""
        return encode_magnitudes(tensor, self.bits, _quantize)

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Look the level of each code up, or raise DecodeError."""
        found = decode_magnitudes(frame, cls.codec_id, _EXPONENTS, device)
        codes, last = found.codes, found.last
        levels = _inverse_power(np.arange(last + 1) / last, found.parameter)
        if found.signed:
            levels = np.concatenate([-levels[:0:-1], levels])
        if int(codes.max()) >= levels.size:
            raise DecodeError(f"code {int(codes.max())} of {levels.size} levels")
        dtype = work_dtype(frame.dtype)
        table = torch.from_numpy(levels).to(device, dtype) * found.largest.to(dtype)
        return table.to(frame.dtype)[codes].reshape(frame.shape)


def _quantize(unit: torch.Tensor, last: int) -> tuple[int, torch.Tensor]:
    exponent = _best_exponent(magnitude_counts(unit), last)
    edges = torch.from_numpy(_inverse_power((np.arange(last) + 0.5) / last, exponent))
    return exponent, torch.bucketize(
        unit.contiguous(), edges.to(unit.device, unit.dtype)
    )


def _best_exponent(counts: Array, last: int) -> int:
    """Return the exponent, in 32nds, whose squared error over the counts is least."""

    def merit(exponent: float) -> float:
        errors = _squared_errors(last, int(exponent))
        return -float((counts * errors).sum())

    # Of equal ones the largest, which is nearest to linear.
    return int(search_grid(_EXPONENTS[::-1], merit))


@lru_cache(maxsize=128)
def _squared_errors(last: int, exponent: int) -> Array:
    """Return the squared error of each bin's center."""
    powered = BIN_CENTERS ** (exponent / PARTS)
    levels = _inverse_power(np.rint(powered * last) / last, exponent)
    return np.square(levels - BIN_CENTERS)


def _inverse_power(unit: Array, exponent: int) -> Array:
    """Undo the power: from the even grid back to magnitudes."""
    result: Array = unit ** (PARTS / exponent)
    return result
