"""The compiled way between planes and codes: float32, on a CPU, by FQC.

::

    planes --basis--> coefficients --split--> rows in order --pack--> codes
    codes --unpack--> coefficients --basis--> rows

The bytes are those of `afd`, `fqc`, `ranges` and `codes`, the values to the last bit.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import work_dtype
from flwr_slfac.codec.kernels import SpectraLoops, kernels, scratch
from flwr_slfac.codec.packing import require_bits
from flwr_slfac.codec.slfac import ranges
from flwr_slfac.codec.slfac.fqc import spectral_widths
from flwr_slfac.codec.slfac.groups import row_bits
from flwr_slfac.codec.slfac.sections import Sections, pack_splits
from flwr_slfac.codec.slfac.spectra import (
    DECODE_CHUNK,
    Spectra,
    restore_scale,
    row_chunks,
)
from flwr_slfac.codec.transforms import inverse_rows

__all__ = ["decode_rows", "encode_rows", "loops_for"]


def loops_for(dtype: torch.dtype, device: torch.device) -> SpectraLoops | None:
    """Return the compiled loops if they are here and take such tensors."""
    if work_dtype(dtype) is not torch.float32 or device.type != "cpu":
        return None
    return kernels().spectra


def encode_rows(
    spectra: Spectra,
    theta: float,
    bit_widths: tuple[int, int],
    energy_of: str,
    loops: SpectraLoops,
) -> tuple[int, list[memoryview]]:
    """Return the exponent of ranges, and the sections after the header.

    Parameters
    ----------
    spectra : Spectra
        That reuse buffers.
    theta, bit_widths, energy_of
        See `SLFAC`; the last is its `energy`.
    loops : SpectraLoops
        The compiled ones.
    """
    n, num_rows = spectra.n, spectra.num_rows
    order = order_of(spectra.order, n)
    room = num_rows * loops.floats_a_row(n)
    store = scratch("rows in order", (room,), torch.float32).numpy()
    split = np.empty(num_rows, np.int64)
    energy = np.empty((2, num_rows))
    ends = np.empty((2, 2, num_rows), np.float32)
    first = 0
    for coeffs in spectra:
        loops.split(coeffs.numpy(), order, theta, store, first, (split, energy, ends))
        first += coeffs.shape[1]
    counts = None
    if energy_of == "mean":
        counts = torch.from_numpy(np.stack([split, n - split]))
    widths = spectral_widths(
        torch.from_numpy(energy),
        counts,
        spectra.total,
        num_rows * n,
        bit_widths,
    ).numpy()
    exponent = ranges.range_exponent(torch.from_numpy(ends))
    halves = loops.ranges(ends, exponent)
    levels = loops.levels(halves, exponent, widths, decodes=False)
    return exponent, [
        pack_splits(split, widths, n, bit_widths),
        ranges.pack_ranges(halves, split < n, False),
        loops.pack(store, n, split, levels),
    ]


def decode_rows(sections: Sections, result: torch.Tensor, loops: SpectraLoops) -> None:
    """Decode all rows; parameters and errors as `codes.decode_rows`."""
    num_rows, n = result.shape
    header, split = sections.header, sections.split
    levels = loops.levels(sections.ends, header.exponent, sections.widths, decodes=True)
    num_bits = int(row_bits(split, levels.widths, n).sum())
    require_bits(sections.codes, num_bits)
    order = order_of(sections.order, n)
    position = 0
    for chunk in row_chunks(n, num_rows, result.device, DECODE_CHUNK):
        coeffs = scratch("codes", (n, chunk.stop - chunk.start), torch.float32)
        position = loops.unpack(
            sections.codes, position, chunk.start, split, levels, order, coeffs.numpy()
        )
        rows = inverse_rows(coeffs.view(*sections.sizes, -1), header.basis, reuses=True)
        _put(rows.reshape(rows.shape[0], n), header.shift, result[chunk], loops)


def _put(
    rows: torch.Tensor, shift: int, result: torch.Tensor, loops: SpectraLoops
) -> None:
    """Write rows (K, n) to where they belong."""
    is_turned = rows.t().is_contiguous()
    if is_turned and not shift and result.dtype is torch.float32:
        loops.transpose(rows.t().numpy(), rows.shape[1], rows.shape[0], result.numpy())
    else:
        result.copy_(restore_scale(rows, shift, result.dtype))


def order_of(order: torch.Tensor | None, n: int) -> npt.NDArray[Any]:
    """Return an order (n,) as the loops take it, whether or not there is one."""
    return _in_order(n) if order is None else order.numpy()


@lru_cache(maxsize=8)
def _in_order(n: int) -> npt.NDArray[Any]:
    return np.arange(n)
