"""SL-FAC: adaptive frequency decomposition and frequency-based quantization.

Lin et al., "SL-FAC", arXiv 2604.07316. The paper fixes the two stages, theta = 0.9, the
bounds [2, 8] and min-max linear quantization; where it leaves a choice open, the
docstrings below say "our reading".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from flwr_slfac.codec.base import Codec, Context, Hints, Memory
from flwr_slfac.codec.kernels import SpectraLoops
from flwr_slfac.codec.layout import from_rows, spectrum_dims, to_rows
from flwr_slfac.codec.registry import register
from flwr_slfac.codec.slfac import ablations, afd, fused, ranges
from flwr_slfac.codec.slfac.codes import decode_rows, pack_codes
from flwr_slfac.codec.slfac.fqc import ENERGIES, spectral_widths
from flwr_slfac.codec.slfac.groups import group_by_eight
from flwr_slfac.codec.slfac.sections import (
    COMPONENTS,
    TOKENS,
    WIDTHS,
    Header,
    Sections,
    pack_order,
    pack_splits,
)
from flwr_slfac.codec.slfac.spectra import Spectra, new_tensor
from flwr_slfac.codec.transforms import parse_basis
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import SettingError


@register
@dataclass(frozen=True)
class SLFAC(Codec):
    """Two spectral components a channel, each with its own bit width (SL-FAC).

    Parameters
    ----------
    theta : float, default 0.9
        Share of a row's energy that the low component reaches, in (0, 1].
    bit_widths : tuple of int, default (2, 8)
        Smallest and largest bit width, 1 to 8.
    basis : str, default "dct"
        See `parse_basis`. The paper's is ``"dct"``; its order, zig-zag of the
        orthonormal 2-D DCT-II of each sample and channel, is our reading.
    components : {"spectral", "magnitude", "deviation"}, default "spectral"
        What the order is in which coefficients enter the low component until it has
        theta of the energy. ``"spectral"``: coarse to fine. The paper's ablations, in
        our reading: ``"magnitude"``, each row's largest first (costs one bit a
        coefficient to say which); ``"deviation"``, the positions of the largest
        standard deviation over all rows first (costs one permutation a tensor).
    widths : {"fqc", "powerquant", "easyquant"}, default "fqc"
        ``"fqc"``: widths by energy, see `spectral_widths`, and min-max linear
        quantization. The paper's ablations, in our reading: all components take the
        middle width, rounded down, and a symmetric quantizer: ``"powerquant"``, see
        `search_power`; ``"easyquant"``, see `search_clip`.
    energy : {"mean", "sum"}, default "mean"
        What of a component's squared coefficients its width follows; the paper does not
        say. The sum gives components of many coefficients wider codes: more bits, a
        smaller error.
    tokens : {"t", "td"}, default "t"
        For (N, T, D): a spectrum along T for each sample and feature, or over the
        (T, D) plane of each sample.

    Raises
    ------
    SettingError
        If a setting is out of range; from `encode`, if the basis is a wavelet that
        cannot do the sizes of the tensor.

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
    skips_empty: ClassVar[bool] = True
    context: ClassVar[Context] = "map"

    theta: float = 0.9
    bit_widths: tuple[int, int] = (2, 8)
    basis: str = "dct"
    components: Literal["spectral", "magnitude", "deviation"] = "spectral"
    widths: Literal["fqc", "powerquant", "easyquant"] = "fqc"
    tokens: Literal["t", "td"] = "t"
    energy: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        _require_theta(self.theta)
        _require_bit_widths(self.bit_widths, self.widths != "fqc")
        object.__setattr__(self, "theta", float(self.theta))
        object.__setattr__(self, "bit_widths", tuple(self.bit_widths))
        for name, allowed in (
            ("components", COMPONENTS),
            ("widths", WIDTHS),
            ("tokens", TOKENS),
            ("energy", ENERGIES),
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
        basis = parse_basis(self.basis)
        dims = spectrum_dims(tensor.shape, self.tokens == "td")
        loops = self._loops(tensor)
        spectra = Spectra(to_rows(tensor, dims), basis, reuses=loops is not None)
        if loops is not None:
            exponent, rest = fused.encode_rows(
                spectra, self.theta, self.bit_widths, self.energy, loops
            )
            return [self._header(0.0, spectra.shift, exponent).pack(), *rest]
        chunks, found, maps = self._decompose(spectra, tensor.numel())
        split, n = found.split, spectra.n
        widths = self._bit_widths(found, spectra, tensor.numel())
        ends, exponent = self._ranges(chunks, found, widths)
        is_symmetric = self.widths != "fqc"
        grid = ranges.grid_from_ranges(
            ends, exponent, widths, float(is_symmetric), spectra.dtype
        )
        if self.widths == "powerquant":
            grid = ablations.choose_power(grid, chunks, split)
        side = split.cpu().numpy(), widths.cpu().numpy(), ends.cpu().numpy()
        return [
            self._header(grid.power, spectra.shift, exponent).pack(),
            pack_splits(*side[:2], n, self.bit_widths),
            ranges.pack_ranges(side[2], side[0] < n, is_symmetric),
            pack_codes(chunks, split, grid),
            *maps,
        ]

    def _loops(self, tensor: torch.Tensor) -> SpectraLoops | None:
        """Return the compiled loops if they do these settings and this tensor."""
        if self.components != "spectral" or self.widths != "fqc":
            return None
        return fused.loops_for(tensor.dtype, tensor.device)

    def _header(self, power: float, shift: int, exponent: int) -> Header:
        return Header(
            self.tokens,
            self.components,
            self.widths,
            self.bit_widths,
            power,
            shift,
            exponent,
            parse_basis(self.basis),
        )

    def _decompose(
        self, spectra: Spectra, num_elements: int
    ) -> tuple[list[torch.Tensor], afd.Components, list[memoryview]]:
        """Return ordered coefficients, their components, and maps for the decoder."""
        n, order = spectra.n, spectra.order
        source: Iterator[torch.Tensor] = iter(spectra)
        maps = []
        if self.components == "deviation":
            natural = list(source)
            order = ablations.deviation_order(natural)
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
                ordered, part, member = ablations.decompose_by_magnitude(
                    ordered, self.theta
                )
                members.append(member.t().cpu())
            else:
                part = afd.decompose(group_by_eight(ordered), n, self.theta)
            chunks.append(ordered)
            parts.append(part)
        if members:
            maps = [np.packbits(torch.cat(members).numpy(), bitorder="little").data]
        return chunks, afd.join_components(parts), maps

    def _bit_widths(
        self, found: afd.Components, spectra: Spectra, num_elements: int
    ) -> torch.Tensor:
        """Return the width of each component, (2, R)."""
        count = torch.stack([found.split, spectra.n - found.split])
        if self.widths != "fqc":
            return ablations.equal_widths(count, self.bit_widths)
        return spectral_widths(
            found.energy,
            count if self.energy == "mean" else None,
            spectra.total,
            num_elements,
            self.bit_widths,
        )

    def _ranges(
        self,
        chunks: list[torch.Tensor],
        found: afd.Components,
        widths: torch.Tensor,
    ) -> tuple[torch.Tensor, int]:
        """Return the ranges (2 ends, 2 components, R) in float16, and their scale."""
        ends = found.ends
        if self.widths != "fqc":
            high = ends.abs().amax(0)
            if self.widths == "easyquant":
                high = ablations.clip_ranges(chunks, found.split, high, widths)
            ends = torch.stack([-high, -high])
        exponent = ranges.range_exponent(ends)
        return ranges.round_outward(ends, exponent), exponent

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Check every field, then decode chunk by chunk, or raise DecodeError."""
        sections = Sections.parse(frame)
        shape = len(sections.split), frame.num_elements // len(sections.split)
        rows = new_tensor(shape, frame.dtype, device)
        header = sections.header
        loops = fused.loops_for(frame.dtype, device)
        if loops is None or header.power or header.components == "magnitude":
            decode_rows(sections, rows)
        else:
            fused.decode_rows(sections, rows, loops)
        return from_rows(rows, sections.dims, frame.shape)


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
