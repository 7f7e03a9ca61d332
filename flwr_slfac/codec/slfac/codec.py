"""SL-FAC: adaptive frequency decomposition and frequency-based quantization.

::

    tensor -> rows -> basis -> order -> split at theta -> widths by energy
                                             |                  |
                                             v                  v
    bytes  <----- bits packed <- codes <- min-max quantization within components

Lin et al., "SL-FAC", arXiv 2604.07316. The paper fixes the two stages, theta = 0.9, the
bounds [2, 8] and min-max linear quantization; where it leaves a choice open, the
docstrings below say "our reading".
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from flwr_slfac.codec.base import Codec, Context, Hints, Memory, register
from flwr_slfac.codec.packing import BitReader, BitWriter, group_starts, row_bits
from flwr_slfac.codec.slfac import bands, quantize
from flwr_slfac.codec.slfac.sections import (
    COMPONENTS,
    TOKENS,
    WIDTHS,
    Coded,
    Header,
    pack_order,
    pack_splits,
)
from flwr_slfac.codec.slfac.spectra import (
    DECODE_CHUNK,
    Spectra,
    chunks_of,
    fit,
    new_tensor,
    with_lanes,
)
from flwr_slfac.codec.slfac.symmetric import choose_power, clip_ranges
from flwr_slfac.codec.slfac.widths import equal_widths, spectral_widths
from flwr_slfac.codec.transforms.basis import inverse_rows, parse_basis
from flwr_slfac.codec.uniform import decode_empty
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import SettingError


@register
@dataclass(frozen=True)
class SLFAC(Codec):
    """Two spectral components a channel, each with its own bit width (SL-FAC).

    Parameters
    ----------
    theta : float
        Share of a row's energy that the low component reaches, in (0, 1].
    bit_widths : tuple of int
        Smallest and largest bit width, 1 to 8.
    basis : str
        See `parse_basis`. The paper's is ``"dct"``; its order, zig-zag of the
        orthonormal 2-D DCT-II of each sample and channel, is our reading.
    components : {"spectral", "magnitude", "deviation"}
        What the order is in which coefficients enter the low component until it has
        theta of the energy. ``"spectral"``: coarse to fine. The paper's ablations, in
        our reading: ``"magnitude"``, each row's largest first (costs one bit a
        coefficient to say which); ``"deviation"``, the positions of the largest
        standard deviation over all rows first (costs one permutation a tensor).
    widths : {"fqc", "powerquant", "easyquant"}
        ``"fqc"``: widths by energy, see `spectral_widths`, and min-max linear
        quantization. The paper's ablations, in our reading: all components take the
        middle width, rounded down, and a symmetric quantizer: ``"powerquant"``, see
        `search_power`; ``"easyquant"``, see `search_clip`.
    tokens : {"t", "td"}
        For (N, T, D): a spectrum along T for each sample and feature, or over the
        (T, D) plane of each sample.

    Notes
    -----
    Rows: planes (H, W) of (..., C, H, W); maps of 1 x 1 are taken for vectors (..., C);
    of (N, D), and (N, 1, D), vectors along D; a tensor of one dimension is one vector.

    Bits: codes take exactly their widths, without padding but in the last byte. A row's
    side information is its split (``(n - 1).bit_length()`` bits), two widths (3 bits
    each at 2 to 8) and the two ends of each component's range in float16, relative to
    one power of two a tensor and rounded outward. An empty component has no range, and
    one whose range is a point has no codes.

    Error, for ``"fqc"`` and ``"powerquant"``: each coefficient is off by at most half
    the distance of the two levels around it in the range on the wire; for ``"fqc"``
    that is ``(high - low) / (2**b - 1) / 2``, where outward rounding widens ``high -
    low`` by at most ``2**-10 (|low| + |high|) + 2**-22 M``, M the tensor's largest
    coefficient. Levels and transform add float32 rounding (float64 for float64), at
    most ``2**-19 |x|`` in the L2 norm of the tensor; the basis is orthonormal, so the
    L2 error of the coefficients is that of the tensor, to which rounding to its dtype
    adds half a unit in the last place. ``"easyquant"`` clips: it states no bound.

    Integer stages are exact and independent of thread count and device; the splits,
    ranges and codes follow the floats of the transform, whose last bits may differ
    between machines, devices and thread counts. Decoding such bytes differs likewise
    in last bits only.

    Examples
    --------
    >>> import torch
    >>> from flwr_slfac.codec import decode, encode
    >>> x = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    >>> bool((decode(encode(x, SLFAC())) - x).norm() < 0.02 * x.norm())
    True
    """

    codec_id: ClassVar[str] = "slfac"
    context: ClassVar[Context] = "map"

    theta: float = 0.9
    bit_widths: tuple[int, int] = (2, 8)
    basis: str = "dct"
    components: Literal["spectral", "magnitude", "deviation"] = "spectral"
    widths: Literal["fqc", "powerquant", "easyquant"] = "fqc"
    tokens: Literal["t", "td"] = "t"

    def __post_init__(self) -> None:
        _require_theta(self.theta)
        _require_bit_widths(self.bit_widths, self.widths != "fqc")
        object.__setattr__(self, "theta", float(self.theta))
        object.__setattr__(self, "bit_widths", tuple(self.bit_widths))
        for name, allowed in (
            ("components", COMPONENTS),
            ("widths", WIDTHS),
            ("tokens", TOKENS),
        ):
            if getattr(self, name) not in allowed:
                raise SettingError(
                    f"{name} is {getattr(self, name)!r}; choose one of "
                    + ", ".join(map(repr, allowed))
                )
        if not isinstance(self.basis, str):
            raise SettingError(f"basis is {self.basis!r}; give its name, as 'dct'")
        parse_basis(self.basis)

    # Inference mode takes a sixth of the time off operations on small tensors.
    @torch.inference_mode()
    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Return header, splits and widths, ranges, codes, and a map if needed."""
        if tensor.numel() == 0:
            return []
        basis = parse_basis(self.basis)
        dims = bands.spectrum_dims(tensor.shape, self.tokens == "td")
        spectra = Spectra(bands.to_rows(tensor, dims), basis)
        chunks, found, maps = self._decompose(spectra, tensor.numel())
        split, n = found.split, spectra.n
        widths = self._bit_widths(found, spectra, tensor.numel())
        ranges, exponent = self._ranges(chunks, found, widths)
        is_symmetric = self.widths != "fqc"
        grid = quantize.grid_of(
            ranges, exponent, widths, float(is_symmetric), spectra.dtype
        )
        if self.widths == "powerquant":
            grid = choose_power(grid, chunks, split)
        header = Header(
            self.tokens,
            self.components,
            self.widths,
            self.bit_widths,
            grid.power,
            spectra.shift,
            exponent,
            basis,
        )
        return [
            header.pack(),
            pack_splits(split, widths, n, self.bit_widths),
            quantize.pack_ranges(ranges, split < n, is_symmetric),
            _pack_codes(chunks, split, grid),
            *maps,
        ]

    def _decompose(
        self, spectra: Spectra, num_elements: int
    ) -> tuple[list[torch.Tensor], bands.Components, list[memoryview]]:
        """Return ordered coefficients, their components, and maps for the decoder."""
        n, order = spectra.n, spectra.order
        source: Iterator[torch.Tensor] = iter(spectra)
        maps = []
        if self.components == "deviation":
            natural = list(source)
            order = bands.deviation_order(natural)
            maps = [pack_order(order)]
            source = iter(natural)
        chunks, parts, members = [], [], []
        # One block for all: chunks kept among temporaries would scatter the heap.
        store = new_tensor((num_elements,), spectra.dtype, spectra.device)
        for coeffs in source:
            room = store[: coeffs.numel()].view_as(coeffs)
            store = store[coeffs.numel() :]
            if order is None:
                ordered = room.copy_(coeffs)
            else:
                ordered = torch.index_select(coeffs, 0, order, out=room)
            if self.components == "magnitude":
                ordered, part, member = bands.by_magnitude(ordered, self.theta)
                members.append(member.t().cpu())
            else:
                part = bands.decompose(bands.group_by_eight(ordered), n, self.theta)
            chunks.append(ordered)
            parts.append(part)
        if members:
            maps = [np.packbits(torch.cat(members).numpy(), bitorder="little").data]
        return chunks, bands.join(parts), maps

    def _bit_widths(
        self, found: bands.Components, spectra: Spectra, num_elements: int
    ) -> torch.Tensor:
        """Return the width of each component, (2, R)."""
        count = torch.stack([found.split, spectra.n - found.split])
        if self.widths != "fqc":
            return equal_widths(count, self.bit_widths)
        return spectral_widths(
            found.energy, count, spectra.total, num_elements, self.bit_widths
        )

    def _ranges(
        self,
        chunks: list[torch.Tensor],
        found: bands.Components,
        widths: torch.Tensor,
    ) -> tuple[torch.Tensor, int]:
        """Return the ranges (2 ends, 2 components, R) in float16, and their scale."""
        ends = found.ends
        if self.widths != "fqc":
            high = ends.abs().amax(0)
            if self.widths == "easyquant":
                high = clip_ranges(chunks, found.split, high, widths)
            ends = torch.stack([-high, -high])
        exponent = quantize.range_exponent(ends)
        return quantize.round_outward(ends, exponent), exponent

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Check every field, then decode chunk by chunk."""
        if frame.num_elements == 0:
            return decode_empty(frame, device)
        coded = Coded.parse(frame)
        shape = len(coded.split), math.prod(coded.sizes)
        rows = new_tensor(shape, frame.dtype, device)
        _decode_rows(coded, rows)
        return bands.from_rows(rows.view(-1, *coded.sizes), coded.dims, frame.shape)


def _require_theta(theta: float) -> None:
    if isinstance(theta, bool) or not (
        isinstance(theta, int | float) and 0 < theta <= 1
    ):
        raise SettingError(f"theta is {theta!r}; give a number in (0, 1]")


def _require_bit_widths(widths: tuple[int, int], takes_middle: bool) -> None:
    if not (
        isinstance(widths, list | tuple)
        and len(widths) == 2
        and all(isinstance(b, int) and not isinstance(b, bool) for b in widths)
        and 1 <= widths[0] <= widths[1] <= 8
    ):
        raise SettingError(
            f"bit_widths is {widths!r}; give two whole numbers, 1 <= smallest <= "
            "largest <= 8, for example (2, 8)"
        )
    if takes_middle and sum(widths) < 4:
        raise SettingError(
            f"widths other than 'fqc' take the middle of bit_widths, which is 1 for "
            f"{widths!r}; a symmetric quantizer needs 2 bits"
        )


def _pack_codes(
    chunks: list[torch.Tensor], split: torch.Tensor, grid: quantize.Grid
) -> memoryview:
    """Quantize and pack all rows, row by row."""
    n = len(chunks[0])
    rows_split = split.cpu().numpy()
    widths = grid.widths.cpu().to(torch.int64).numpy()
    ends = row_bits(rows_split, widths, n).cumsum()
    writer = BitWriter(int(ends[-1]))
    for lanes, coeffs in with_lanes(chunks):
        words = quantize.quantize(
            bands.group_by_eight(coeffs),
            n,
            split[lanes],
            grid.lanes(lanes, coeffs.device),
        )
        by_row = words.cpu().t().contiguous().numpy().view(np.uint64)
        first = int(ends[lanes.start - 1]) if lanes.start else 0
        starts = group_starts(rows_split[lanes], widths[:, lanes], n, first)
        writer.write(by_row, starts)
    return writer.getvalue()


@torch.inference_mode()
def _decode_rows(coded: Coded, result: torch.Tensor) -> None:
    """Decode all rows into result (R, n)."""
    num_rows, n = result.shape
    split, widths = coded.split.numpy(), coded.grid.widths.to(torch.int64).numpy()
    ends = row_bits(split, widths, n).cumsum()
    reader = BitReader(coded.codes, int(ends[-1]))
    back = None if coded.order is None else coded.order.argsort().to(result.device)
    for lanes in chunks_of(n, num_rows, result.device, DECODE_CHUNK):
        first = int(ends[lanes.start - 1]) if lanes.start else 0
        starts = group_starts(split[lanes], widths[:, lanes], n, first)
        words = torch.from_numpy(reader.read(starts).view(np.int64)).t()
        coeffs = _decode_coefficients(coded, lanes, words.contiguous(), result.device)
        if back is not None:
            coeffs = coeffs.index_select(0, back)
        rows = inverse_rows(coeffs.reshape(*coded.sizes, -1), coded.header.basis)
        # Flat, the copy that turns coefficients to rows is a fast transposition.
        flat = rows.reshape(rows.shape[0], n)
        result[lanes] = fit(flat, coded.header.shift, result.dtype)
        # Not to be kept while the next chunk is decoded.
        del starts, words, coeffs, rows, flat


def _decode_coefficients(
    coded: Coded, lanes: slice, words: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Return the ordered coefficients (n, K) of some rows from their words (G, K)."""
    groups = quantize.dequantize(
        words.to(device), coded.split[lanes].to(device), coded.grid.lanes(lanes, device)
    )
    coeffs = groups.view(-1, groups.shape[2])[: math.prod(coded.sizes)]
    member = coded.members_of(lanes)
    if member is None:
        return coeffs
    order = bands.partition(member).to(device)
    return torch.empty_like(coeffs).scatter_(0, order, coeffs)
