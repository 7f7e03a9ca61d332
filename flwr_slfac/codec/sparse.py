"""Sparse codecs: the largest values of each sample, or now and then others."""

import struct
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from flwr_slfac.codec.base import Codec, Hints, Memory
from flwr_slfac.codec.finite import is_finite
from flwr_slfac.codec.layout import num_samples
from flwr_slfac.codec.packing import pack_positions, unpack_positions
from flwr_slfac.codec.registry import register
from flwr_slfac.codec.wire import Frame, as_bytes, from_bytes, require_sections
from flwr_slfac.errors import DecodeError, SettingError

Values = Literal["float16", "exact"]
_VALUES: tuple[Values, ...] = get_args(Values)
_HEADER = struct.Struct("<BBh")
# Largest float16 below 1.
_HALF_LAST = 1 - 2**-11
# Below float64's smallest subnormal, 2**-1074, whatever the half: only crafted.
_LEAST_EXPONENT = -1100


class _Sparse(Codec):
    """Send chosen values and their positions; subclasses choose.

    ::

        tensor --choose--> mask --pack_positions--> low bits, unary
                           values ---------------> scaled halves, or their own bytes
    """

    skips_empty: ClassVar[bool] = True
    fraction: float
    values: Values

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise SettingError(
                f"fraction is {self.fraction!r}; give more than 0, at most 1"
            )
        if self.values not in _VALUES:
            raise SettingError(f"values is {self.values!r}; give 'float16' or 'exact'")

    @abstractmethod
    def _choose(self, magnitudes: torch.Tensor, seed: int) -> torch.Tensor:
        """Return the mask of sent values of each sample, (samples, values)."""

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Return the header, the positions in two sections, the values."""
        flat = tensor.reshape(num_samples(tensor.shape), -1)
        magnitudes = flat.abs()
        # A zero decodes to zero unsent.
        mask = self._choose(magnitudes, hints.seed) & (magnitudes > 0)
        positions = mask.reshape(-1).nonzero()[:, 0].cpu().numpy()
        rice, low, unary = pack_positions(positions)
        exponent, coded = 0, as_bytes(flat[mask])
        if self.values == "float16":
            exponent, coded = _to_halves(flat[mask])
        header = _HEADER.pack(_VALUES.index(self.values), rice, exponent)
        return [header, low, unary, coded]

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Put the values at their positions, zero elsewhere, or raise DecodeError."""
        header, low, unary, coded = require_sections(frame, 4)
        if header.nbytes != _HEADER.size or header[0] >= len(_VALUES):
            raise DecodeError(f"codec {cls.codec_id!r} has no header {bytes(header)!r}")
        code, rice, exponent = _HEADER.unpack(header)
        positions = unpack_positions(rice, low, unary, frame.num_elements)
        count, cpu = (positions.size,), torch.device("cpu")
        if _VALUES[code] == "exact":
            values = from_bytes(coded, frame.dtype, count, cpu)
            if not is_finite(values):
                raise DecodeError(
                    f"codec {cls.codec_id!r} carries no NaN and no infinity"
                )
        else:
            halves = from_bytes(coded, torch.float16, count, cpu)
            values = _from_halves(halves, exponent, frame.dtype)
        out = torch.zeros(frame.num_elements, dtype=frame.dtype, device=device)
        out[torch.from_numpy(positions).to(device)] = values.to(device)
        return out.reshape(frame.shape)


@register
@dataclass(frozen=True)
class TopK(_Sparse):
    """Send the values of largest magnitude of each sample; the rest decode to zero.

    The sparsification of Aji and Heafield, Sparse Communication for Distributed
    Gradient Descent, EMNLP 2017, per sample of smashed data. Of equal magnitudes the
    earlier in C order are sent. Positions travel as Rice-coded gaps, about 0.47 bits a
    value at a fraction of 0.1, where a bitmap takes 1.

    An unsent value errs by its magnitude, which is at most that of every sent value of
    its sample. A sent one is exact, or as float16, scaled by a power of two to the
    largest one, errs by at most 2**-11 of itself or 2**-24 of the largest.

    Parameters
    ----------
    fraction : float, default 0.1
        Share of each sample's values that is sent, in (0, 1]; at least one value. A
        tensor of one dimension or none is one sample. Zeros are never sent.
    values : {"float16", "exact"}, default "float16"
        How sent values travel; "exact" is in the tensor's own dtype.

    Raises
    ------
    SettingError
        If a setting is out of range.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> decode(encode(torch.tensor([3.0, -1.0, 0.5, -4.0]), TopK(fraction=0.5)))
    tensor([ 3.,  0.,  0., -4.])
    """

    codec_id: ClassVar[str] = "topk"
    fraction: float = 0.1
    values: Values = "float16"

    def _choose(self, magnitudes: torch.Tensor, seed: int) -> torch.Tensor:
        return _largest(magnitudes, _num_sent(magnitudes, self.fraction))


