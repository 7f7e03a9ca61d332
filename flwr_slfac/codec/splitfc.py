"""SplitFC: random dropout of features by their dispersion, then quantization."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import Codec, Hints, Memory
from flwr_slfac.codec.layout import (
    from_rows,
    to_rows,
    within_channel_dims,
    within_column_dims,
)
from flwr_slfac.codec.minmax import (
    grid_codes,
    grid_ends,
    grid_points,
    require_finite_ends,
)
from flwr_slfac.codec.packing import num_packed_bytes, pack_codes, unpack_codes
from flwr_slfac.codec.registry import register
from flwr_slfac.codec.settings import require_bits
from flwr_slfac.codec.wire import Frame, as_bytes, from_bytes, require_sections
from flwr_slfac.errors import DecodeError, SettingError

Feature = Literal["channel", "column"]
_FEATURES: tuple[Feature, ...] = get_args(Feature)
# Our choice for the mean: half of what one feature may take.
_MAX_BITS = 8
# A limit of the format: a width travels in 4 bits.
_WIDTH_BITS = 4
_MAX_WIDTH = 2**_WIDTH_BITS - 1
# Halvings of the level: 2**-50 of its interval is below what rounding to bits can tell.
_NUM_HALVINGS = 50
# Dispersion is summed over codes of 12 bits: integers, so exact on any threads, whose
# squares fit int32 and are fine enough to tell features apart (our choice).
_DISPERSION_LAST = 2**12 - 1
Array: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]


@register
@dataclass(frozen=True)
class SplitFC(Codec):
    """Drop features of low dispersion at random, quantize the rest by their range.

    Oh et al., Communication-Efficient Split Learning via Adaptive Feature-Wise
    Compression, 2023 (arXiv 2307.10805)::

        features --dispersion--> keep probabilities --draw--> kept ones, / probability
        kept features --range--> bit widths --min-max grid each--> packed codes

    Adaptive feature-wise dropout: a feature is kept with a probability proportional to
    its standard deviation over the batch, at most 1, and divided by it, so that the
    decoded tensor is the original in the mean. Adaptive feature-wise quantization:
    levels follow the features' ranges under a budget. Our reading: widths are whole
    bits, ``log2(range)`` plus a constant, 0 to 15, `bits` a kept value in the mean; 0
    bits decode to the middle of the range; features without dispersion share what the
    others leave; at least one feature is kept. A gradient is coded by its own
    dispersion: the paper drops the gradients of the features that were dropped on the
    way up, which a codec that sees one direction cannot know.

    A dropped feature decodes to zero. A kept one, times its keep probability, errs by
    at most half its range, and by ``0.51 range / (2**width - 1)`` for a width above 0,
    plus two units in the last place of its largest magnitude.

    Parameters
    ----------
    drop : float, default 0.5
        Expected share of dropped features, in [0, 1).
    bits : int, default 8
        1 to 8: mean bits of a kept value. A kept feature costs two values of the
        tensor's dtype and 4 bits besides, each feature one bit.
    feature : {"channel", "column"}, default "channel"
        What a feature is. "column": one position of the sample over the batch, the
        paper's, for large batches. "channel": dimension 1 of ``(N, C, H, W)`` and
        ``(N, D)``, the last of ``(N, T, D)``; our choice, since a range a column costs
        more than it saves in small batches. Vectors and scalars are one feature.

    Raises
    ------
    SettingError
        If a setting is out of range.

    Examples
    --------
    >>> from flwr_slfac.codec import decode, encode
    >>> x = torch.tensor([[0.0, 9.0], [1.0, 9.0]])
    >>> decode(encode(x, SplitFC(drop=0.5)))
    tensor([[0., 0.],
            [1., 0.]])
    """

    codec_id: ClassVar[str] = "splitfc"
    skips_empty: ClassVar[bool] = True
    drop: float = 0.5
    bits: int = 8
    feature: Feature = "channel"

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise SettingError(f"drop is {self.drop!r}; give 0 or more, less than 1")
        require_bits(self.bits, 1, _MAX_BITS)
        if self.feature not in _FEATURES:
            raise SettingError(
                f"feature is {self.feature!r}; give 'channel' or 'column'"
            )

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Return the grouping, the mask, the widths, the ranges, the packed codes."""
        rows = to_rows(tensor, _feature_dims(tensor.ndim, self.feature)).flatten(1)
        lo, hi = grid_ends(rows, (1,))
        keep = keep_probabilities(dispersion(rows, lo, hi), self.drop)
        kept = np.flatnonzero(draw_kept(keep, hints.seed))
        widths = range_widths(_log_ranges(lo, hi)[kept], self.bits)
        index = torch.from_numpy(kept).to(rows.device)
        rows, lo, hi = rows[index], lo[index], hi[index]
        packed = [
            pack_codes(grid_codes(rows[of], lo[of], hi[of], 2**width - 1), width)
            for width, of in _by_width(widths, rows.device)
        ]
        mask = np.zeros(keep.size, dtype=np.uint8)
        mask[kept] = 1
        return [
            bytes([_FEATURES.index(self.feature)]),
            np.packbits(mask, bitorder="little").tobytes(),
            pack_codes(torch.from_numpy(widths), _WIDTH_BITS),
            as_bytes(_divided(torch.stack([lo, hi]), keep[kept])),
            b"".join(packed),
        ]

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Put the kept features' grid points at their places, zero elsewhere.

        Raises
        ------
        DecodeError
            If a section is not valid.
        """
        header, mask, width_codes, ends, packed = require_sections(frame, 5)
        if header.nbytes != 1 or header[0] >= len(_FEATURES):
            raise DecodeError(f"codec 'splitfc' has no header {bytes(header)!r}")
        dims = _feature_dims(len(frame.shape), _FEATURES[header[0]])
        row_length = math.prod(frame.shape[d] for d in dims)
        num_rows = frame.num_elements // row_length
        kept = _kept_rows(mask, num_rows)
        widths = unpack_codes(width_codes, _WIDTH_BITS, kept.size, torch.device("cpu"))
        lo, hi = from_bytes(ends, frame.dtype, (2, kept.size, 1), device)
        require_finite_ends(lo, hi)
        groups = list(_by_width(widths.numpy(), device))
        lengths = [num_packed_bytes(len(of) * row_length, w) for w, of in groups]
        if sum(lengths) != packed.nbytes:
            raise DecodeError(f"{packed.nbytes} bytes of codes, not {sum(lengths)}")
        # A frame of a few bytes may declare a large tensor: fill it row by row.
        middle = grid_points(torch.ones_like(lo), lo, hi, 2)
        decoded = middle.repeat(1, row_length)
        start = 0
        for (width, of), length in zip(groups, lengths, strict=True):
            section = packed[start : start + length]
            codes = unpack_codes(section, width, len(of) * row_length, device)
            codes = codes.reshape(len(of), row_length)
            decoded[of] = grid_points(codes, lo[of], hi[of], 2**width - 1)
            start += length
        out = torch.zeros(num_rows, row_length, dtype=frame.dtype, device=device)
        out[torch.from_numpy(kept).to(device)] = decoded
        return from_rows(out, dims, frame.shape)


def _feature_dims(num_dims: int, feature: Feature) -> tuple[int, ...]:
    """Return the dimensions that the values of one feature run along."""
    if feature == "channel":
        return within_channel_dims(num_dims)
    return within_column_dims(num_dims)


def dispersion(rows: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor) -> Array:
    """Return each row's standard deviation, in halves so that no range overflows."""
    codes = grid_codes(rows, lo, hi, _DISPERSION_LAST).to(torch.int32)
    mean = _numpy(codes.sum(1)) / rows.shape[1]
    square = _numpy((codes * codes).sum(1)) / rows.shape[1]
    spread = _numpy(hi[:, 0]) / 2 - _numpy(lo[:, 0]) / 2
    deviation: Array = np.sqrt(np.maximum(square - mean * mean, 0))
    return deviation * (spread / _DISPERSION_LAST)


