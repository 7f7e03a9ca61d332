"""EasyQuant: linear quantization whose scale maximises the cosine similarity."""

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

# In 32nds of the scale at which the largest magnitude just fits: [0.5, 2] of it. Our
# choice: at 2, what is above half the largest magnitude saturates; at 0.5 half of the
# codes are idle, so beyond either end the similarity only falls.
_SCALES = range(PARTS // 2, 2 * PARTS + 1)


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

    Raises
    ------
    SettingError
        If `bits` is out of range.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> x = torch.linspace(-1, 1, 101)
    >>> bool((decode(encode(x, EasyQuant(bits=8))) - x).abs().max() < 0.01)
    True
    """

    codec_id: ClassVar[str] = "easyquant"
    skips_empty: ClassVar[bool] = True
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
        """Multiply each code by its step, or raise DecodeError."""
        found = decode_magnitudes(frame, cls.codec_id, _SCALES, device)
        codes, last, scale = found.codes, found.last, found.parameter
        dtype = work_dtype(frame.dtype)
        if found.signed:
            codes -= last
        # At a small scale the last code stands for more than the largest magnitude.
        unit = codes.to(dtype).div_(last * scale / PARTS).clamp_(-1, 1)
        return unit.mul_(found.largest.to(dtype)).to(frame.dtype).reshape(frame.shape)


def _quantize(unit: torch.Tensor, last: int) -> tuple[int, torch.Tensor]:
    scale = _best_scale(magnitude_counts(unit), last)
    return scale, unit.mul_(last * scale / PARTS).round_().clamp_(max=last)


def _best_scale(counts: Array, last: int) -> int:
    """Return the scale, in 32nds, whose cosine similarity over the counts is most."""

    def similarity(scale: float) -> float:
        levels = _levels(last, int(scale))
        weighted = counts * levels
        norm = float((weighted * levels).sum()) ** 0.5
        product = float((weighted * BIN_CENTERS).sum())
        return product / norm if norm else 0.0

    # Of equal ones the nearest to the scale at which everything just fits.
    nearest_first = sorted(_SCALES, key=lambda scale: abs(scale - PARTS))
    return int(search_grid(nearest_first, similarity))


@lru_cache(maxsize=256)
def _levels(last: int, scale: int) -> Array:
    """Return the magnitude that each bin's center is quantized to."""
    step = PARTS / (last * scale)
    return np.minimum(np.minimum(np.rint(BIN_CENTERS / step), last) * step, 1.0)
