"""One line transform: all lines of a matrix by a DCT, or by one level of a wavelet.

Forward, lines (rest, n) become coefficients (n, rest); inverse, coefficients become
lines. Up to `MATRIX_LIMIT` a line is multiplied by a matrix; longer ones take an FFT or
the filters themselves, so memory stays proportional to the data.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pywt
import torch

MATRIX_LIMIT = 512
# From here on, half of the products saved outweigh the sums that save them.
_FOLD_FROM = 64
_ORTHONORMAL_TO = 1e-6

Line = Callable[[torch.Tensor], torch.Tensor]
_Array = npt.NDArray[Any]


def forward_line(name: str, n: int, like: torch.Tensor) -> Line:
    """Return a function from lines (rest, n) to coefficients (n, rest)."""
    if name == "identity":
        return lambda rows: rows.t().contiguous()
    if n > MATRIX_LIMIT:
        return _dct_by_fft if name == "dct" else _filter_by(name, like)
    if name == "dct" and n >= _FOLD_FROM:
        return _dct_by_halves
    matrix = level_matrix(name, n, like)
    return lambda rows: torch.mm(matrix, rows.t())


def inverse_line(name: str, n: int, like: torch.Tensor) -> Line:
    """Return a function from coefficients (n, rest) to lines (rest, n)."""
    if name == "identity":
        return lambda coeffs: coeffs.t().contiguous()
    if n > MATRIX_LIMIT:
        return _idct_by_fft if name == "dct" else _unfilter_by(name, like)
    if name == "dct" and n >= _FOLD_FROM:
        return _idct_by_halves
    matrix = level_matrix(name, n, like)
    return lambda coeffs: torch.mm(coeffs.t(), matrix)


def has_small_matrix(name: str, n: int) -> bool:
    """Return whether a line is transformed by one product with a matrix."""
    if name == "identity":
        return False
    return n < _FOLD_FROM or (name != "dct" and n <= MATRIX_LIMIT)


def level_matrix(name: str, n: int, like: torch.Tensor) -> torch.Tensor:
    """Return the DCT, or one level of a wavelet, as a matrix (n, n)."""
    levels = 0 if name == "dct" or n <= 1 else 1
    return basis_matrix(name, levels, n, like.device, like.dtype)


def basis_matrix(
    name: str, levels: int, n: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Return the DCT, or so many levels of a wavelet, as a matrix (n, n)."""
    build = _build_matrix if n > MATRIX_LIMIT else _cached_matrix
    return build(name, levels, n, device, dtype)


@lru_cache(maxsize=256)
def is_orthonormal(name: str) -> bool:
    """Return whether a wavelet's filters are orthonormal to 1e-6."""
    wavelet = pywt.Wavelet(name)
    if not wavelet.orthogonal:
        return False
    step = _step_matrix(name, 2 * wavelet.dec_len)
    return bool(np.abs(step @ step.T - np.eye(len(step))).max() < _ORTHONORMAL_TO)


def _dct_by_halves(rows: torch.Tensor) -> torch.Tensor:
    """DCT of the even and the odd part of each line, by matrices of half the size."""
    num_rows, n = rows.shape
    half, middle = n // 2, n - n // 2
    matrix = level_matrix("dct", n, rows)
    mirrored = rows[:, middle:].flip(1)
    odd = rows[:, :half] - mirrored
    even = rows[:, :middle].clone(memory_format=torch.contiguous_format)
    even[:, :half] += mirrored
    coeffs = rows.new_empty(n, num_rows)
    torch.mm(matrix[0::2, :middle], even.t(), out=coeffs[0::2])
    torch.mm(matrix[1::2, :half], odd.t(), out=coeffs[1::2])
    return coeffs


