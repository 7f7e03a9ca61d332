"""Between the ordered coefficients of all rows and their packed codes, chunk by chunk.

::

    coefficients --fqc.quantize--> words --BitWriter--> codes of all rows, end to end
    codes --BitReader--> words --fqc.dequantize--> coefficients --basis--> rows
"""

import math

import numpy as np
import torch

from flwr_slfac.codec.packing import BitReader, BitWriter
from flwr_slfac.codec.slfac import fqc
from flwr_slfac.codec.slfac.ablations import partition
from flwr_slfac.codec.slfac.groups import group_by_eight, group_starts, row_bits
from flwr_slfac.codec.slfac.sections import Coded
from flwr_slfac.codec.slfac.spectra import DECODE_CHUNK, chunks_of, fit, with_lanes
from flwr_slfac.codec.transforms import inverse_rows


def pack_codes(
    chunks: list[torch.Tensor], split: torch.Tensor, grid: fqc.Grid
) -> memoryview:
    """Quantize and pack all rows, row by row."""
    n = len(chunks[0])
    rows_split = split.cpu().numpy()
    widths = grid.widths.cpu().to(torch.int64).numpy()
    ends = row_bits(rows_split, widths, n).cumsum()
    writer = BitWriter(int(ends[-1]))
    for lanes, coeffs in with_lanes(chunks):
        words = fqc.quantize(
            group_by_eight(coeffs),
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
def decode_rows(coded: Coded, result: torch.Tensor) -> None:
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
    groups = fqc.dequantize(
        words.to(device), coded.split[lanes].to(device), coded.grid.lanes(lanes, device)
    )
    coeffs = groups.view(-1, groups.shape[2])[: math.prod(coded.sizes)]
    member = coded.members_of(lanes)
    if member is None:
        return coeffs
    order = partition(member).to(device)
    return torch.empty_like(coeffs).scatter_(0, order, coeffs)
