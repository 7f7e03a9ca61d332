"""The contract that every codec keeps, and what it is handed.

A codec is a frozen dataclass: its fields are its settings, nothing else. It turns a
tensor into sections of bytes and back; the frame around the sections (`wire`) carries
dtype, shape and codec id. All that a decoder needs is on the wire, so decoding is a
class method: the settings of the sender are not asked for. What checks and frames is in
`coding`, who is known by which id in `registry`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from flwr_slfac.codec.wire import Frame

Role = Literal["activation", "gradient"]
Context = Literal["value", "map", "batch"]

# What a codec remembers of one stream (one device, one direction) between tensors.
Memory = dict[str, torch.Tensor]

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
        place; the caller keeps and stores them. Names that begin with ``stream.`` end
        with the stream, see `restart`: what counts on the decoder's memory.
    samples : sequence of int, optional
        Which of the device's samples the rows of the tensor are.
    samples_known : bool
        Whether the receiver decodes with the same `samples`, so that none is named.
    activations : Tensor, optional
        Of a gradient, what it is the gradient of: of the same shape, as it was decoded.
    """

    role: Role = "activation"
    seed: int = 0
    memory: Memory = field(default_factory=dict)
    samples: Sequence[int] | None = None
    samples_known: bool = False
    activations: torch.Tensor | None = None


class Codec(ABC):
    """A tensor to sections of bytes and back; subclasses are frozen dataclasses.

    A server calls one codec from several threads at once, each time with the memory of
    another stream: what a codec shares between calls, a cache, has to bear that.

    Attributes
    ----------
    codec_id : str
        Name on the wire.
    dtypes : tuple of torch.dtype
        What it takes.
    carries_nonfinite : bool
        Whether NaN and infinity come back as they were.
    skips_empty : bool
        Whether a tensor without elements travels as a frame without sections: neither
        `encode_sections` nor `decode_sections` is then asked for one.
    context : {"value", "map", "batch"}
        What a value is coded with: itself alone, the other values of its map (of one
        channel in one example), or more. Dropout at the cut breaks up no more than
        that, see `Lightweight`.
    """

    codec_id: ClassVar[str]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = _FLOATS
    carries_nonfinite: ClassVar[bool] = False
    skips_empty: ClassVar[bool] = False
    context: ClassVar[Context] = "batch"
    needs_samples: ClassVar[bool] = False

    @abstractmethod
    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Code a tensor.

        Parameters
        ----------
        tensor : Tensor of any shape
            Detached, dense, of a dtype in `dtypes`, on any device; finite unless
            `carries_nonfinite`.
        hints : Hints
            What else is known.

        Returns
        -------
        sequence of bytes or memoryview
            At most 255 sections.

        Raises
        ------
        EncodeError
            If the values cannot be coded.
        """

    @classmethod
    @abstractmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Decode a checked frame.

        Parameters
        ----------
        frame : Frame
            Its dtype is one of `dtypes`; its sections are hostile.
        memory : dict of str to Tensor
            What the decoder remembers of the stream.
        device : torch.device
            Where the tensor is wanted.

        Returns
        -------
        Tensor
            Of the frame's dtype and shape.

        Raises
        ------
        DecodeError
            If any section is not valid.
        """

    @property
    def wants_activations(self) -> bool:
        """Whether `Hints.activations` serve it."""
        return False

    @property
    def relative_error(self) -> float | None:
        """The relative error that it aims at, None if it aims at none.

        Of a tensor ``x``, ``norm(x - decoded) / norm(x)``, or relative to what the
        codec measures it against.
        """
        return None

    @property
    def most_bits(self) -> float | None:
        """Bits a value that its error may take at most, None if as many as it takes."""
        return None

    def aiming_at(self, relative_error: float) -> "Codec":
        """Return the same codec with another aim; itself if it aims at no error.

        Parameters
        ----------
        relative_error : float
            In (0, 1).
        """
        return self

    def settled(self, tensor: torch.Tensor, hints: Hints) -> "Codec":
        """Return the codec whose relative error is of this tensor's norm.

        Itself, unless it measures its error against something else.
        """
        return self

    @classmethod
    def choice_of(cls, frame: Frame) -> str:
        """Return what the encoder of a frame chose, some 12 characters.

        Nothing if it chose nothing that would serve others. What it says is told to
        encoders of other streams of the same layer, see `begun`.

        Raises
        ------
        DecodeError
            If the frame is not valid.
        """
        return ""

    @classmethod
    def usual(cls, choices: Sequence[str]) -> str:
        """Return what to tell of the choices of several streams."""
        return ""

    def begun(self, memory: Memory, choice: str) -> Memory:
        """Return the memory of an encoder whose stream begins, told what is usual.

        Parameters
        ----------
        memory : dict of str to Tensor
            What it remembers; left as it is.
        choice : str
            From `usual`; empty for nothing.

        Raises
        ------
        DecodeError
            If it is no choice.
        """
        return memory

    def config(self) -> dict[str, Any]:
        """Return the settings as a dict that survives JSON."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
        }


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that codecs compute in: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32