@register
@dataclass(frozen=True)
class RandTopK(_Sparse):
    """Top-k that now and then sends a value from outside the k largest instead.

    Zheng et al., Reducing Communication for Split Learning by Randomized Top-k
    Sparsification, IJCAI 2023: each of the k values to send is drawn from the k largest
    with probability ``1 - alpha`` and from the others with probability `alpha`, without
    repetition. Our reading: how many come from outside is binomial in (k, alpha), and
    those, like those left out of the k largest, are uniform among their kind. The paper
    draws in training only and evaluates with plain top-k.

    An unsent value errs by its magnitude; sent ones are those of `TopK`.

    Parameters
    ----------
    fraction : float, default 0.1
        As in `TopK`.
    alpha : float, default 0.1
        Probability that a sent value is from outside the k largest, in [0, 1).
    values : {"float16", "exact"}, default "float16"
        As in `TopK`.

    Raises
    ------
    SettingError
        If a setting is out of range.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> x = torch.arange(1.0, 101.0)
    >>> int(decode(encode(x, RandTopK(fraction=0.2), seed=1)).count_nonzero())
    20
    """

    codec_id: ClassVar[str] = "randtopk"
    fraction: float = 0.1
    alpha: float = 0.1
    values: Values = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < 1:
            raise SettingError(f"alpha is {self.alpha!r}; give 0 or more, less than 1")

    def _choose(self, magnitudes: torch.Tensor, seed: int) -> torch.Tensor:
        num_rows, num_values = magnitudes.shape
        k = _num_sent(magnitudes, self.fraction)
        top = _largest(magnitudes, k)
        # On the CPU, so that the draw does not depend on the tensor's device.
        generator = torch.Generator().manual_seed(seed)
        picks = torch.rand((num_rows, k), generator=generator) < self.alpha
        outside = picks.sum(1, keepdim=True).clamp_(max=num_values - k).to(top.device)
        keys = torch.rand(top.shape, generator=generator, dtype=torch.float64)
        keys = keys.to(top.device)
        return _highest(keys, top, k - outside) | _highest(keys, ~top, outside)


def _num_sent(magnitudes: torch.Tensor, fraction: float) -> int:
    """Return how many of each sample's values a fraction is, at least one."""
    return max(1, int(fraction * magnitudes.shape[1] + 0.5))


def _largest(magnitudes: torch.Tensor, k: int) -> torch.Tensor:
    """Return the mask of each row's `k` largest values, the earlier of equal ones."""
    # torch.topk leaves open which of equal values it returns; their value is certain.
    threshold = magnitudes.topk(k, dim=1).values[:, -1:]
    above = magnitudes > threshold
    equal = magnitudes == threshold
    room = k - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= room))


def _highest(
    keys: torch.Tensor, among: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Return the mask of the `counts` (rows, 1) highest positive keys in `among`."""
    most = int(counts.max())
    if most == 0:
        return torch.zeros_like(among)
    candidates = torch.where(among, keys, -1.0)
    ranked = candidates.topk(most, dim=1).values
    threshold = ranked.gather(1, (counts - 1).clamp(min=0))
    return among & (candidates >= threshold) & (counts > 0)


def _to_halves(values: torch.Tensor) -> tuple[int, memoryview]:
    """Return the exponent and halves, below 1, of value = half * 2**exponent."""
    if values.numel() == 0:
        return 0, memoryview(b"")
    wide = values.to("cpu", torch.float64).numpy()
    exponent = int(np.frexp(np.abs(wide).max())[1])
    # A half that rounds up to 1 could decode to more than the dtype's largest value.
    scaled = np.clip(np.ldexp(wide, -exponent), -_HALF_LAST, _HALF_LAST)
    return exponent, as_bytes(torch.from_numpy(scaled.astype(np.float16)))


def _from_halves(
    halves: torch.Tensor, exponent: int, dtype: torch.dtype
) -> torch.Tensor:
    """Undo `_to_halves`, or raise DecodeError."""
    if not (halves.abs() < 1).all():
        raise DecodeError("a half on the wire is not below 1 in magnitude")
    largest_value = torch.finfo(dtype).max
    if not _LEAST_EXPONENT < exponent <= int(np.frexp(largest_value)[1]):
        raise DecodeError(f"an exponent of {exponent} does not fit {dtype}")
    wide = torch.from_numpy(np.ldexp(halves.double().numpy(), exponent))
    return wide.clamp_(-largest_value, largest_value).to(dtype)
