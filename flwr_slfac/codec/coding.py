"""`encode` and `decode`, the two calls that users make, and `restart`.

::

    tensor --refuse what the codec does not take--> encode_sections --> frame
    frame --check--> find the codec by its id --> decode_sections --> tensor
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from flwr_slfac.codec.base import Codec, Hints, Memory, Role
from flwr_slfac.codec.finite import is_finite
from flwr_slfac.codec.registry import find_codec, known_ids
from flwr_slfac.codec.wire import (
    DEFAULT_MAX_ELEMENTS,
    Frame,
    pack_frame,
    require_sections,
    unpack_frame,
)
from flwr_slfac.errors import DecodeError, EncodeError, SettingError


def encode(
    tensor: torch.Tensor,
    codec: Codec,
    *,
    role: Role = "activation",
    seed: int = 0,
    memory: Memory | None = None,
    samples: Sequence[int] | None = None,
    samples_known: bool = False,
    activations: torch.Tensor | None = None,
) -> bytes:
    """Turn a tensor into one self-describing frame.

    Parameters
    ----------
    tensor : Tensor of any shape
        Strided, on any device; gradients are not tracked through the codec.
    codec : Codec
        How to code it.
    role, seed, memory, samples, samples_known, activations
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
        and the codec does not carry them, or it does not fit a frame.
    SettingError
        If a setting of the codec does not suit the tensor's shape, as a wavelet does
        not suit odd sizes.

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
    if activations is not None and activations.shape != tensor.shape:
        raise EncodeError(
            f"a gradient of shape {tuple(tensor.shape)} belongs to activations of "
            f"the same shape, not of {tuple(activations.shape)}"
        )
    tensor = tensor.detach()
    if not codec.carries_nonfinite:
        _require_finite(tensor, codec)
    memory = {} if memory is None else memory
    hints = Hints(role, seed, memory, samples, samples_known, activations)
    with torch.no_grad():
        sections = sections_of(tensor, codec, hints)
    return pack_frame(codec.codec_id, tensor.dtype, tensor.shape, sections)


def decode(
    data: bytes,
    *,
    max_elements: int = DEFAULT_MAX_ELEMENTS,
    shape: Sequence[int] | None = None,
    memory: Memory | None = None,
    samples: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Turn a frame back into a tensor; any bytes at all are safe to pass.

    Parameters
    ----------
    data : bytes
        One frame.
    max_elements : int
        Refuse a frame that declares more elements than this, before allocating.
    shape : sequence of int, optional
        Refuse a frame of any other shape, before decoding: what a small frame may cost
        is then what this shape costs.
    memory : dict of str to Tensor, optional
        What the decoder remembers of this stream; see `Hints`.
    samples : sequence of int, optional
        Which of a device's samples the rows are, where that is known here: for frames
        that name none.
    device : torch.device or str
        Where the tensor is wanted.

    Returns
    -------
    Tensor
        Of the dtype and shape that the frame declares.

    Raises
    ------
    DecodeError
        If the bytes are not a valid frame of a known codec, or of another shape.
    """
    frame = replace(unpack_frame(data, max_elements=max_elements), samples=samples)
    if shape is not None and frame.shape != tuple(shape):
        raise DecodeError(
            f"the frame declares shape {frame.shape}; {tuple(shape)} is expected here"
        )
    try:
        cls = find_codec(frame.codec_id)
    except SettingError as error:
        raise DecodeError(str(error)) from error
    if cls is None:
        raise DecodeError(
            f"codec {frame.codec_id!r} is not known here (known: "
            f"{', '.join(known_ids())}); register it on both sides"
        )
    with torch.no_grad():
        return tensor_of(
            frame, cls, {} if memory is None else memory, torch.device(device)
        )


def restart(memory: Memory) -> Memory:
    """Return what an encoder still remembers when its stream begins anew.

    The decoder of a new stream remembers nothing, so the entries that mirror the
    decoder's (``stream.*``) are dropped; a residual, for example, is kept.

    Parameters
    ----------
    memory : dict of str to Tensor
        Of the encoder, see `Hints`; left as it is.
    """
    return {k: v for k, v in memory.items() if not k.startswith("stream.")}


def sections_of(
    tensor: torch.Tensor, codec: Codec, hints: Hints
) -> Sequence[bytes | memoryview]:
    """Return a tensor's sections, none for an empty one if the codec skips those."""
    if codec.skips_empty and tensor.numel() == 0:
        return []
    return codec.encode_sections(tensor, hints)


def tensor_of(
    frame: Frame, cls: type[Codec], memory: Memory, device: torch.device
) -> torch.Tensor:
    """Undo `sections_of`, or raise DecodeError; parameters as in `decode_sections`."""
    if frame.dtype not in cls.dtypes:
        raise DecodeError(f"codec {frame.codec_id!r} never carries {frame.dtype}")
    if cls.skips_empty and frame.num_elements == 0:
        require_sections(frame, 0)
        return torch.empty(frame.shape, dtype=frame.dtype, device=device)
    return cls.decode_sections(frame, memory, device)


def _require_finite(tensor: torch.Tensor, codec: Codec) -> None:
    """Refuse NaN and infinity."""
    if is_finite(tensor):
        return
    num_nan = int(torch.isnan(tensor).sum())
    num_inf = int(torch.isinf(tensor).sum())
    raise EncodeError(
        f"{num_nan} NaN and {num_inf} infinite of {tensor.numel()} values; codec "
        f"{codec.codec_id!r} carries finite values only: lower the learning rate "
        "or clip gradients"
    )
