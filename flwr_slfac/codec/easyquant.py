"""EasyQuant: linear quantization whose scale maximises the cosine similarity."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from flwr_slfac.codec.base import Codec, Hints, Memory, register
from flwr_slfac.codec.magnitude import (
    BIN_CENTERS,
    BITS,
    Array,
    decode_magnitudes,
    encode_magnitudes,
    magnitude_counts,
)
from flwr_slfac.codec.uniform import decode_empty, require_bits, work_dtype
from flwr_slfac.codec.wire import Frame

# Scales are 32nds of the scale at which the largest magnitude just fits.
_PARTS = 32
_SCALES = range(_PARTS // 2, 2 * _PARTS + 1)


@register
@dataclass(frozen=True)
class EasyQuant(Codec):
    """Symmetric linear quantization with a searched scale; what exceeds it saturates.

    Wu et al., EasyQuant: Post-training Quantization via Scale Optimization, 2020: the
    scale is searched in an interval around ``last / max|x|`` by the cosine similarity
    of the tensor before and after. Our reading: the interval is [0.5, 2] times that
    scale in steps of 1/32; one scale a tensor, searched at every call on a histogram
    of the magnitudes; there is no weight to optimise in turn; a tensor without negative
    values spends no sign.

    Values of at most the clipping level, which is never below ``max|x| / 2``, err by
    at most ``max|x| / last``, larger ones by at most ``max|x| / 2`` or that, where
    `last` is ``2**(bits - 1) - 1``, or ``2**bits - 1`` without negative values; plus
    two units in the last place of the largest magnitude.

    Parameters
    ----------
    bits : int, default 8
        2 to 8 bits a value.
    """

    codec_id: ClassVar[str] = "easyquant"
    bits: int = 8

    def __post_init__(self) -> None:
        require_bits(self.bits, BITS[0], BITS[-1])

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Return bits, sign and scale, the largest magnitude, the packed codes."""
        return encode_magnitudes(tensor, self.bits, _quantize)

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Multiply each code by its step."""
        if frame.num_elements == 0:
            return decode_empty(frame, device)
        found = decode_magnitudes(frame, cls.codec_id, _SCALES, device)
        codes, last, scale = found.codes, found.last, found.searched
        dtype = work_dtype(frame.dtype)
        if found.signed:
            codes -= last
        # At a small scale the last code stands for more than the largest magnitude.
        unit = codes.to(dtype).div_(last * scale / _PARTS).clamp_(-1, 1)
        return unit.mul_(found.largest.to(dtype)).to(frame.dtype).reshape(frame.shape)


def _quantize(unit: torch.Tensor, last: int) -> tuple[int, torch.Tensor]:
    scale = best_scale(magnitude_counts(unit), last)
    return scale, unit.mul_(last * scale / _PARTS).round_().clamp_(max=last)


def best_scale(counts: Array, last: int) -> int:
    """Return the scale, in 32nds, whose cosine similarity over the counts is most."""

    def similarity(scale: int) -> float:
        levels = _levels(last, scale)
        norm = float((counts * levels * levels).sum()) ** 0.5
        return float((counts * levels * BIN_CENTERS).sum()) / norm if norm else 0.0

    # Equal ones: the nearest to the scale at which everything just fits.
    return max(sorted(_SCALES, key=lambda scale: abs(scale - _PARTS)), key=similarity)


@lru_cache(maxsize=256)
def _levels(last: int, scale: int) -> Array:
    """Return the magnitude that each bin's center is quantized to."""
    step = _PARTS / (last * scale)
    return np.minimum(np.minimum(np.rint(BIN_CENTERS / step), last) * step, 1.0)
