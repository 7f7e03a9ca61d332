"""The orthonormal DCT-II of lines: its matrix, by halves, and by one FFT."""

import math

import numpy as np
import torch

from flwr_slfac.codec.transforms.wavelets import Array


def dct_matrix(n: int) -> Array:
    """Return the DCT-II as a matrix (n, n) in float64; its rows are the cosines."""
    k, j = np.arange(n)[:, None], np.arange(n)[None, :]
    # The angle is reduced as an integer, so large n loses no digits.
    angle = ((2 * j + 1) * k % (4 * n)) * (np.pi / (2 * n)) if n else np.zeros((0, 0))
    matrix: Array = np.cos(angle) * math.sqrt(2 / max(n, 1))
    matrix[:1] *= math.sqrt(0.5)
    return matrix


def dct_by_halves(
    rows: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """DCT of the even and the odd part of each line, by matrices of half the size."""
    num_rows, n = rows.shape
    half, middle = n // 2, n - n // 2
    mirrored = rows[:, middle:].flip(1)
    odd = rows[:, :half] - mirrored
    even = rows[:, :middle].clone(memory_format=torch.contiguous_format)
    even[:, :half] += mirrored
    coeffs = rows.new_empty(n, num_rows) if out is None else out
    torch.mm(matrix[0::2, :middle], even.t(), out=coeffs[0::2])
    torch.mm(matrix[1::2, :half], odd.t(), out=coeffs[1::2])
    return coeffs


def idct_by_halves(
    coeffs: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Undo `dct_by_halves`."""
    n, num_rows = coeffs.shape
    half, middle = n // 2, n - n // 2
    rows = coeffs.new_empty(num_rows, n) if out is None else out
    front = rows[:, :middle]
    torch.mm(coeffs[0::2].t(), matrix[0::2, :middle], out=front)
    odd = torch.mm(coeffs[1::2].t(), matrix[1::2, :half])
    rows[:, middle:] = (front[:, :half] - odd).flip(1)
    front[:, :half] += odd
    return rows


def dct_by_fft(rows: torch.Tensor) -> torch.Tensor:
    """DCT-II by one FFT of the reordered line (Makhoul 1980)."""
    n = rows.shape[-1]
    reordered = torch.cat([rows[:, ::2], rows[:, 1::2].flip(-1)], -1)
    spectrum = torch.fft.rfft(reordered) * _twiddles(n, rows)
    # The line is real: its spectrum's second half is the conjugate of the first.
    second = spectrum.imag[:, 1 : (n + 1) // 2].flip(-1).neg()
    return torch.cat([spectrum.real, second], -1).t().contiguous()


def idct_by_fft(coeffs: torch.Tensor) -> torch.Tensor:
    """Undo `dct_by_fft`."""
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
