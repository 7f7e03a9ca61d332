"""The contract that every codec keeps, and the two calls that users make.

A codec is a frozen dataclass: its fields are its settings, nothing else. It turns a
tensor into sections of bytes and back; the frame around the sections (`wire`) carries
dtype, shape and codec id. All that a decoder needs is on the wire, so decoding is a
class method: the settings of the sender are not asked for.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch

from flwr_slfac.codec.wire import Frame, pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError, EncodeError, SettingError

Role = Literal["activation", "gradient"]
Context = Literal["value", "map", "batch"]

# What a codec remembers of one stream (one device, one direction) between tensors.
Memory = dict[str, torch.Tensor]

DEFAULT_MAX_ELEMENTS = 2**28
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Hints:
    """What an encoder may know besides the tensor.

    Parameters
    ----------
    role : {"activation", "gradient"}
        What the tensor is: gradients bear more error than activations.
    seed : int
        Seed of all randomness in this one call, so that a repeated call gives the
        same bytes. In [0, 2**63).
    memory : dict of str to Tensor
        What this codec remembers of the stream (a reused basis, an error-feedback
        residual). The encoder may read and replace entries, never change a tensor in
        place; the caller keeps and stores them. Names that begin with ``stream.`` are
        what the decoder remembers too: they end with the stream, see `restart`.
    """

    role: Role = "activation"
    seed: int = 0
    memory: Memory = field(default_factory=dict)


class Codec(ABC):
    """A tensor to sections of bytes and back; subclasses are frozen dataclasses.

    Attributes
    ----------
    codec_id : str
        Name on the wire.
    dtypes : tuple of torch.dtype
        What it takes.
    carries_nonfinite : bool
        Whether NaN and infinity come back as they were.
    context : {"value", "map", "batch"}
        What a value is coded with: itself alone, the other values of its map (of one
        channel in one example), or more. Dropout at the cut breaks up no more than
        that, see `Lightweight`.
    """

    codec_id: ClassVar[str]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = _FLOATS
    carries_nonfinite: ClassVar[bool] = False
    context: ClassVar[Context] = "batch"

    @abstractmethod
    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Code a tensor (detached, dense, of a dtype in `dtypes`, on any device)."""

    @classmethod
    @abstractmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Decode a checked frame to a tensor of its dtype and shape on `device`.

        The sections are hostile: raise DecodeError for any that are not valid.
        """

    def config(self) -> dict[str, Any]:
        """Return the settings as a dict that survives JSON."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
        }


_REGISTRY: dict[str, type[Codec]] = {}
C = TypeVar("C", bound=type[Codec])


def register(cls: C) -> C:
    """Make a codec known to `decode` and to settings by its `codec_id`.

    Raises
    ------
    SettingError
        If the id is taken by another class, or is not 1 to 32 of ``a-z 0-9 _ -``.
    """
    codec_id = cls.codec_id
    if not (
        0 < len(codec_id) <= 32
        and all(c in "abcdefghijklmnopqrstuvwxyz0123456789_-" for c in codec_id)
    ):
        raise SettingError(
            f"codec id {codec_id!r} is not 1 to 32 characters of a-z, 0-9, _ and -"
        )
    if _REGISTRY.get(codec_id, cls) is not cls:
        raise SettingError(
            f"codec id {codec_id!r} is taken by {_REGISTRY[codec_id].__qualname__}"
        )
    _REGISTRY[codec_id] = cls
    return cls


def registered() -> dict[str, type[Codec]]:
    """Return every known codec class by id, in order of registration."""
    return dict(_REGISTRY)


def encode(
    tensor: torch.Tensor,
    codec: Codec,
    *,
    role: Role = "activation",
    seed: int = 0,
    memory: Memory | None = None,
) -> bytes:
    """Turn a tensor into one self-describing frame.

    Parameters
    ----------
    tensor : Tensor of any shape
        Strided, on any device; gradients are not tracked through the codec.
    codec : Codec
        How to code it.
    role, seed, memory
        See `Hints`.

    Returns
    -------
    bytes
        The frame; `decode` needs nothing else, save the memory of a codec that
        keeps one.

    Raises
    ------
    EncodeError
        If the codec does not take this dtype, or the tensor holds NaN or infinity
        and the codec does not carry them.

    Examples
    --------
    >>> import torch
    >>> from flwr_slfac.codec import Float16, decode, encode
    >>> frame = encode(torch.tensor([[1.0, 2.5]]), Float16())
    >>> decode(frame)
    tensor([[1.0000, 2.5000]])
    """
    if tensor.layout is not torch.strided:
        raise EncodeError(
            f"a tensor of layout {tensor.layout} cannot be coded; call .to_dense()"
        )
    if tensor.dtype not in codec.dtypes:
        raise EncodeError(
            f"codec {codec.codec_id!r} does not take {tensor.dtype}; it takes "
            + ", ".join(str(d).removeprefix("torch.") for d in codec.dtypes)
        )
    tensor = tensor.detach()
    if not codec.carries_nonfinite:
        _require_finite(tensor, codec)
    hints = Hints(role, seed, {} if memory is None else memory)
    with torch.no_grad():
        sections = codec.encode_sections(tensor, hints)
    return pack_frame(codec.codec_id, tensor.dtype, tensor.shape, sections)


