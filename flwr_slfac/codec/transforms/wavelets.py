"""One level of an orthogonal wavelet on lines: its matrix, and its filters.

Filters are those of PyWavelets in periodization mode, so a line of even length n has
n / 2 coarse coefficients and as many details.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pywt
import torch

Line = Callable[[torch.Tensor], torch.Tensor]
Array = npt.NDArray[Any]

# Above float64 rounding of published filters, below what float32 coefficients can tell.
_ORTHONORMAL_TO = 1e-6


@lru_cache(maxsize=256)
def is_orthonormal(name: str) -> bool:
    """Return whether a wavelet's filters are orthonormal to 1e-6."""
    wavelet = pywt.Wavelet(name)
    if not wavelet.orthogonal:
        return False
    step = step_matrix(name, 2 * wavelet.dec_len)
    return bool(np.abs(step @ step.T - np.eye(len(step))).max() < _ORTHONORMAL_TO)


def step_matrix(name: str, n: int) -> Array:
    """Return one level of `pywt.dwt` in periodization mode as a matrix (n, n)."""
    approximation, detail = pywt.dwt(np.eye(n), name, mode="periodization", axis=0)
    return np.concatenate([approximation, detail])


def filter_line(name: str, like: torch.Tensor) -> Line:
    """Return one level of a wavelet on long lines, (R, n) to (n, R)."""
    taps, start = _taps(name)
    filters = taps.to(like.device, like.dtype)
    length = filters.shape[1]

    def apply(rows: torch.Tensor) -> torch.Tensor:
        num_rows, n = rows.shape
        rolled = rows.roll(-start, dims=1)
        wrapped = torch.cat([rolled, rolled[:, :length]], 1)
        windows = wrapped.unfold(1, length, 2)[:, : n // 2]
        return (windows @ filters.t()).permute(2, 1, 0).reshape(n, num_rows)

    return apply


def unfilter_line(name: str, like: torch.Tensor) -> Line:
    """Undo `filter_line`, (n, R) to (R, n)."""
    taps, start = _taps(name)
    filters = taps.to(like.device, like.dtype)

    def apply(coeffs: torch.Tensor) -> torch.Tensor:
        n, num_rows = coeffs.shape
        both = coeffs.reshape(2, n // 2, num_rows)
        result = coeffs.new_zeros(num_rows, n // 2, 2)
        for tap in range(0, filters.shape[1], 2):
            part = torch.einsum("bt,bir->rit", filters[:, tap : tap + 2], both)
            result += part.roll(tap // 2, dims=1)
        return result.reshape(num_rows, n).roll(start, dims=1)

    return apply


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _taps(name: str) -> tuple[torch.Tensor, int]:
    """Return the filters (2, L) of one level, and where the first window starts."""
    length = pywt.Wavelet(name).dec_len
    n = 4 * length
    step = step_matrix(name, n)
    first = np.roll(step[[0, n // 2]], length, axis=1)
    occupied = np.flatnonzero(np.abs(first).max(axis=0) > 0)
    begin = min(int(occupied[0]), n - length)
    return torch.from_numpy(first[:, begin : begin + length].copy()), begin - length
