"""The header of a Waterfill frame, checked when read."""

import math
import struct
from dataclasses import dataclass

from flwr_slfac.errors import DecodeError

# Of the sections of this codec; another layout takes the next number.
_LAYOUT = 2
_FIXED = struct.Struct("<BBfhhHB")
# Bits of the flags, all others zero.
ZERO, NONNEGATIVE, MEAN, ROTATED, REUSED, WEIGHTED, TRELLIS = 1, 2, 4, 8, 16, 32, 64
_ALL_FLAGS = 127
# Beyond the range of float64 with its subnormals, 2**-1074 to 2**1024: only crafted.
_MAX_EXPONENT = 1100


@dataclass(frozen=True)
class Header:
    """What precedes the streams.

    Parameters
    ----------
    flags : int
        Sum of `ZERO` (no energy: nothing follows), `NONNEGATIVE` (clamp at zero),
        `MEAN` (the mean of the samples is in sample 0), `ROTATED` (channels have a
        basis), `REUSED` (the one in memory), `WEIGHTED` (frequencies were weighted)
        and `TRELLIS` (the coder "best").
    step : float
        Quantization step, of the tensor divided by ``2**exponent``.
    exponent : int
        See `step`.
    offset : int
        From half units of energy to classes, see `class_offset`.
    num_rows : int
        Rows of the channel basis, 0 without one.
    basis : str
        Spatial basis.
    fingerprint : bytes
        4 bytes that tell the channel basis from others.
    weights : bytes
        Packed `Weights`.
    """

    flags: int
    step: float = 0.0
    exponent: int = 0
    offset: int = 0
    num_rows: int = 0
    basis: str = ""
    fingerprint: bytes = b""
    weights: bytes = b""

    @property
    def is_trellis(self) -> bool:
        """Whether the coder is "best"."""
        return bool(self.flags & TRELLIS)

    @property
    def brings_rotation(self) -> bool:
        """Whether a channel basis is among the streams."""
        return self.flags & (ROTATED | REUSED) == ROTATED

    def pack(self) -> bytes:
        """Return the header section."""
        if self.flags & ZERO:
            return bytes([_LAYOUT, self.flags])
        fixed = _FIXED.pack(
            _LAYOUT,
            self.flags,
            self.step,
            self.exponent,
            self.offset,
            self.num_rows,
            len(self.basis),
        )
        name = self.basis.encode("ascii")
        return fixed + name + self.fingerprint + self.weights

    @classmethod
    def unpack(cls, section: memoryview) -> "Header":
        """Check the header section, or raise DecodeError."""
        if len(section) < 2 or section[0] != _LAYOUT:
            raise DecodeError(
                f"layout {bytes(section[:1]).hex() or 'none'} of codec 'waterfill' is "
                f"not known here (known: {_LAYOUT:02}); run the same release of "
                "flwr-slfac on both sides"
            )
        flags = section[1]
        if flags & ZERO:
            if len(section) != 2 or flags != ZERO:
                raise DecodeError("a zero tensor has nothing after its head")
            return cls(flags)
        if len(section) < _FIXED.size:
            raise DecodeError("the head of codec 'waterfill' ends early")
        _, _, step, exponent, offset, num_rows, length = _FIXED.unpack_from(section)
        rest = bytes(section[_FIXED.size :])
        end = length + (4 if flags & ROTATED else 0)
        # What is weighted is coded by the DCT.
        is_whole = (
            len(rest) > end and length == 0 if flags & WEIGHTED else len(rest) == end
        )
        if not is_whole or flags > _ALL_FLAGS:
            raise DecodeError("the head of codec 'waterfill' has a wrong length")
        if not (math.isfinite(step) and step > 0) or abs(exponent) > _MAX_EXPONENT:
            raise DecodeError("the step of codec 'waterfill' is out of range")
        try:
            basis = rest[:length].decode("ascii")
        except UnicodeDecodeError as error:
            raise DecodeError("the basis name is not ASCII") from error
        fixed = flags, step, exponent, offset, num_rows
        return cls(*fixed, basis, rest[length:end], rest[end:])
