"""The model update that a device sends up: quantized, packed, safe to unpack.

An update is the difference between the trained state and the state that both sides
hold (the reference); `update_layout` draws its bytes. Weights, biases and norm scales
are quantized by QSGD. Integer buffers and running statistics travel exactly: they are
one or two percent of the bytes, and a variance that noise made negative would be NaN
at the next evaluation. Tensors that did not change cost their byte of mode only.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from flwr_slfac.codec.packing import pack_codes, unpack_codes
from flwr_slfac.codec.wire import (
    DTYPES,
    as_bytes,
    from_bytes,
    pack_frame,
    unpack_frame,
)
from flwr_slfac.errors import DecodeError, DivergedError, SettingError
from flwr_slfac.lightweight.quantization.qsgd import (
    DEFAULT_BUCKET,
    bucket_scales,
    code_values,
    in_buckets,
    nearest_codes,
    num_levels,
    require_qsgd,
    stochastic_codes,
)
from flwr_slfac.lightweight.quantization.update_layout import (
    EXACT,
    FRAME_ID,
    HEADER,
    QUANTIZED,
    SCALE_SLACK,
    UNCHANGED,
    exact_values,
    fingerprint_of,
    read_header,
    rounded_up,
)
from flwr_slfac.states import State

_CPU = torch.device("cpu")


def update_variance(bits: int, bucket: int = DEFAULT_BUCKET) -> float:
    """Return q with ``E |sent - update|^2 <= q |update|^2`` without a residual.

    That of QSGD whose scale, rounded up to bfloat16, is at most 1 + 1/128 times the
    largest magnitude c; then ``d c^2 / (4 s^2)`` and ``c (1 + sqrt(d)) / (2 s)`` bound
    the variance of d values on s levels.

    Examples
    --------
    >>> round(update_variance(8), 4), round(update_variance(4), 2)
    (0.0081, 1.7)
    """
    require_qsgd(bits, bucket)
    s, c = num_levels(bits), SCALE_SLACK
    return min(bucket * c**2 / (4 * s**2), c * (1 + math.sqrt(bucket)) / (2 * s))


def pack_update(
    new: State,
    reference: State,
    bits: int,
    generator: torch.Generator,
    *,
    bucket: int = DEFAULT_BUCKET,
    exact: Collection[str] | None = None,
    residual: dict[str, torch.Tensor] | None = None,
) -> bytes:
    """Code the update from `reference` to `new`.

    Parameters
    ----------
    new, reference : mapping of str to Tensor
        State dicts of equal names, shapes and dtypes, on any device. The receiver
        must hold the same `reference`, bit for bit.
    bits : int
        2 to 8 bits a value of the update, sign included.
    generator : torch.Generator
        Source of the rounding's noise, on any device.
    bucket : int (default: 512)
        Values that share a scale of 2 bytes; at most 65535.
    exact : collection of str, optional
        Names of floating tensors that travel exactly. By default those whose last
        name begins with ``running_``, as the statistics of PyTorch's norm layers do.
    residual : dict of str to Tensor, optional
        Error feedback: what earlier updates left unsent. It is added to this update,
        and its entries are replaced by what this update leaves; start with an empty
        dict and keep it from round to round. Codes are then rounded to nearest, not
        stochastically: feedback needs an error that is never larger than the value,
        which unbiased noise of few bits is not.

    Returns
    -------
    bytes
        For `unpack_update`.

    Raises
    ------
    SettingError
        If a setting is out of range or the states do not fit each other.
    DivergedError
        If a value to send is NaN or infinite.

    Notes
    -----
    Without `residual` the mean of what is received is `new`, with the variance of
    `update_variance`, up to rounding to the tensor's dtype.

    Examples
    --------
    >>> old = {"w": torch.zeros(4), "num": torch.tensor(1)}
    >>> new = {"w": torch.tensor([0.5, -0.5, 0.0, 0.5]), "num": torch.tensor(2)}
    >>> data = pack_update(new, old, 4, torch.Generator().manual_seed(0))
    >>> unpack_update(data, old)
    {'w': tensor([ 0.5000, -0.5000,  0.0000,  0.5000]), 'num': tensor(2)}
    """
    require_qsgd(bits, bucket)
    _require_alike(new, reference)
    coder = _Coder(bits, bucket, generator, residual)
    for name, old in reference.items():
        coder.add(name, new[name].detach(), old.detach(), _is_exact(name, exact))
    header = HEADER.pack(bits, bucket, fingerprint_of(reference))
    sections = [header, bytes(coder.modes), *coder.sections()]
    return pack_frame(FRAME_ID, torch.float32, (coder.num_codes,), sections)


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
    bits, bucket, modes = read_header(frame, reference)
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
    exact = exact_values(frame.sections[4], reference, modes)
    state = {}
    for (name, old), mode in zip(reference.items(), modes, strict=True):
        if mode == UNCHANGED:
            state[name] = old.detach().clone()
        elif mode == EXACT:
            state[name] = next(exact).to(old.device)
        else:
            state[name] = _moved(name, old.detach(), *next(deltas), bits, bucket)
    return state


@dataclass
class _Coder:
    """Gathers the sections of an update, tensor after tensor."""

    bits: int
    bucket: int
    generator: torch.Generator
    residual: dict[str, torch.Tensor] | None
    modes: list[int] = field(default_factory=list)
    scales: list[torch.Tensor] = field(default_factory=list)
    codes: list[torch.Tensor] = field(default_factory=list)
    exact: list[memoryview] = field(default_factory=list)

    @property
    def num_codes(self) -> int:
        return sum(codes.numel() for codes in self.codes)

    def add(self, name: str, new: torch.Tensor, old: torch.Tensor, exact: bool) -> None:
        """Code one tensor."""
        unsent = None if self.residual is None else self.residual.get(name)
        exact = exact or not new.is_floating_point()
        if torch.equal(new, old) and (exact or unsent is None):
            self.modes.append(UNCHANGED)
        elif exact:
            self._add_exact(name, new)
        else:
            self._add_quantized(name, _difference(new, old), unsent)

    def sections(self) -> list[bytes | memoryview]:
        """Return scales, codes and exact values as bytes."""
        scales = torch.cat([torch.empty(0, 1, dtype=torch.bfloat16), *self.scales])
        codes = torch.cat([torch.empty(0, dtype=torch.int16), *self.codes])
        packed = pack_codes(codes, self.bits)
        return [as_bytes(scales), packed, b"".join(self.exact)]

    def _add_exact(self, name: str, new: torch.Tensor) -> None:
        if new.is_floating_point() and not bool(torch.isfinite(new).all()):
            raise DivergedError(
                f"{name!r} holds NaN or infinity after training; lower the learning "
                "rate or clip gradients"
            )
        self.modes.append(EXACT)
        self.exact.append(as_bytes(new))

    def _add_quantized(
        self, name: str, update: torch.Tensor, unsent: torch.Tensor | None
    ) -> None:
        if unsent is not None:
            update = update + unsent.to(update)
        buckets = in_buckets(update, self.bucket)
        try:
            scales = rounded_up(bucket_scales(buckets, "max"))
        except DivergedError as error:
            raise DivergedError(f"the update of {name!r}: {error}") from error
        wide = scales.to(buckets.dtype)
        if self.residual is None:
            codes = stochastic_codes(buckets, wide, self.bits, self.generator)
        else:
            codes = nearest_codes(buckets, wide, self.bits)
            sent = code_values(codes, wide, self.bits).reshape(-1)[: update.numel()]
            self.residual[name] = update - sent.reshape(update.shape)
        whole = codes.reshape(-1)[: update.numel()].to("cpu", torch.int16)
        self.modes.append(QUANTIZED)
        self.scales.append(scales.cpu())
        self.codes.append(whole.add_(num_levels(self.bits)))


def _moved(
    name: str,
    old: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    bucket: int,
) -> torch.Tensor:
    """Return a tensor moved by its coded update."""
    wide = _work_dtype(old)
    rows = in_buckets((codes - num_levels(bits)).to(wide), bucket)
    update = code_values(rows, scales.to(wide), bits).reshape(-1)[: old.numel()]
    new = (old.to("cpu", wide) + update.reshape(old.shape)).to(old.dtype)
    if not bool(torch.isfinite(new).all()):
        raise DecodeError(f"the update of {name!r} leads to NaN or infinity")
    return new.to(old.device)


def _difference(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    wide = _work_dtype(new)
    return new.to(wide) - old.to(new.device, wide)


def _work_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


def _is_exact(name: str, exact: Collection[str] | None) -> bool:
    if exact is None:
        return name.rpartition(".")[2].startswith("running_")
    return name in exact


def _require_alike(new: State, reference: State) -> None:
    if new.keys() != reference.keys():
        differing = sorted(new.keys() ^ reference.keys())
        raise SettingError(f"the states differ in {differing}; pass the same model's")
    for name, old in reference.items():
        tensor = new[name]
        if (tensor.shape, tensor.dtype) != (old.shape, old.dtype):
            raise SettingError(
                f"{name!r} is {tuple(tensor.shape)} {tensor.dtype}, in the reference "
                f"{tuple(old.shape)} {old.dtype}"
            )
        if tensor.dtype not in DTYPES:
            raise SettingError(f"{name!r} is {tensor.dtype}, which is not sent")
