"""All lines of a matrix by a DCT, or by one level of a wavelet.

Forward, lines (rest, n) become coefficients (n, rest); inverse, coefficients become
lines. Up to `MATRIX_LIMIT` a line is multiplied by a matrix; longer ones take an FFT or
the filters themselves, so memory stays proportional to the data.
"""

from functools import lru_cache, partial

import numpy as np
import torch

from flwr_slfac.codec.kernels import scratch
from flwr_slfac.codec.transforms.basis import PLAIN
from flwr_slfac.codec.transforms.dct import (
    dct_by_fft,
    dct_by_halves,
    dct_matrix,
    idct_by_fft,
    idct_by_halves,
)
from flwr_slfac.codec.transforms.wavelets import (
    Line,
    filter_line,
    step_matrix,
    unfilter_line,
)

__all__ = [
    "MATRIX_LIMIT",
    "Line",
    "forward_line",
    "has_small_matrix",
    "inverse_line",
    "level_matrix",
]

# Our choice: a matrix of this size is a MiB of float32; a product with a larger one
# takes longer than an FFT or the filters.
MATRIX_LIMIT = 512
# From here on, half of the products saved outweigh the sums that save them.
_FOLD_FROM = 64
# Our choice: what is in between of long lines takes a few MiB.
_VALUES_AT_ONCE = 2**18


def forward_line(name: str, n: int, like: torch.Tensor, buffer: str = "") -> Line:
    """Return a function from lines (rest, n) to coefficients (n, rest).

    Where it can, it writes to this buffer of `scratch`, if one is named.
    """
    if name in PLAIN:
        return lambda rows: rows.t().contiguous()
    if n > MATRIX_LIMIT:
        line = dct_by_fft if name == "dct" else filter_line(name, like)
        return partial(_forward_by_parts, line)
    matrix = level_matrix(name, n, like)
    if name == "dct" and n >= _FOLD_FROM:
        return lambda rows: dct_by_halves(rows, matrix, _room(buffer, rows.t()))
    return lambda rows: torch.mm(matrix, rows.t(), out=_room(buffer, rows.t()))


def inverse_line(name: str, n: int, like: torch.Tensor, buffer: str = "") -> Line:
    """Return a function from coefficients (n, rest) to lines (rest, n).

    Where it can, it writes to this buffer of `scratch`, if one is named.
    """
    if name in PLAIN:
        return lambda coeffs: coeffs.t().contiguous()
    if n > MATRIX_LIMIT:
        line = idct_by_fft if name == "dct" else unfilter_line(name, like)
        return partial(_inverse_by_parts, line)
    matrix = level_matrix(name, n, like)
    if name == "dct" and n >= _FOLD_FROM:
        return lambda coeffs: idct_by_halves(coeffs, matrix, _room(buffer, coeffs.t()))
    return lambda coeffs: torch.mm(coeffs.t(), matrix, out=_room(buffer, coeffs.t()))


def _forward_by_parts(line: Line, rows: torch.Tensor) -> torch.Tensor:
    coeffs = rows.new_empty(rows.shape[1], rows.shape[0])
    for part in _parts(*rows.shape):
        coeffs[:, part] = line(rows[part])
    return coeffs


def _inverse_by_parts(line: Line, coeffs: torch.Tensor) -> torch.Tensor:
    rows = coeffs.new_empty(coeffs.shape[1], coeffs.shape[0])
    for part in _parts(*rows.shape):
        rows[part] = line(coeffs[:, part])
    return rows


def _parts(num_rows: int, n: int) -> list[slice]:
    num = max(1, _VALUES_AT_ONCE // n)
    return [slice(start, start + num) for start in range(0, num_rows, num)]


def _room(buffer: str, like: torch.Tensor) -> torch.Tensor | None:
    if not buffer or like.device.type != "cpu":
        return None
    return scratch(buffer, tuple(like.shape), like.dtype)


def has_small_matrix(name: str, n: int) -> bool:
    """Return whether a line is transformed by one product with a matrix."""
    if name in PLAIN:
        return False
    return n < _FOLD_FROM or (name != "dct" and n <= MATRIX_LIMIT)


def level_matrix(name: str, n: int, like: torch.Tensor) -> torch.Tensor:
    """Return the DCT, or one level of a wavelet, as a shared matrix (n, n)."""
    return _cached_matrix(name, n, like.device, like.dtype)


@lru_cache(maxsize=64)
# Outside of inference mode, as what is shared must serve every caller.
@torch.inference_mode(False)
def _cached_matrix(
    name: str, n: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    if name == "dct":
        matrix = dct_matrix(n)
    else:
        matrix = step_matrix(name, n) if n > 1 else np.eye(n)
    return torch.from_numpy(matrix).to(device, dtype)
