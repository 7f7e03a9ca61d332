"""Between the ordered coefficients of all rows and their packed codes, chunk by chunk.

::

    coefficients --fqc.quantize--> words --BitWriter--> codes of all rows, end to end
    codes --BitReader--> words --fqc.dequantize--> coefficients --basis--> rows
"""

import math

import numpy as np
import torch

from flwr_slfac.codec.base import work_dtype
from flwr_slfac.codec.packing import BitReader, BitWriter
from flwr_slfac.codec.slfac import fqc
from flwr_slfac.codec.slfac.ablations import partition
from flwr_slfac.codec.slfac.groups import group_by_eight, group_starts, row_bits
from flwr_slfac.codec.slfac.sections import Sections
from flwr_slfac.codec.slfac.spectra import (
    DECODE_CHUNK,
    restore_scale,
    row_chunks,
    with_rows,
)
from flwr_slfac.codec.transforms import inverse_rows


def pack_codes(
    chunks: list[torch.Tensor], split: torch.Tensor, grid: fqc.Grid
) -> memoryview:
    """Quantize and pack all rows, row by row.

    Parameters
    ----------
    chunks : list of Tensor (n, K)
        Ordered coefficients.
    split : Tensor (R,)
        How many of each row's are low.
    grid : Grid
        The levels of all R rows.
    """
    n = len(chunks[0])
    rows_split = split.cpu().numpy()
    widths = grid.widths.cpu().to(torch.int64).numpy()
    ends = row_bits(rows_split, widths, n).cumsum()
    writer = BitWriter(int(ends[-1]))
    for chunk, coeffs in with_rows(chunks):
        words = fqc.quantize(
            group_by_eight(coeffs),
            n,
            split[chunk],
            grid.of_rows(chunk, coeffs.device),
        )
        by_row = words.cpu().t().contiguous().numpy().view(np.uint64)
        first = int(ends[chunk.start - 1]) if chunk.start else 0
        starts = group_starts(rows_split[chunk], widths[:, chunk], n, first)
        writer.write(by_row, starts)
    return writer.getvalue()


@torch.inference_mode()
def decode_rows(sections: Sections, result: torch.Tensor) -> None:
    """Decode all rows.

    Parameters
    ----------
    sections : Sections
        Of the frame.
    result : Tensor (R, n)
        Where the rows go, in the dtype and on the device of choice.

    Raises
    ------
    DecodeError
        If the codes have a wrong length, or a map of coefficients does not fit.
    """
    num_rows, n = result.shape
    grid = sections.grid(work_dtype(result.dtype))
    split, widths = sections.split, grid.widths.to(torch.int64).numpy()
    ends = row_bits(split, widths, n).cumsum()
    reader = BitReader(sections.codes, int(ends[-1]))
    back = (
        None if sections.order is None else sections.order.argsort().to(result.device)
    )
    for chunk in row_chunks(n, num_rows, result.device, DECODE_CHUNK):
        first = int(ends[chunk.start - 1]) if chunk.start else 0
        starts = group_starts(split[chunk], widths[:, chunk], n, first)
        words = torch.from_numpy(reader.read(starts).view(np.int64)).t()
        coeffs = _decode_coefficients(
            sections, grid, chunk, words.contiguous(), result.device
        )
        if back is not None:
            coeffs = coeffs.index_select(0, back)
        rows = inverse_rows(coeffs.reshape(*sections.sizes, -1), sections.header.basis)
        # Flat, the copy that turns coefficients to rows is a fast transposition.
        flat = rows.reshape(rows.shape[0], n)
        result[chunk] = restore_scale(flat, sections.header.shift, result.dtype)
        # Not to be kept while the next chunk is decoded.
        del starts, words, coeffs, rows, flat


def _decode_coefficients(
    sections: Sections,
    grid: fqc.Grid,
    chunk: slice,
    words: torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """Return the ordered coefficients (n, K) of some rows from their words (G, K)."""
    groups = fqc.dequantize(
        words.to(device),
        torch.from_numpy(sections.split[chunk]).to(device),
        grid.of_rows(chunk, device),
    )
    coeffs = groups.view(-1, groups.shape[2])[: math.prod(sections.sizes)]
    member = sections.members_of(chunk)
    if member is None:
        return coeffs
    order = partition(member).to(device)
    return torch.empty_like(coeffs).scatter_(0, order, coeffs)
