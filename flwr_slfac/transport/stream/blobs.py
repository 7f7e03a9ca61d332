"""The bulk of a message, and state dicts in it."""

import math
from collections.abc import Sequence

import torch

from flwr_slfac.errors import DecodeError, SettingError
from flwr_slfac.states import State
from flwr_slfac.transport.stream import slfac_pb2 as pb

# numpy's, and that of torch on the CPU: what cannot have more cannot be received.
_MOST_DIMS = 64
# The dtypes of weights and buffers; quantized and sparse tensors have no plain bytes.
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.complex128, torch.complex64,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


class BlobWriter:
    """Collects blobs; a message refers to each by 1 + its position."""

    def __init__(self) -> None:
        self.blobs: list[bytes] = []

    def put(self, blob: bytes | None) -> int:
        """Add a blob; return the reference to it, 0 for None."""
        if blob is None:
            return 0
        self.blobs.append(blob)
        return len(self.blobs)

    def put_text(self, text: str) -> int:
        """Add a text; an empty one is none."""
        return self.put(text.encode() if text else None)

    def put_state(self, state: "StateBytes", into: pb.State) -> None:
        """Add a state's tensors, and say in `into` where they are."""
        into.SetInParent()
        for name, dtype, shape, blob in state.tensors:
            into.tensors.add(name=name, dtype=dtype, shape=shape, blob=self.put(blob))


class BlobReader:
    """Looks up what a message refers to.

    Parameters
    ----------
    blobs : sequence of bytes
        In the order of the message.
    """

    def __init__(self, blobs: Sequence[bytes]) -> None:
        self._blobs = blobs

    def get(self, reference: int) -> bytes | None:
        """Return a blob, None for the reference 0.

        Raises
        ------
        DecodeError
            If there is no such blob.
        """
        if not reference:
            return None
        if reference > len(self._blobs):
            raise DecodeError(
                f"a message refers to blob {reference} of {len(self._blobs)}"
            )
        return self._blobs[reference - 1]

    def require(self, reference: int, what: str) -> bytes:
        """Return a blob that has to be there.

        Raises
        ------
        DecodeError
            If it is not.
        """
        blob = self.get(reference)
        if blob is None:
            raise DecodeError(f"a message lacks its {what}")
        return blob

    def text(self, reference: int) -> str:
        """Return a text, an empty one for the reference 0.

        Raises
        ------
        DecodeError
            If it is not UTF-8.
        """
        try:
            return (self.get(reference) or b"").decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"a text in a message is not UTF-8: {error}") from error

    def state(self, state: pb.State) -> dict[str, torch.Tensor]:
        """Return a state dict; its tensors share no memory with the blobs.

        Raises
        ------
        DecodeError
            If a tensor's dtype is not known or its bytes are too many or too few.
        """
        return {t.name: self._tensor(t) for t in state.tensors}

    def _tensor(self, tensor: pb.Tensor) -> torch.Tensor:
        blob = self.require(tensor.blob, f"tensor {tensor.name!r}")
        shape, dtype = tuple(tensor.shape), _DTYPES.get(tensor.dtype)
        if dtype is None or len(shape) > _MOST_DIMS:
            raise DecodeError(
                f"tensor {tensor.name!r} has dtype {tensor.dtype!r} and {len(shape)} "
                f"dimensions; known are {', '.join(_DTYPES)}, and {_MOST_DIMS} at most"
            )
        if math.prod(shape) * dtype.itemsize != len(blob):
            raise DecodeError(
                f"tensor {tensor.name!r} of shape {shape} in {tensor.dtype} has "
                f"{len(blob)} bytes"
            )
        if not blob:
            try:
                return torch.empty(shape, dtype=dtype)
            except (RuntimeError, TypeError) as error:  # too large a size
                raise DecodeError(f"tensor {tensor.name!r}: {error}") from error
        return torch.frombuffer(bytearray(blob), dtype=dtype).reshape(shape)


class StateBytes:
    """A state dict as names, dtypes, shapes and little-endian bytes.

    Parameters
    ----------
    state : mapping of str to Tensor
        On any device.

    Raises
    ------
    SettingError
        If a tensor's dtype cannot be carried.
    """

    def __init__(self, state: State) -> None:
        self.tensors = [
            (name, _dtype_name(name, t), tuple(t.shape), _as_bytes(t))
            for name, t in state.items()
        ]


class StateCache:
    """Turns a state that many devices are given into bytes once."""

    def __init__(self) -> None:
        self._last: tuple[State, StateBytes] | None = None

    def bytes_of(self, state: State) -> StateBytes:
        """Return a state's bytes; those of the last state are at hand."""
        if self._last is None or self._last[0] is not state:
            self._last = state, StateBytes(state)
        return self._last[1]


def _dtype_name(name: str, tensor: torch.Tensor) -> str:
    text = str(tensor.dtype).removeprefix("torch.")
    if text not in _DTYPES or tensor.layout is not torch.strided:
        raise SettingError(
            f"{name!r} is {tensor.dtype} in layout {tensor.layout}, which a stream "
            f"does not carry; use a dense tensor of {', '.join(_DTYPES)}"
        )
    return text


def _as_bytes(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # One value of a larger tensor is contiguous and has that tensor's stride.
    flat = plain.as_strided((plain.numel(),), (1,))
    return flat.view(torch.uint8).numpy().tobytes()
