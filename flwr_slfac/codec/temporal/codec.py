"""A codec with a memory of samples: their values an epoch ago predict those of now."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from flwr_slfac.codec.base import Codec, Hints, Memory
from flwr_slfac.codec.coding import sections_of
from flwr_slfac.codec.feedback import Feedback
from flwr_slfac.codec.registry import register
from flwr_slfac.codec.settings import format_codec, parse_codec
from flwr_slfac.codec.temporal.agreement import counted_on, ids_of, version_after
from flwr_slfac.codec.temporal.candidate import CLAMPING, Candidate, code
from flwr_slfac.codec.temporal.decoding import decoded_frame
from flwr_slfac.codec.temporal.header import Header, Ids
from flwr_slfac.codec.temporal.memory import (
    DEFAULT_MAX_BYTES,
    INDEX_BYTES,
    SampleMemory,
)
from flwr_slfac.codec.temporal.prediction import Choice, predict, repeat
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import EncodeError, SettingError

# With less left over than this share of the energy prediction pays for sure; with more
# the batch is coded both ways, which takes twice the time.
_SURELY_PAYS = 0.05
# Our choice: a frame that takes this share of what it may had a limit, not an error.
_LIMITED = 0.9
# An aim of 1 would be to send nothing, which inner codecs do not take.
_LARGEST_AIM = 0.95


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
    numbers cross in the frame, unless the receiver knows them (`Hints.samples_known`)
    and gives them to `decode`. A sample is sent whole, or what its prediction leaves
    over, or not at all where that is no more than the error it may have. A frame for
    which prediction does not pay is the inner codec's and some bytes. The relative
    error is within a tenth of that of an inner codec which aims at one, `Waterfill` by
    `nrmse`: the error stays and the bytes fall. With others the bytes stay and the
    error falls, by no stated bound. NaN and infinity are refused.

    Each frame names the version of the memory that it counts on, a digest of all frames
    before, with the samples that it does not name; a decoder with another one refuses
    it, see `SampleMemory`. Machines that
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
    threshold : float, optional
        In (0, 1]. SplitCom's rule (arXiv 2602.10564) in place of prediction, as a
        baseline: a sample whose cosine similarity with what is remembered of it is no
        less is not sent, and the server goes on with what it has; any other is sent
        whole. The error is then bounded by no setting. Of the paper is that activations
        are sent where they deviate from those of epochs before by a threshold; our
        reading is that this is fixed (theirs is adapted while training runs), that all
        values of a sample are compared (theirs are reduced in dimension), and that they
        are compared with what was decoded. The server's gradient, of what it went on
        with, is applied to the device's own activations.

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
    threshold: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.inner, str):
            object.__setattr__(self, "inner", parse_codec(self.inner))
        if not isinstance(self.inner, Codec) or _remembers(self.inner):
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
        threshold = self.threshold
        is_number = type(threshold) in (int, float)
        if threshold is not None and not (is_number and 0 < threshold <= 1):
            raise SettingError(
                f"threshold is {threshold!r}; give a cosine similarity above 0, at "
                "most 1, or None to predict"
            )

    def config(self) -> dict[str, Any]:
        """Return the settings, the inner codec as its text."""
        return {**super().config(), "inner": format_codec(self.inner)}

    @property
    def relative_error(self) -> float | None:
        """That of the inner codec; None where samples are left out by a threshold."""
        return None if self.threshold else self.inner.relative_error

    @property
    def most_samples(self) -> int:
        """How many samples it remembers at most, of however few values."""
        return self.max_bytes // INDEX_BYTES

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
        try:
            ids = ids_of(hints.samples, len(x))
        except ValueError as error:
            raise EncodeError(str(error)) from error
        memory = dict(hints.memory)
        before = SampleMemory(memory)
        if before.max_bytes != self.max_bytes:
            before.begin(self.max_bytes)
        version = bytes.fromhex(before.version)
        counted = counted_on(version, ids) if hints.samples_known else version
        coded = self._cheapest(x, ids, Hints(hints.role, hints.seed, memory))
        named = None if hints.samples_known else ids
        said = coded.said(named, self.bits, version and counted, self.max_bytes)
        header = Header(inner.codec_id, said).to_bytes()
        sections = [header, *coded.sections]
        after = version_after(counted, x.dtype, x.shape, sections)
        whole = coded.decoded(x, inner)
        SampleMemory(coded.memory).put(ids, whole, self.bits, after)
        # Only now, so that whatever failed before has changed nothing.
        hints.memory.clear()
        hints.memory.update(coded.memory)
        return sections

    def _cheapest(self, x: torch.Tensor, ids: Ids, hints: Hints) -> Candidate:
        """Code a batch with prediction or without, whichever takes fewer bytes."""
        remembered, known = SampleMemory(hints.memory).find(ids, x.shape[1:])
        if self.threshold is not None:
            like = repeat(x, remembered, known, self.threshold)
            return code(x, self.inner, hints, like)
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
        return decoded_frame(frame, memory, device)


def _aimed(inner: Codec, choice: Choice, memory: Memory) -> Codec:
    """Return an inner codec for what is left over of a batch."""
    if choice.aim is None:
        return inner
    clamping = 1.0
    if choice.prediction.clamps and CLAMPING in memory:
        clamping = float(memory[CLAMPING])
    return inner.aiming_at(min(choice.aim / clamping**0.5, _LARGEST_AIM))


def _remembers(codec: Codec) -> bool:
    return codec.needs_samples or isinstance(codec, Feedback)