def decode(
    data: bytes,
    *,
    max_elements: int = DEFAULT_MAX_ELEMENTS,
    memory: Memory | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Turn a frame back into a tensor; any bytes at all are safe to pass.

    Parameters
    ----------
    data : bytes
        One frame.
    max_elements : int
        Refuse a frame that declares more elements than this, before allocating.
    memory : dict of str to Tensor, optional
        What the decoder remembers of this stream; see `Hints`.
    device : torch.device or str
        Where the tensor is wanted.

    Returns
    -------
    Tensor
        Of the dtype and shape that the frame declares.

    Raises
    ------
    DecodeError
        If the bytes are not a valid frame of a known codec.
    """
    frame = unpack_frame(data, max_elements=max_elements)
    cls = _REGISTRY.get(frame.codec_id)
    if cls is None:
        raise DecodeError(
            f"codec {frame.codec_id!r} is not known here (known: "
            f"{', '.join(sorted(_REGISTRY))}); register it on both sides"
        )
    if frame.dtype not in cls.dtypes:
        raise DecodeError(f"codec {frame.codec_id!r} never carries {frame.dtype}")
    with torch.no_grad():
        return cls.decode_sections(
            frame, {} if memory is None else memory, torch.device(device)
        )


def restart(memory: Memory) -> Memory:
    """Return what an encoder still remembers when its stream begins anew.

    The decoder of a new stream remembers nothing, so the entries that mirror the
    decoder's (``stream.*``) are dropped; a residual, for example, is kept.
    """
    return {k: v for k, v in memory.items() if not k.startswith("stream.")}


def raw_num_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of the tensor in float32, the base of compression ratios."""
    return 4 * tensor.numel()


def _require_finite(tensor: torch.Tensor, codec: Codec) -> None:
    """Refuse NaN and infinity; one cheap sum decides unless it overflows."""
    if not tensor.is_floating_point() or math.isfinite(
        float(tensor.sum(dtype=torch.float32))
    ):
        return
    num_nan = int(torch.isnan(tensor).sum())
    num_inf = int(torch.isinf(tensor).sum())
    if num_nan or num_inf:
        raise EncodeError(
            f"{num_nan} NaN and {num_inf} infinite of {tensor.numel()} values; codec "
            f"{codec.codec_id!r} carries finite values only: lower the learning rate "
            "or clip gradients"
        )


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's elements in C order as bytes, copied to the CPU if needed."""
    if tensor.numel() == 0:
        # Its strides may be anything, which a view as bytes would not allow.
        return memoryview(b"")
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def from_bytes(
    section: memoryview,
    dtype: torch.dtype,
    shape: Sequence[int],
    device: torch.device,
) -> torch.Tensor:
    """Copy bytes into a new tensor, or raise DecodeError if their number is wrong."""
    if section.nbytes != math.prod(shape) * dtype.itemsize:
        raise DecodeError(
            f"{section.nbytes} bytes cannot fill shape {tuple(shape)} of {dtype}"
        )
    out = torch.empty(tuple(shape), dtype=dtype)
    if section.nbytes:
        out.reshape(-1).view(torch.uint8).numpy().data[:] = section
    if dtype is torch.bool:
        # Torch trusts a boolean's byte to be 0 or 1.
        out = out.view(torch.uint8) != 0
    return out.to(device)


def one_section(frame: Frame) -> memoryview:
    """Return the only section of a frame, or raise DecodeError."""
    if len(frame.sections) != 1:
        raise DecodeError(
            f"{len(frame.sections)} sections where codec {frame.codec_id!r} has one"
        )
    return frame.sections[0]
