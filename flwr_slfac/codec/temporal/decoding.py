"""Decoding a frame with the samples in memory; nothing changes if it is refused."""

import torch

from flwr_slfac.codec.base import Codec, Memory
from flwr_slfac.codec.coding import tensor_of
from flwr_slfac.codec.feedback import Feedback
from flwr_slfac.codec.finite import is_finite
from flwr_slfac.codec.registry import find_codec
from flwr_slfac.codec.temporal.agreement import counted_on, ids_of, version_after
from flwr_slfac.codec.temporal.header import Header, Ids, Samples
from flwr_slfac.codec.temporal.memory import SampleMemory
from flwr_slfac.codec.temporal.prediction import Prediction, num_channels_of
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError, SettingError

__all__ = ["decoded_frame"]

_CPU = torch.device("cpu")


def decoded_frame(frame: Frame, memory: Memory, device: torch.device) -> torch.Tensor:
    """Return a frame's tensor, and remember its samples.

    Parameters
    ----------
    frame, memory, device
        As of `Codec.decode_sections`.

    Raises
    ------
    DecodeError
        If the frame is none, or counts on other samples than those here.
    """
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
    ids = _ids_here(frame) if said.ids is None else said.ids
    own = dict(memory)
    counted = _agreed(SampleMemory(own), said, ids)
    prediction = _recalled(SampleMemory(own), said, ids, frame)
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
    version = version_after(counted, frame.dtype, frame.shape, frame.sections)
    SampleMemory(own).put(ids, whole, said.bits, version)
    memory.clear()
    memory.update(own)
    return whole.to(device)


def _ids_here(frame: Frame) -> Ids:
    """Return the samples that the receiver says a frame is of."""
    if frame.samples is None:
        raise DecodeError(
            "the frame names no samples, and it is not known here which they are; "
            "decode with samples=, or encode without samples_known"
        )
    try:
        return ids_of(frame.samples, frame.shape[0])
    except ValueError as error:
        raise DecodeError(str(error)) from error


def _agreed(samples: SampleMemory, said: Samples, ids: Ids) -> bytes:
    """Return what a frame counts on, after beginning anew if it does.

    Raises
    ------
    DecodeError
        If that is not what is here.
    """
    if not said.version:
        if said.max_bytes > samples.most_bytes:
            raise DecodeError(
                f"samples are to be remembered in {said.max_bytes} bytes; the limit "
                f"here is {samples.most_bytes}, see SampleMemory.allow"
            )
        samples.begin(said.max_bytes)
    counted = bytes.fromhex(samples.version)
    if said.ids is None:
        counted = counted_on(counted, ids)
    if said.version and said.version != counted:
        which = ", and of other samples" if said.ids is None else ""
        raise DecodeError(
            f"the frame counts on samples of version {said.version.hex()}, and those "
            f"in memory are of version {samples.version or 'none'}{which}; let both "
            "sides begin anew"
        )
    return counted


def _recalled(
    samples: SampleMemory, said: Samples, ids: Ids, frame: Frame
) -> Prediction | None:
    """Return what predicts a frame's tensor, None if nothing does.

    Raises
    ------
    DecodeError
        If a sample is not in memory.
    """
    if said.modes is None:
        return None
    rows, known = samples.find(ids, frame.shape[1:])
    if not known[said.modes != 0].all():
        raise DecodeError("a sample is predicted that is not in memory")
    return Prediction.of(rows, said.modes, said.gains, frame.dtype, clamps=said.clamps)


def _inner_of(name: str) -> type[Codec]:
    try:
        inner = find_codec(name)
    except SettingError as error:
        raise DecodeError(str(error)) from error
    if inner is None or inner.needs_samples or issubclass(inner, Feedback):
        raise DecodeError(f"codec {name!r} is not known inside 'temporal'")
    return inner


def _decoded(
    frame: Frame, inner: type[Codec], memory: Memory, device: torch.device
) -> torch.Tensor:
    found = tensor_of(frame, inner, memory, device)
    if inner.carries_nonfinite and not is_finite(found):
        raise DecodeError("codec 'temporal' carries no NaN and no infinity")
    return found
