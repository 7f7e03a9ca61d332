"""k-bit uniform quantization between a minimum and a maximum, per tensor or channel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from flwr_slfac.codec.base import Codec, Hints, Memory
from flwr_slfac.codec.layout import within_channel_dims
from flwr_slfac.codec.minmax import (
    grid_codes,
    grid_ends,
    grid_points,
    require_finite_ends,
)
from flwr_slfac.codec.packing import pack_codes, unpack_codes
from flwr_slfac.codec.registry import register
from flwr_slfac.codec.settings import require_bits
from flwr_slfac.codec.wire import Frame, as_bytes, from_bytes, require_sections
from flwr_slfac.errors import DecodeError, SettingError

Per = Literal["tensor", "channel"]
_PERS: tuple[Per, ...] = get_args(Per)
# Our choice: float16 takes no more, and codes stay exact in float32 arithmetic.
_MAX_BITS = 16


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

    Raises
    ------
    SettingError
        If a setting is out of range.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> decode(encode(torch.tensor([0.0, 0.4, 1.0]), Uniform(bits=1)))
    tensor([0., 0., 1.])
    """

    codec_id: ClassVar[str] = "uniform"
    skips_empty: ClassVar[bool] = True
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
        lo, hi = grid_ends(tensor, _sharing_dims(tensor.ndim, self.per))
        codes = grid_codes(tensor, lo, hi, 2**self.bits - 1)
        ends = as_bytes(torch.stack([lo, hi]))
        header = bytes([self.bits, _PERS.index(self.per)])
        return [header, ends, pack_codes(codes, self.bits)]

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Return the grid points, or raise DecodeError."""
        header, ends, packed = require_sections(frame, 3)
        if (
            header.nbytes != 2
            or not 1 <= header[0] <= _MAX_BITS
            or header[1] >= len(_PERS)
        ):
            raise DecodeError(f"codec 'uniform' has no header {bytes(header)!r}")
        bits, per = header[0], _PERS[header[1]]
        sharing = _sharing_dims(len(frame.shape), per)
        shape = [1 if d in sharing else size for d, size in enumerate(frame.shape)]
        lo, hi = from_bytes(ends, frame.dtype, (2, *shape), device)
        require_finite_ends(lo, hi)
        codes = unpack_codes(packed, bits, frame.num_elements, device)
        return grid_points(codes.reshape(frame.shape), lo, hi, 2**bits - 1)


def _sharing_dims(num_dims: int, per: Per) -> tuple[int, ...]:
    """Return the dimensions along which values share one range."""
    return within_channel_dims(num_dims) if per == "channel" else tuple(range(num_dims))
