"""A codec with a memory of samples: their values an epoch ago predict those of now."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from flwr_slfac.codec.base import Codec, Hints, Memory
from flwr_slfac.codec.coding import sections_of, tensor_of
from flwr_slfac.codec.feedback import Feedback
from flwr_slfac.codec.finite import is_finite
from flwr_slfac.codec.registry import find_codec, register
from flwr_slfac.codec.settings import format_codec, parse_codec
from flwr_slfac.codec.temporal.candidate import CLAMPING, Candidate, code
from flwr_slfac.codec.temporal.header import VERSION_BYTES, Header, Ids, Samples
from flwr_slfac.codec.temporal.memory import DEFAULT_MAX_BYTES, SampleMemory
from flwr_slfac.codec.temporal.prediction import (
    Choice,
    Prediction,
    num_channels_of,
    predict,
)
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError, EncodeError, SettingError

# With less left over than this share of the energy prediction pays for sure; with more
# the batch is coded both ways, which takes twice the time.
_SURELY_PAYS = 0.05
# Our choice: a frame that takes this share of what it may had a limit, not an error.
_LIMITED = 0.9
# An aim of 1 would be to send nothing, which inner codecs do not take.
_LARGEST_AIM = 0.95
_CPU = torch.device("cpu")


@register
@dataclass(frozen=True)
class Temporal(Codec):
    """Code what a sample's values of an epoch ago do not predict, with another codec.

    The closed loop of video coding (the P-frames of ITU-T H.261 on), with samples in
    place of pictures; our choice::

        tensor - prediction --inner.encode--> sections --> wire
                     |                |
                     |           inner.decode --> + prediction = what both sides have
                     +--- newest rows of these samples <--- remembered ---+

    Both sides remember what was decoded of each sample, told by `Hints.samples`; these
    numbers cross in the frame. A sample is sent whole, or what its prediction leaves
    over, or not at all where that is no more than the error it may have. A frame for
    which prediction does not pay is the inner codec's and some bytes. The relative
    error is within a tenth of that of an inner codec which aims at one, `Waterfill` by
    `nrmse`: the error stays and the bytes fall. With others the bytes stay and the
    error falls, by no stated bound. NaN and infinity are refused.

    Each frame names the version of the memory that it counts on, a digest of all frames
    before; a decoder with another one refuses it, see `SampleMemory`. Machines that
    decode the inner frames alike remember the same bits; where last bits differ, what
    they remember does too, by as little, since no gain is above 1. Without samples, or
    with an empty tensor, a frame stands alone and nothing is remembered.

    Parameters
    ----------
    inner : Codec or str
        The codec, or its text; not `Temporal` and not `Feedback`.
    max_bytes : int, default 2**26
        Limit of memory on each side, a stream; beyond it the oldest frame's samples are
        dropped. A server holds this for each device.
    bits : {8, 16}, default 16
        What a remembered value takes: a grid over the sample's range, or half precision
        (of magnitudes up to 65504).

    Raises
    ------
    SettingError
        If `inner` is no such codec, or a setting is out of range.

    Examples
    --------
    >>> from flwr_slfac.codec import Waterfill, decode, encode
    >>> codec, here, there = Temporal(Waterfill(nrmse=0.1)), {}, {}
    >>> x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    >>> frames = [encode(x, codec, memory=here, samples=range(32)) for _ in range(2)]
    >>> decoded = [decode(frame, memory=there) for frame in frames]
    >>> len(frames[1]) < len(frames[0]) / 3
    True
    """

    codec_id: ClassVar[str] = "temporal"
    needs_samples: ClassVar[bool] = True

    inner: Codec
    max_bytes: int = DEFAULT_MAX_BYTES
    bits: int = 16

    def __post_init__(self) -> None:
        if isinstance(self.inner, str):
            object.__setattr__(self, "inner", parse_codec(self.inner))
        if not isinstance(self.inner, Codec) or isinstance(self.inner, _NOT_INSIDE):
            raise SettingError(
                f"inner is {self.inner!r}; give a codec other than temporal and "
                "feedback, which both send later what they did not send before"
            )
        if type(self.max_bytes) is not int or not 1 <= self.max_bytes < 2**63:
            raise SettingError(
                f"max_bytes is {self.max_bytes!r}; give a number of bytes, 1 or more"
            )
        if self.bits not in (8, 16):
            raise SettingError(f"bits is {self.bits!r}; give 8 or 16")

    def config(self) -> dict[str, Any]:
        """Return the settings, the inner codec as its text."""
        return {**super().config(), "inner": format_codec(self.inner)}

    @property
    def relative_error(self) -> float | None:
        """That of the inner codec."""
        return self.inner.relative_error

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Return a header and the inner codec's sections."""
        inner = self.inner
        if tensor.dtype not in inner.dtypes:
            raise EncodeError(
                f"codec {inner.codec_id!r} in 'temporal' does not take {tensor.dtype}"
            )
        if hints.samples is None or not tensor.ndim or not tensor.numel():
            lone = Header(inner.codec_id).to_bytes()
            return [lone, *sections_of(tensor, inner, hints)]
        x = tensor.to("cpu").contiguous()
        ids = _ids_of(hints.samples, len(x))
        memory = dict(hints.memory)
        before = SampleMemory(memory)
        if before.max_bytes != self.max_bytes:
            before.begin(self.max_bytes)
        version = bytes.fromhex(before.version)
        coded = self._cheapest(x, ids, Hints(hints.role, hints.seed, memory))
        said = coded.said(ids, self.bits, version, self.max_bytes)
        header = Header(inner.codec_id, said).to_bytes()
        sections = [header, *coded.sections]
        after = _version(version, x.dtype, tuple(x.shape), sections)
        whole = coded.decoded(x, inner)
        SampleMemory(coded.memory).put(ids, whole, self.bits, after)
        # Only now, so that whatever failed before has changed nothing.
        hints.memory.clear()
        hints.memory.update(coded.memory)
        return sections

    def _cheapest(self, x: torch.Tensor, ids: Ids, hints: Hints) -> Candidate:
        """Code a batch with prediction or without, whichever takes fewer bytes."""
        remembered, known = SampleMemory(hints.memory).find(ids, x.shape[1:])
        inner = self.inner.settled(x, hints)
        error = inner.relative_error
        choice = predict(x, remembered, known, error)
        if choice is None:
            return code(x, inner, hints)
        aimed = _aimed(inner, choice, hints.memory)
        predicted = code(x, aimed, hints, choice)
        if error is None or choice.left <= _SURELY_PAYS:
            return predicted
        plain = code(x, inner, hints)
        if 8 * plain.num_bytes > _LIMITED * (inner.most_bits or math.inf) * x.numel():
            # Both take what is allowed, and with prediction it buys more.
            return predicted
        return min(predicted, plain, key=lambda coded: coded.num_bytes)

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Decode with the samples in memory, or raise DecodeError."""
        if not frame.sections:
            raise DecodeError("codec 'temporal' has a header, here is none")
        num_samples = frame.shape[0] if frame.num_elements and frame.shape else 0
        num_channels = num_channels_of(frame.shape)
        header = Header.of_bytes(frame.sections[0], num_samples, num_channels)
        inner = _inner_of(header.inner)
        said, rest = header.samples, frame.sections[1:]
        if said is None:
            within = Frame(header.inner, frame.dtype, frame.shape, rest)
            return _decoded(within, inner, memory, device)
        own = dict(memory)
        prediction = _recalled(SampleMemory(own), said, frame)
        num_sent = num_samples if prediction is None else int(prediction.is_sent.sum())
        shape = (num_sent, *frame.shape[1:])
        if num_sent:
            within = Frame(header.inner, frame.dtype, shape, rest)
            whole = _decoded(within, inner, own, _CPU)
        elif rest:
            raise DecodeError("codec 'temporal' has sections for no sample")
        else:
            whole = torch.zeros(shape, dtype=frame.dtype)
        if prediction is not None:
            whole = prediction.completed(whole)
        version = _version(said.version, frame.dtype, frame.shape, frame.sections)
        SampleMemory(own).put(said.ids, whole, said.bits, version)
        memory.clear()
        memory.update(own)
        return whole.to(device)


_NOT_INSIDE = (Temporal, Feedback)


def _aimed(inner: Codec, choice: Choice, memory: Memory) -> Codec:
    """Return an inner codec for what is left over of a batch."""
    if choice.aim is None:
        return inner
    clamping = 1.0
    if choice.prediction.clamps and CLAMPING in memory:
        clamping = float(memory[CLAMPING])
    return inner.aiming_at(min(choice.aim / clamping**0.5, _LARGEST_AIM))


def _recalled(samples: SampleMemory, said: Samples, frame: Frame) -> Prediction | None:
    """Return what predicts a frame's tensor, None if nothing does.

    Raises
    ------
    DecodeError
        If the samples in memory are not those that the frame counts on.
    """
    if not said.version:
        if said.max_bytes > samples.most_bytes:
            raise DecodeError(
                f"samples are to be remembered in {said.max_bytes} bytes; the limit "
                f"here is {samples.most_bytes}, see SampleMemory.allow"
            )
        samples.begin(said.max_bytes)
    elif said.version.hex() != samples.version:
        raise DecodeError(
            f"the frame counts on samples of version {said.version.hex()}, and those "
            f"in memory are of version {samples.version or 'none'}; let both sides "
            "begin anew"
        )
    if said.modes is None:
        return None
    rows, known = samples.find(said.ids, frame.shape[1:])
    if not known[said.modes != 0].all():
        raise DecodeError("a sample is predicted that is not in memory")
    return Prediction.of(rows, said.modes, said.gains, frame.dtype, clamps=said.clamps)


def _inner_of(name: str) -> type[Codec]:
    try:
        inner = find_codec(name)
    except SettingError as error:
        raise DecodeError(str(error)) from error
    if inner is None or issubclass(inner, _NOT_INSIDE):
        raise DecodeError(f"codec {name!r} is not known inside 'temporal'")
    return inner


def _decoded(
    frame: Frame, inner: type[Codec], memory: Memory, device: torch.device
) -> torch.Tensor:
    found = tensor_of(frame, inner, memory, device)
    if inner.carries_nonfinite and not is_finite(found):
        raise DecodeError("codec 'temporal' carries no NaN and no infinity")
    return found


def _ids_of(samples: Sequence[int], num_rows: int) -> Ids:
    """Return the numbers of samples, one a row, or raise EncodeError."""
    try:
        ids = np.array(samples, dtype=np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise EncodeError(f"samples are not whole numbers: {error}") from error
    if ids.shape != (num_rows,) or (ids < 0).any():
        raise EncodeError(
            f"samples of shape {ids.shape}, the least of them "
            f"{ids.min(initial=0)}, for {num_rows} rows; give each row the number of "
            "its sample, 0 or more"
        )
    return ids


def _version(
    before: bytes,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    sections: Sequence[bytes | memoryview],
) -> bytes:
    """Return a digest of a frame and all before it."""
    digest = hashlib.blake2b(before, digest_size=VERSION_BYTES)
    digest.update(f"{dtype}{shape}".encode())
    for section in sections:
        digest.update(section)
    return digest.digest()
