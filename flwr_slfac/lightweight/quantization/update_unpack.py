"""Undo the packing of a model update; any bytes at all are safe to pass."""

from collections.abc import Iterator
from itertools import accumulate

import torch

from flwr_slfac.codec.packing import unpack_codes
from flwr_slfac.codec.wire import Frame, from_bytes, unpack_frame
from flwr_slfac.errors import DecodeError
from flwr_slfac.lightweight.quantization.qsgd import (
    MAX_BITS,
    MIN_BITS,
    code_values,
    in_buckets,
    num_levels,
)
from flwr_slfac.lightweight.quantization.update_layout import (
    EXACT,
    FRAME_ID,
    HEADER,
    NUM_SECTIONS,
    QUANTIZED,
    UNCHANGED,
    fingerprint_of,
    work_dtype,
)
from flwr_slfac.states import State

_CPU = torch.device("cpu")


def unpack_update(data: bytes, reference: State) -> dict[str, torch.Tensor]:
    """Return the state that an update leads to; any bytes at all are safe to pass.

    Parameters
    ----------
    data : bytes
        What `pack_update` made, or anything at all. No more memory is taken than a
        small multiple of `reference` and `data`.
    reference : mapping of str to Tensor
        The state that the update was taken against.

    Returns
    -------
    dict of str to Tensor
        New tensors of the names, shapes, dtypes and devices of `reference`.

    Raises
    ------
    DecodeError
        If the bytes are not a valid update of `reference`.
    """
    limit = sum(t.numel() for t in reference.values() if t.is_floating_point())
    # A frame counts an empty tensor as one element.
    frame = unpack_frame(data, max_elements=max(limit, 1))
    bits, bucket, modes = _read_header(frame, reference)
    chosen = [
        t for t, m in zip(reference.values(), modes, strict=True) if m == QUANTIZED
    ]
    sizes = [t.numel() for t in chosen]
    if frame.shape != (sum(sizes),):
        raise DecodeError(f"shape {frame.shape} for {sum(sizes)} quantized values")
    rows = [-(-size // bucket) for size in sizes]
    scales = from_bytes(frame.sections[2], torch.bfloat16, (sum(rows), 1), _CPU)
    if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
        raise DecodeError("a scale of the update is negative or not finite")
    codes = unpack_codes(frame.sections[3], bits, sum(sizes), _CPU)
    if codes.numel() and int(codes.max()) > 2 * num_levels(bits):
        raise DecodeError(f"a code of the update is above {2 * num_levels(bits)}")
    deltas = zip(torch.split(codes, sizes), torch.split(scales, rows), strict=True)
    exact = _exact_values(frame.sections[4], reference, modes)
    state = {}
    for (name, old), mode in zip(reference.items(), modes, strict=True):
        if mode == UNCHANGED:
            state[name] = old.detach().clone()
        elif mode == EXACT:
            state[name] = next(exact).to(old.device)
        else:
            state[name] = _moved(name, old.detach(), *next(deltas), bits, bucket)
    return state


def _read_header(frame: Frame, reference: State) -> tuple[int, int, bytes]:
    """Return bits, bucket and modes that fit the reference, or raise DecodeError."""
    lengths = [section.nbytes for section in frame.sections]
    if frame.codec_id != FRAME_ID or lengths[:2] != [HEADER.size, len(reference)]:
        raise DecodeError("not a model update, or not one of this model")
    bits, bucket, fingerprint = HEADER.unpack(frame.sections[0])
    if len(lengths) != NUM_SECTIONS or not MIN_BITS <= bits <= MAX_BITS or bucket == 0:
        raise DecodeError(f"no update has {bits} bits and buckets of {bucket}")
    if fingerprint != fingerprint_of(reference):
        raise DecodeError(
            "the update was taken against another model than the one given; keep the "
            "model that the device received until its update is here"
        )
    modes = bytes(frame.sections[1])
    for mode, tensor in zip(modes, reference.values(), strict=True):
        last = QUANTIZED if tensor.is_floating_point() else EXACT
        if mode > last:
            raise DecodeError(f"no tensor of {tensor.dtype} is sent in mode {mode}")
    return bits, bucket, modes


def _exact_values(
    section: memoryview, reference: State, modes: bytes
) -> Iterator[torch.Tensor]:
    """Return the tensors that travelled exactly, in order, checked."""
    chosen = [t for t, m in zip(reference.values(), modes, strict=True) if m == EXACT]
    ends = list(accumulate((t.numel() * t.element_size() for t in chosen), initial=0))
    if section.nbytes != ends[-1]:
        raise DecodeError(f"{section.nbytes} bytes of exact values, not {ends[-1]}")
    values = []
    for old, start, end in zip(chosen, ends, ends[1:], strict=False):
        value = from_bytes(section[start:end], old.dtype, old.shape, _CPU)
        if old.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DecodeError("an exact value of the update is not finite")
        if old.dtype is torch.bool and value.view(torch.uint8).gt(1).any():
            raise DecodeError("a bool of the update is neither 0 nor 1")
        values.append(value)
    return iter(values)


def _moved(
    name: str,
    old: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    bucket: int,
) -> torch.Tensor:
    """Return a tensor moved by its coded update."""
    wide = work_dtype(old)
    rows = in_buckets((codes - num_levels(bits)).to(wide), bucket)
    update = code_values(rows, scales.to(wide), bits).reshape(-1)[: old.numel()]
    new = (old.to("cpu", wide) + update.reshape(old.shape)).to(old.dtype)
    if not bool(torch.isfinite(new).all()):
        raise DecodeError(f"the update of {name!r} leads to NaN or infinity")
    return new.to(old.device)