def _idct_by_halves(coeffs: torch.Tensor) -> torch.Tensor:
    n, num_rows = coeffs.shape
    half, middle = n // 2, n - n // 2
    matrix = level_matrix("dct", n, coeffs)
    rows = coeffs.new_empty(num_rows, n)
    front = rows[:, :middle]
    torch.mm(coeffs[0::2].t(), matrix[0::2, :middle], out=front)
    odd = torch.mm(coeffs[1::2].t(), matrix[1::2, :half])
    rows[:, middle:] = (front[:, :half] - odd).flip(1)
    front[:, :half] += odd
    return rows


def _dct_by_fft(rows: torch.Tensor) -> torch.Tensor:
    """DCT-II by one FFT of the reordered line (Makhoul 1980)."""
    n = rows.shape[-1]
    reordered = torch.cat([rows[:, ::2], rows[:, 1::2].flip(-1)], -1)
    spectrum = torch.fft.rfft(reordered) * _twiddles(n, rows)
    # The line is real: its spectrum's second half is the conjugate of the first.
    second = spectrum.imag[:, 1 : (n + 1) // 2].flip(-1).neg()
    return torch.cat([spectrum.real, second], -1).t().contiguous()


def _idct_by_fft(coeffs: torch.Tensor) -> torch.Tensor:
    n = coeffs.shape[0]
    rows = coeffs.t()
    num_half = n // 2 + 1
    mirrored = rows.flip(-1)[:, : num_half - 1]
    mirrored = torch.cat([torch.zeros_like(rows[:, :1]), mirrored], -1)
    spectrum = torch.complex(rows[:, :num_half].contiguous(), -mirrored)
    reordered = torch.fft.irfft(spectrum / _twiddles(n, rows), n)
    result = torch.empty_like(reordered)
    half = (n + 1) // 2
    result[:, ::2] = reordered[:, :half]
    result[:, 1::2] = reordered[:, half:].flip(-1)
    return result


def _twiddles(n: int, like: torch.Tensor) -> torch.Tensor:
    k = torch.arange(n // 2 + 1, dtype=torch.float64, device=like.device)
    scale = torch.full_like(k, math.sqrt(2 / n))
    scale[0] = math.sqrt(1 / n)
    twiddles = torch.polar(scale, -math.pi * k / (2 * n))
    return twiddles.to(torch.complex(like.new_empty(0), like.new_empty(0)).dtype)


def _filter_by(name: str, like: torch.Tensor) -> Line:
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


def _unfilter_by(name: str, like: torch.Tensor) -> Line:
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
    step = _step_matrix(name, n)
    first = np.roll(step[[0, n // 2]], length, axis=1)
    occupied = np.flatnonzero(np.abs(first).max(axis=0) > 0)
    begin = min(int(occupied[0]), n - length)
    return torch.from_numpy(first[:, begin : begin + length].copy()), begin - length


# Outside of inference mode, as what is shared must serve every caller.
@torch.inference_mode(False)
def _build_matrix(
    name: str, levels: int, n: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    matrix = _dct_matrix(n) if name == "dct" else np.eye(n)
    for level in range(levels):
        size = n >> level
        matrix[:size] = _step_matrix(name, size) @ matrix[:size]
    return torch.from_numpy(matrix).to(device, dtype)


_cached_matrix = lru_cache(maxsize=64)(_build_matrix)


def _dct_matrix(n: int) -> _Array:
    k, j = np.arange(n)[:, None], np.arange(n)[None, :]
    # The angle is reduced as an integer, so large n loses no digits.
    angle = ((2 * j + 1) * k % (4 * n)) * (np.pi / (2 * n)) if n else np.zeros((0, 0))
    matrix: _Array = np.cos(angle) * math.sqrt(2 / max(n, 1))
    matrix[:1] *= math.sqrt(0.5)
    return matrix


def _step_matrix(name: str, n: int) -> _Array:
    """Return one level of `pywt.dwt` in periodization mode as a matrix (n, n)."""
    approximation, detail = pywt.dwt(np.eye(n), name, mode="periodization", axis=0)
    return np.concatenate([approximation, detail])
