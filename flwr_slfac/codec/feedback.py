"""Error feedback: what a codec lost is added to what it codes next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from flwr_slfac.codec.base import Codec, Hints, Memory, work_dtype
from flwr_slfac.codec.coding import sections_of, tensor_of
from flwr_slfac.codec.finite import is_finite
from flwr_slfac.codec.registry import find_codec, register
from flwr_slfac.codec.settings import format_codec, parse_codec
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError, EncodeError, SettingError

_RESIDUAL = "feedback.residual"
_DECODER = "feedback.decoder."


@register
@dataclass(frozen=True)
class Feedback(Codec):
    """Code the tensor plus what was lost so far, with another codec.

    Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014; Stich et al.,
    Sparsified SGD with Memory, NeurIPS 2018::

        tensor + residual --inner.encode--> sections --> wire
                              |
                              inner.decode --> residual = tensor + residual - decoded

    What is decoded over a stream adds up to what was encoded, save the last residual,
    up to rounding to the tensor's dtype; a single tensor has no bound but that. Made
    for gradients; activations of changing samples share nothing but their place.

    The residual is kept in the stream's memory in float32 (float64 for float64), so it
    lasts over steps and rounds. Our reading for batches of changing size: place by
    place of the batch; the residual of places that a smaller batch lacks waits. Another
    shape of the sample, or another dtype's width, starts afresh.

    Parameters
    ----------
    inner : Codec or str
        The codec, or its text; not a `Feedback` itself, and not `Temporal`.

    Raises
    ------
    SettingError
        If `inner` is not a codec, or a text that names none.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode, parse_codec
    >>> codec, memory = parse_codec("feedback(inner=topk(fraction=0.34))"), {}
    >>> x = torch.tensor([1.0, 0.5])
    >>> [decode(encode(x, codec, memory=memory)).tolist() for _ in range(3)]
    [[1.0, 0.0], [1.0, 0.0], [0.0, 1.5]]
    """

    codec_id: ClassVar[str] = "feedback"
    inner: Codec

    def __post_init__(self) -> None:
        if isinstance(self.inner, str):
            object.__setattr__(self, "inner", parse_codec(self.inner))
        if not isinstance(self.inner, Codec) or not _is_inside(type(self.inner)):
            raise SettingError(
                f"inner is {self.inner!r}; give a codec other than feedback and "
                "temporal"
            )

    @property
    def wants_activations(self) -> bool:
        """As the inner codec."""
        return self.inner.wants_activations

    def config(self) -> dict[str, Any]:
        """Return the inner codec as its text."""
        return {"inner": format_codec(self.inner)}

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Return the inner codec's id and its sections."""
        inner = self.inner
        if tensor.dtype not in inner.dtypes:
            raise EncodeError(
                f"codec {inner.codec_id!r} in 'feedback' does not take {tensor.dtype}"
            )
        residual = _residual_of(tensor, hints.memory)
        wanted = _saturate(tensor.to(residual.dtype) + residual, tensor.dtype)
        sections = sections_of(wanted.to(tensor.dtype), inner, hints)
        views = tuple(memoryview(s).cast("B") for s in sections)
        frame = Frame(inner.codec_id, tensor.dtype, tuple(tensor.shape), views)
        decoded = _mirror_decode(inner, frame, hints.memory, tensor.device)
        _remember(wanted - decoded.to(wanted.dtype), hints.memory)
        return [inner.codec_id.encode("ascii"), *sections]

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Decode the inner codec's sections, or raise DecodeError."""
        if not frame.sections:
            raise DecodeError("codec 'feedback' names its inner codec, here is none")
        name = bytes(frame.sections[0]).decode("ascii", errors="replace")
        try:
            inner = find_codec(name)
        except SettingError as error:
            raise DecodeError(str(error)) from error
        if inner is None or not _is_inside(inner):
            raise DecodeError(f"codec {name!r} is not known inside 'feedback'")
        within = Frame(name, frame.dtype, frame.shape, frame.sections[1:])
        found = tensor_of(within, inner, memory, device)
        if inner.carries_nonfinite and not is_finite(found):
            raise DecodeError(f"codec {cls.codec_id!r} carries no NaN and no infinity")
        return found


def _is_inside(inner: type[Codec]) -> bool:
    """Say whether a codec may be inside: one that has no loop of its own."""
    return not (issubclass(inner, Feedback) or inner.needs_samples)


def _residual_of(tensor: torch.Tensor, memory: Memory) -> torch.Tensor:
    """Return the residual of the tensor's places, zero where there is none."""
    dtype = work_dtype(tensor.dtype)
    out = torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)
    kept = memory.get(_RESIDUAL)
    if kept is None or not _is_same_kind(kept, out):
        return out
    if tensor.ndim == 0:
        return kept.to(tensor.device)
    num_rows = min(len(kept), len(out))
    out[:num_rows] = kept[:num_rows].to(tensor.device)
    return out


def _remember(residual: torch.Tensor, memory: Memory) -> None:
    """Keep the residual, and that of places which this batch lacks."""
    kept = memory.get(_RESIDUAL)
    if (
        kept is not None
        and residual.ndim
        and _is_same_kind(kept, residual)
        and len(kept) > len(residual)
    ):
        waiting = kept[len(residual) :].to(residual.device)
        residual = torch.cat([residual, waiting])
    memory[_RESIDUAL] = residual


def _is_same_kind(kept: torch.Tensor, residual: torch.Tensor) -> bool:
    """Return whether two residuals are of one kind of sample."""
    return (
        kept.dtype is residual.dtype
        and kept.ndim == residual.ndim
        and kept.shape[1:] == residual.shape[1:]
    )


def _saturate(wanted: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    limit = torch.finfo(dtype).max
    return wanted.clamp_(-limit, limit)


def _mirror_decode(
    inner: Codec, frame: Frame, memory: Memory, device: torch.device
) -> torch.Tensor:
    """Decode as the other side will, with a copy of what its decoder remembers."""
    mirror = {
        key.removeprefix(_DECODER): value
        for key, value in memory.items()
        if key.startswith(_DECODER)
    }
    decoded = tensor_of(frame, type(inner), mirror, device)
    memory.update({_DECODER + key: value for key, value in mirror.items()})
    return decoded
