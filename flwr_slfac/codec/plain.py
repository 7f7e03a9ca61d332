"""Codecs without a transform: exact, half precision, and narrowed integers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from flwr_slfac.codec.base import Codec, Context, Hints, Memory
from flwr_slfac.codec.finite import is_finite
from flwr_slfac.codec.registry import register
from flwr_slfac.codec.wire import (
    DTYPES,
    Frame,
    as_bytes,
    from_bytes,
    require_sections,
)
from flwr_slfac.errors import DecodeError, EncodeError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
# The position is the wire's code for the width: append, never reorder.
_WIDTHS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@register
@dataclass(frozen=True)
class Identity(Codec):
    """The tensor's own bytes: error 0, every dtype, NaN and infinity included.

    Our choice, as the reference that every other codec is compared with.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> decode(encode(torch.tensor([1, 2]), Identity()))
    tensor([1, 2])
    """

    codec_id: ClassVar[str] = "identity"
    context: ClassVar[Context] = "value"
    dtypes: ClassVar[tuple[torch.dtype, ...]] = DTYPES
    carries_nonfinite: ClassVar[bool] = True

    def encode_sections(self, tensor: torch.Tensor, hints: Hints) -> list[memoryview]:
        """Return the elements in C order."""
        return [as_bytes(tensor)]

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Copy the elements back, or raise DecodeError."""
        (elements,) = require_sections(frame, 1)
        return from_bytes(elements, frame.dtype, frame.shape, device)


class _Half(Codec):
    """Round to a 16-bit float; subclasses say which."""

    half: ClassVar[torch.dtype]
    context: ClassVar[Context] = "value"

    def encode_sections(self, tensor: torch.Tensor, hints: Hints) -> list[memoryview]:
        """Return the elements rounded to nearest, ties to even."""
        rounded = tensor.to(self.half)
        if tensor.numel() and not torch.isfinite(rounded).all():
            raise EncodeError(
                f"a value of magnitude {float(tensor.abs().max()):g} overflows "
                f"{self.codec_id} (largest: {torch.finfo(self.half).max:g}); use "
                "'bfloat16' or 'identity', or clip gradients"
            )
        return [as_bytes(rounded)]

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Widen the elements to the frame's dtype, or raise DecodeError."""
        (elements,) = require_sections(frame, 1)
        half = from_bytes(elements, cls.half, frame.shape, device)
        if not is_finite(half):
            raise DecodeError(f"codec {cls.codec_id!r} carries no NaN and no infinity")
        limit = torch.finfo(frame.dtype).max
        if limit < torch.finfo(cls.half).max:
            # Rounding up at the edge of the narrower range would overflow it.
            half = half.to(torch.float32).clamp_(-limit, limit)
        return half.to(frame.dtype)


@register
@dataclass(frozen=True)
class Float16(_Half):
    """IEEE half precision (IEEE 754 binary16), 16 bits a value.

    Relative error at most 2**-11 for magnitudes in [2**-14, 65504], absolute error at
    most 2**-25 below; larger magnitudes raise EncodeError.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> decode(encode(torch.tensor([0.1]), Float16()))
    tensor([0.1000])
    """

    codec_id: ClassVar[str] = "float16"
    half: ClassVar[torch.dtype] = torch.float16


@register
@dataclass(frozen=True)
class BFloat16(_Half):
    """Brain float, 16 bits a value: float32's range, relative error at most 2**-8.

    Magnitudes that round beyond the largest value raise EncodeError.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> decode(encode(torch.tensor([3e38]), BFloat16())).isfinite()
    tensor([True])
    """

    codec_id: ClassVar[str] = "bfloat16"
    half: ClassVar[torch.dtype] = torch.bfloat16


@register
@dataclass(frozen=True)
class Integers(Codec):
    """Integers in the narrowest of 1, 2, 4 or 8 bytes that holds them all; error 0.

    Our choice for targets: class indices of up to 256 classes take a byte each.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> frame = encode(torch.arange(200), Integers())
    >>> len(frame) < 250, bool((decode(frame) == torch.arange(200)).all())
    (True, True)
    """

    codec_id: ClassVar[str] = "integers"
    dtypes: ClassVar[tuple[torch.dtype, ...]] = _INTEGERS

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Return the width's code and the narrowed elements."""
        low, high = (0, 0)
        if tensor.numel():
            low, high = int(tensor.min()), int(tensor.max())
        code = next(
            i
            for i, width in enumerate(_WIDTHS)
            if torch.iinfo(width).min <= low and high <= torch.iinfo(width).max
        )
        return [bytes([code]), as_bytes(tensor.to(_WIDTHS[code]))]

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Widen the elements to the frame's dtype, or raise DecodeError."""
        if len(frame.sections) != 2 or frame.sections[0].nbytes != 1:
            raise DecodeError("codec 'integers' has a width and one section of data")
        code = frame.sections[0][0]
        if code >= len(_WIDTHS):
            raise DecodeError(f"integer width code {code} is unknown")
        narrow = from_bytes(frame.sections[1], _WIDTHS[code], frame.shape, device)
        return narrow.to(frame.dtype)