def keep_probabilities(deviations: Array, drop: float) -> Array:
    """Return probabilities in proportion to the deviations, none above 1.

    They add up to ``1 - drop`` of the features; those without deviation share evenly
    what the others leave.
    """
    if deviations.size == 1:
        return np.ones(1)
    wanted = (1 - drop) * deviations.size
    order = np.argsort(-deviations, kind="stable")
    falling = deviations[order] / (deviations.max() or 1.0)
    # With the m largest at 1, the rest share wanted - m: the first m that fits is it.
    rest = np.cumsum(falling[::-1])[::-1]
    left = wanted - np.arange(falling.size)
    fits = (falling * left <= rest) | (rest == 0)
    m = int(fits.argmax()) if fits.any() else falling.size
    shares = np.ones(falling.size)
    if m < falling.size:
        even = 1 / (falling.size - m)
        shares[m:] = left[m] * (falling[m:] / rest[m] if rest[m] else even)
    probabilities = np.empty_like(shares)
    probabilities[order] = np.clip(shares, 0, 1)
    return probabilities


def draw_kept(keep: Array, seed: int) -> npt.NDArray[np.bool_]:
    """Return which features are kept: at least the one likeliest to be."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(keep.size, generator=generator, dtype=torch.float64).numpy()
    mask: npt.NDArray[np.bool_] = uniform < keep
    if not mask.any():
        mask[keep.argmax()] = True
    return mask


def range_widths(log_ranges: Array, bits: int) -> Ints:
    """Return whole bit widths that follow log2 of the ranges, `bits` in the mean.

    Minimises the sum of squared steps: each bit halves one, so widths differ by the
    difference of log2 range (reverse water-filling).
    """

    def widths(level: float) -> Ints:
        return np.clip(np.rint(log_ranges + level), 0, _MAX_WIDTH).astype(np.int64)

    finite = log_ranges[np.isfinite(log_ranges)]
    if finite.size == 0:
        return np.zeros(log_ranges.size, dtype=np.int64)
    low, high = -float(finite.max()) - 1, -float(finite.min()) + _MAX_WIDTH + 1
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        if widths(middle).sum() <= bits * log_ranges.size:
            low = middle
        else:
            high = middle
    return widths(low)


def _log_ranges(lo: torch.Tensor, hi: torch.Tensor) -> Array:
    spread = _numpy(hi[:, 0]) / 2 - _numpy(lo[:, 0]) / 2
    with np.errstate(divide="ignore"):
        logs: Array = np.log2(spread)
    return logs


def _divided(ends: torch.Tensor, keep: Array) -> torch.Tensor:
    """Divide the ranges (2, R, 1) by the keep probabilities, saturating."""
    limit = torch.finfo(ends.dtype).max
    divisor = torch.from_numpy(keep).to(ends.device)[:, None]
    return (ends.double() / divisor).clamp_(-limit, limit).to(ends.dtype)


def _by_width(widths: Ints, device: torch.device) -> list[tuple[int, torch.Tensor]]:
    """Return each width above 0 with the rows that have it."""
    return [
        (int(width), torch.from_numpy(np.flatnonzero(widths == width)).to(device))
        for width in np.unique(widths[widths > 0])
    ]


def _kept_rows(mask: memoryview, num_rows: int) -> Ints:
    if mask.nbytes != num_packed_bytes(num_rows, 1):
        raise DecodeError(f"{mask.nbytes} bytes of mask for {num_rows} features")
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
    return np.flatnonzero(bits[:num_rows])


def _numpy(tensor: torch.Tensor) -> Array:
    array: Array = tensor.to("cpu", torch.float64).numpy()
    return array
