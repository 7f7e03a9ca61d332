"""SL-FAC from its definition: NumPy and SciPy, one row and one coefficient at a time.

Written from the docstrings of `flwr_slfac.codec.slfac`, sharing no code with it, in
float64. Slow on purpose.
"""

import math
from dataclasses import dataclass

import numpy as np
import pywt
import scipy.fft


@dataclass
class Row:
    """What SL-FAC sends for one row."""

    split: int
    widths: list[int]
    ranges: list[tuple[np.float16, np.float16]]
    codes: list[int]
    code_widths: list[int]
    # How far each code's value was from a tie of the rounding, in codes.
    margins: list[float]
    # How far theta's threshold was missed by and overshot, as shares of the energy.
    split_margin: float
    # How far the ends of ranges are from zero, which noise may pass, in largest ones.
    range_margin: float = 1.0


def zigzag(height: int, width: int) -> list[tuple[int, int]]:
    """Walk the anti-diagonals as JPEG does."""
    walk = []
    for diagonal in range(height + width - 1):
        cells = [
            (row, diagonal - row)
            for row in range(height)
            if 0 <= diagonal - row < width
        ]
        walk.extend(cells if diagonal % 2 else reversed(cells))
    return walk


def spectrum(plane: np.ndarray, basis: str) -> list[float]:
    """Return one row's coefficients in their order."""
    if basis == "dct":
        if plane.ndim == 1:
            return list(scipy.fft.dct(plane, norm="ortho"))
        coeffs = scipy.fft.dctn(plane, norm="ortho")
        return [coeffs[cell] for cell in zigzag(*plane.shape)]
    name, level = basis.split(":")
    if plane.ndim == 1:
        return list(
            np.concatenate(pywt.wavedec(plane, name, "periodization", int(level)))
        )
    coarse, *details = pywt.wavedec2(plane, name, "periodization", int(level))
    parts = [coarse, *(band for bands in details for band in bands)]
    return [value for part in parts for value in part.ravel()]


def float16_below(value: float) -> np.float16:
    """Return the largest float16 at most value, by walking."""
    half = np.float16(value)
    while float(half) > value:
        half = np.nextafter(half, np.float16(-np.inf))
    return half


def largest_first(coeffs: list[float], theta: float) -> list[int]:
    """Return the positions of the largest, until theta of the energy, then the rest."""
    ranked = sorted(range(len(coeffs)), key=lambda i: -abs(coeffs[i]))
    count, _ = split_of([coeffs[i] for i in ranked], theta)
    chosen = set(ranked[:count])
    return sorted(chosen) + [i for i in range(len(coeffs)) if i not in chosen]


def deviation_first(spectra: list[list[float]]) -> list[int]:
    """Return positions by their standard deviation over rows, largest first."""
    deviations = np.array(spectra).std(0)
    return sorted(range(len(deviations)), key=lambda i: -deviations[i])


def encode(
    planes: list[np.ndarray],
    theta: float = 0.9,
    bit_widths: tuple[int, int] = (2, 8),
    basis: str = "dct",
    components: str = "spectral",
    energy: str = "mean",
) -> list[Row]:
    """Return what SL-FAC sends for each row."""
    values = np.concatenate([p.ravel() for p in planes]).astype(np.float64)
    spectra = [spectrum(p.astype(np.float64), basis) for p in planes]
    if components == "magnitude":
        spectra = [[s[i] for i in largest_first(s, theta)] for s in spectra]
    elif components == "deviation":
        order = deviation_first(spectra)
        spectra = [[s[i] for i in order] for s in spectra]
    variance = max(values.var(), 2.0**-20 * (values**2).mean())
    splits = [split_of(s, theta) for s in spectra]
    parts = [(s[:k], s[k:]) for s, (k, _) in zip(spectra, splits, strict=True)]
    logs = [
        [
            math.log(1 + sum(c * c for c in part) / count / variance)
            if variance > 0
            else 0.0
            for part, count in (
                (part, max(len(part), 1) if energy == "mean" else 1) for part in pair
            )
        ]
        for pair in parts
    ]
    largest_log = max(max(pair) for pair in logs)
    magnitude = max(abs(c) for s in spectra for c in s)
    scale = 2.0 ** math.frexp(magnitude)[1]
    rows = []
    for pair, pair_logs, (k, split_margin) in zip(parts, logs, splits, strict=True):
        row = Row(k, [], [], [], [], [], split_margin)
        for part, log in zip(pair, pair_logs, strict=True):
            share = log / largest_log if largest_log > 0 else 0.0
            width = round(bit_widths[0] + (bit_widths[1] - bit_widths[0]) * share)
            row.widths.append(width)
            if not part:
                continue
            if any(part):
                nearest = min(abs(min(part)), abs(max(part))) / magnitude
                row.range_margin = min(row.range_margin, nearest)
            low = float16_below(min(part) / scale)
            high = -float16_below(-max(part) / scale)
            row.ranges.append((low, high))
            if low == high:
                continue
            step = (float(high) - float(low)) * scale / (2**width - 1)
            for c in part:
                exact = (c - float(low) * scale) / step
                row.codes.append(round(exact))
                row.code_widths.append(width)
                row.margins.append(0.5 - abs(exact - round(exact)))
        rows.append(row)
    return rows


def split_of(coeffs: list[float], theta: float) -> tuple[int, float]:
    """Return the smallest prefix with theta of the energy, and how sure that is."""
    total = sum(c * c for c in coeffs)
    if total == 0:
        return 1, 1.0
    reached = 0.0
    for count, c in enumerate(coeffs, 1):
        before, reached = reached, reached + c * c
        if reached >= theta * total:
            margin = min(reached / total - theta, theta - before / total)
            return count, margin
    return len(coeffs), 0.0


def bit_stream(rows: list[Row]) -> bytes:
    """Return the codes, lowest bit first, as bytes, lowest bit first."""
    bits = [
        code >> place & 1
        for row in rows
        for code, width in zip(row.codes, row.code_widths, strict=True)
        for place in range(width)
    ]
    return np.packbits(bits, bitorder="little").tobytes() if bits else b""


def decode(row: Row, n: int, magnitude: float) -> list[float]:
    """Return one row's coefficients as a decoder must see them."""
    scale = 2.0 ** math.frexp(magnitude)[1]
    codes = iter(row.codes)
    coeffs = []
    counts = [row.split, n - row.split]
    for count, width, (low, high) in zip(counts, row.widths, row.ranges, strict=False):
        step = (float(high) - float(low)) * scale / (2**width - 1)
        for _ in range(count):
            code = 0 if low == high else next(codes)
            coeffs.append(float(low) * scale + code * step)
    return coeffs
