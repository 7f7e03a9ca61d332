"""Code the model update that a device sends up: quantized, with error feedback.

An update is the difference between the trained state and the state that both sides
hold (the reference); `update_layout` draws its bytes. Weights, biases and norm scales
are quantized by QSGD. Integer buffers and running statistics travel exactly: they are
one or two percent of the bytes, and a variance that noise made negative would be NaN
at the next evaluation. Tensors that did not change cost their byte of mode only.

The residual of error feedback is after Seide et al., "1-bit stochastic gradient descent
and its application to data-parallel distributed training of speech DNNs" (2014); that
codes are then rounded to nearest is our choice.
"""

import math
from dataclasses import dataclass, field

import torch

from flwr_slfac.codec.packing import pack_codes
from flwr_slfac.codec.wire import DTYPES, as_bytes, pack_frame
from flwr_slfac.errors import DivergedError, SettingError
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
    fingerprint_of,
    rounded_up,
    work_dtype,
)
from flwr_slfac.states import State, misfits


def update_variance(bits: int, bucket: int = DEFAULT_BUCKET) -> float:
    """Return q with ``E |sent - update|^2 <= q |update|^2`` without a residual.

    That of QSGD whose scale, rounded up to bfloat16, is at most 1 + 1/128 times the
    largest magnitude c; then ``d c^2 / (4 s^2)`` and ``c (1 + sqrt(d)) / (2 s)`` bound
    the variance of d values on s levels. Derived here, as :func:`qsgd_variance` is.

    Parameters
    ----------
    bits : int
        2 to 8 bits a value, sign included.
    bucket : int (default: 512)
        Values that share a scale, 1 to 65535.

    Raises
    ------
    SettingError
        If a setting is out of range.

    Examples
    --------
    >>> round(update_variance(8), 4), round(update_variance(4), 2)
    (0.0081, 1.7)
    """
    require_qsgd(bits, bucket)
    s, c = num_levels(bits), SCALE_SLACK
    return min(bucket * c**2 / (4 * s**2), c * (1 + math.sqrt(bucket)) / (2 * s))


def require_sendable(state: State) -> None:
    """Raise SettingError if an update of a state cannot be packed, by its dtypes."""
    for name, tensor in state.items():
        if tensor.dtype not in DTYPES:
            raise SettingError(
                f"{name!r} is {tensor.dtype}, which a quantized update does not carry; "
                "set update_bits=32"
            )


def pack_update(
    new: State,
    reference: State,
    bits: int,
    generator: torch.Generator,
    *,
    bucket: int = DEFAULT_BUCKET,
    residual: dict[str, torch.Tensor] | None = None,
) -> bytes:
    """Code the update from `reference` to `new`.

    Floating tensors whose last name begins with ``running_``, as the statistics of
    PyTorch's norm layers do, travel exactly.

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
        If a value to send is NaN or infinite, or an update above the largest bfloat16.

    Notes
    -----
    Without `residual` the mean of what is received is `new`, with the variance of
    `update_variance`, up to rounding to the tensor's dtype.

    Examples
    --------
    >>> old = {"w": torch.zeros(4), "num": torch.tensor(1)}
    >>> new = {"w": torch.tensor([0.5, -0.5, 0.0, 0.5]), "num": torch.tensor(2)}
    >>> from flwr_slfac.lightweight.quantization.update_unpack import unpack_update
    >>> data = pack_update(new, old, 4, torch.Generator().manual_seed(0))
    >>> unpack_update(data, old)
    {'w': tensor([ 0.5000, -0.5000,  0.0000,  0.5000]), 'num': tensor(2)}
    """
    require_qsgd(bits, bucket)
    _require_alike(new, reference)
    require_sendable(reference)
    coder = _Coder(bits, bucket, generator, residual)
    for name, old in reference.items():
        coder.add(name, new[name].detach(), old.detach(), _is_statistic(name))
    header = HEADER.pack(bits, bucket, fingerprint_of(reference))
    sections = [header, bytes(coder.modes), *coder.sections()]
    return pack_frame(FRAME_ID, torch.float32, (coder.num_codes,), sections)


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
    # Codes by where the new values are: tied weights are one tensor of two names.
    drawn: dict[tuple[int, torch.Size], torch.Tensor] = field(default_factory=dict)

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
            place = (new.data_ptr(), new.shape)
            self._add_quantized(name, _difference(new, old), unsent, place)

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
        self,
        name: str,
        update: torch.Tensor,
        unsent: torch.Tensor | None,
        place: tuple[int, torch.Size],
    ) -> None:
        if unsent is not None:
            update = update + unsent.to(update)
        buckets = in_buckets(update, self.bucket)
        try:
            scales = rounded_up(bucket_scales(buckets))
        except DivergedError as error:
            raise DivergedError(f"the update of {name!r}: {error}") from error
        wide = scales.to(buckets.dtype)
        if self.residual is None:
            if place not in self.drawn:
                codes = stochastic_codes(buckets, wide, self.bits, self.generator)
                self.drawn[place] = codes
            codes = self.drawn[place]
        else:
            codes = nearest_codes(buckets, wide, self.bits)
            sent = code_values(codes, wide, self.bits).reshape(-1)[: update.numel()]
            self.residual[name] = update - sent.reshape(update.shape)
        whole = codes.reshape(-1)[: update.numel()].to("cpu", torch.int16)
        self.modes.append(QUANTIZED)
        self.scales.append(scales.cpu())
        self.codes.append(whole.add_(num_levels(self.bits)))


def _difference(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    wide = work_dtype(new)
    return new.to(wide) - old.to(new.device, wide)


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2].startswith("running_")


def _require_alike(new: State, reference: State) -> None:
    if problems := misfits(new, reference):
        raise SettingError(
            f"the state does not fit the reference: {'; '.join(problems)}; pass the "
            "same model's"
        )
    for name, old in reference.items():
        dtype = new[name].dtype
        if dtype != old.dtype:
            raise SettingError(f"{name!r} is {dtype}, in the reference {old.dtype}")
