"""Reverse water-filling by one step for all coefficients, and a range coder.

Under mean-square error a Gaussian vector is best coded by giving each component the
same distortion, or none where its variance is below the water level (Cover and Thomas,
Elements of Information Theory, 2nd ed., 10.3.3). A uniform step for all components,
followed by an entropy coder that knows each one's variance, does this within 0.25 bits
a value (Gish and Pierce 1968), and within less at low rates (Sullivan 1996).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast, get_args

import torch

from flwr_slfac.codec.base import Codec, Hints, Memory
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.registry import register
from flwr_slfac.codec.transforms import SPECTRUM, parse_basis
from flwr_slfac.codec.waterfill.budget import error_allowed, variation, weights_of
from flwr_slfac.codec.waterfill.encoder import Encoder
from flwr_slfac.codec.waterfill.normalize import normalize
from flwr_slfac.codec.waterfill.sections import read_sections, zero_sections
from flwr_slfac.codec.waterfill.streams import Coder
from flwr_slfac.codec.waterfill.target import Target
from flwr_slfac.codec.waterfill.transform import energy
from flwr_slfac.codec.waterfill.trials import bases_for
from flwr_slfac.codec.waterfill.usual import begun, choice_of, usual
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import SettingError

# Our choice: careful on any network, see README.md beside the codecs.
_DEFAULT_NRMSE = 0.1
# Our choice: longer than the name and level of any wavelet.
_MAX_BASIS_TEXT = 16
# Exponents of steps stay within float32's range.
_WIDEST = 120
# What may be aimed at, the most of it, which only bits may reach, and what together.
_TOGETHER = ["nrmse", "bits"], ["noise", "bits"]
_TARGETS = {"nrmse": 1.0, "noise": 1.0, "bits": 32.0, "step": math.inf}


@register
@dataclass(frozen=True)
class Waterfill(Codec):
    """Orthonormal transform, one step by reverse water-filling, range coding.

    Our choice, because one step for all coefficients is the optimum of reverse
    water-filling: see README.md beside the codecs, and the sources in this module.

    Give one of `nrmse`, `noise`, `bits`, `step`; none of them means ``nrmse=0.1``.
    Beside `nrmse` or `noise`, `bits` is a limit: where the error that is asked for
    takes more, it is larger, its square up to three quarters of the energy, and in
    planes of at most 64 positions (vectors, small maps) up to ten times what is asked.

    Parameters
    ----------
    nrmse : float, optional
        Relative error to hit, ``norm(x - decoded) / norm(x)``, in (0, 1).
    noise : float, optional
        Share of the variance that mini-batches give the gradients of weights anyway,
        which coding may add to it, in (0, 1); our reading, see `budget`. Gradients
        of maps are weighed by frequency, as `Hints.activations` tell, in the DCT alone.
    bits : float, optional
        Bits per value to hit, the whole frame counted, in (0, 32]: within a percent, 3
        in a stream, 5 with the coder "best". Where headers alone take more, the frame
        is about as small as it can be. Alone or beside `noise`, a gradient's
        frequencies are weighed as with `noise`.
    step : float, optional
        Quantization step of all coefficients, in the unit of the tensor; at least
        2**-22 of the largest coefficient is used.
    basis : str, default "auto"
        Spatial basis, see `parse_basis`, or ``"auto"``: the one of identity, DCT and
        a wavelet that the tensor suits.
    channels : {"klt", None}, default "klt"
        Whether channels may be decorrelated by their Karhunen-Loeve basis. It is used
        where it saves more than it costs, and reused over steps by `Hints.memory`; so
        is what trials chose, which come every sixteenth step, or less often.
    coder : {"range", "best"}, default "range"
        ``"range"`` comes within about a percent of the entropy of its model. ``"best"``
        takes about a tenth fewer bytes than ``"range"``, and many times as long: it
        quantizes by a trellis and mixes contexts, see `trellis`.

    Raises
    ------
    SettingError
        If targets are given that do not go together, or a setting is out of range;
        from `encode`, if `basis` is a wavelet that cannot do the sizes of the tensor.

    Notes
    -----
    Samples, channels and positions are dimensions (N), (C), (H, W) of (N, C, H, W);
    tokens (N, T, D) have D channels, vectors (N, D) D channels of one position, a
    tensor of one dimension is one channel.

    The relative error is within 2 percent of `nrmse` where the tensor has enough
    coefficients to be that fine about, and `nrmse` is 1e-5 or more. Arithmetic is in
    float32. A tensor without negative values decodes without negative values.

    Examples
    --------
    >>> import torch
    >>> from flwr_slfac.codec import decode, encode
    >>> x = torch.randn(16, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> error = (decode(encode(x, Waterfill(nrmse=0.1))) - x).norm() / x.norm()
    >>> bool(abs(error / 0.1 - 1) < 0.02)
    True
    """

    codec_id: ClassVar[str] = "waterfill"

    nrmse: float | None = None
    noise: float | None = None
    bits: float | None = None
    step: float | None = None
    basis: str = "auto"
    channels: str | None = "klt"
    coder: str = "range"

    def __post_init__(self) -> None:
        self._require_targets()
        if self.channels not in ("klt", None):
            raise SettingError(f"channels is {self.channels!r}; give 'klt' or None")
        if self.coder not in get_args(Coder):
            raise SettingError(f"coder is {self.coder!r}; use one of {get_args(Coder)}")
        if self.basis != "auto" and len(str(parse_basis(self.basis))) > _MAX_BASIS_TEXT:
            raise SettingError(f"basis {self.basis!r} is too long a name")

    def _require_targets(self) -> None:
        given = [n for n in _TARGETS if getattr(self, n) is not None]
        if len(given) > 1 and given not in _TOGETHER:
            raise SettingError(
                f"{' and '.join(given)} are given; give one of them, or bits beside "
                "nrmse or noise"
            )
        for name in given:
            value, limit = getattr(self, name), _TARGETS[name]
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value <= limit
                or (value == limit and name != "bits")
            ):
                raise SettingError(
                    f"{name} is {value!r}; give a number above 0 and "
                    f"{'below' if name != 'bits' else 'up to'} {limit:g}"
                )

    @property
    def wants_activations(self) -> bool:
        """Whether a gradient is weighed by its activations: see `noise`, `bits`."""
        return self.noise is not None or (self.bits is not None and self.nrmse is None)

    @property
    def relative_error(self) -> float | None:
        """The root of `noise`, or the error that `nrmse` asks for; None for others."""
        if self.noise is not None:
            return math.sqrt(self.noise)
        if self.nrmse is not None:
            return self.nrmse
        is_told = self.bits is not None or self.step is not None
        return None if is_told else _DEFAULT_NRMSE

    @property
    def most_bits(self) -> float | None:
        """The limit beside `noise` or `nrmse`."""
        return None if self.relative_error is None else self.bits

    def aiming_at(self, relative_error: float) -> "Waterfill":
        """Return the codec with another `noise` or `nrmse`, if that is its target."""
        if self.noise is not None:
            return replace(self, noise=relative_error**2)
        return replace(self, nrmse=relative_error) if self.relative_error else self

    def settled(self, tensor: torch.Tensor, hints: Hints) -> "Waterfill":
        """Return the codec with the `nrmse` that `noise` allows activations."""
        if self.noise is None or hints.role == "gradient":
            return self
        error = error_allowed(self.noise, tensor, hints)
        return replace(self, noise=None, nrmse=error) if error else self

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Code the tensor at the step that meets the target."""
        if tensor.numel() == 0:
            return zero_sections()
        shape = PlaneShape.of(tensor.shape)
        planes = shape.to_planes(tensor.contiguous()).contiguous()
        x, normalization = normalize(planes)
        weights = weights_of(hints, self.basis) if self.wants_activations else None
        if weights is not None:
            x = weights.spectra(x, shape)
            normalization = replace(normalization, is_nonnegative=False)
        total = energy(x)
        if total == 0.0:
            return zero_sections()
        encoder = Encoder(
            x,
            shape,
            normalization,
            weights,
            bases_for(self.basis, shape.sizes) if weights is None else (SPECTRUM,),
            self.channels is not None,
            cast(Coder, self.coder),
            hints,
        )
        return encoder.sections(self._target(total, x, hints, normalization.exponent))

    def _target(
        self, total: float, x: torch.Tensor, hints: Hints, exponent: int
    ) -> Target:
        if self.step is not None:
            mantissa, power = math.frexp(self.step)
            power = min(max(power - exponent, -_WIDEST), _WIDEST)
            return Target(total, step=math.ldexp(mantissa, power))
        num_bits = None if self.bits is None else self.bits * x.numel()
        distortion = None
        if self.noise is not None:
            distortion = self.noise * variation(x, total, hints)
        elif self.relative_error is not None:
            distortion = self.relative_error**2 * total
        return Target(total, distortion, num_bits, num_positions=x.shape[2])

    @classmethod
    def choice_of(cls, frame: Frame) -> str:
        """Return what the frame was coded by, or raise DecodeError."""
        return choice_of(frame)

    @classmethod
    def usual(cls, choices: Sequence[str]) -> str:
        """Return the most common choice."""
        return usual(choices)

    def begun(self, memory: Memory, choice: str) -> Memory:
        """Return a new stream's memory, or raise DecodeError."""
        return begun(memory, choice)

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Decode with the stream's channel basis, or raise DecodeError."""
        return read_sections(frame, memory, device)
