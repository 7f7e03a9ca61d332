"""Bits against error of one tensor: of codecs by name, of SZ3 and of zfp."""

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pysz
import torch
import zfpy
from torch import Tensor

from flwr_slfac.codec import decode, encode, parse_codec

# Pairs of relative error and bits per value, by rising error.
Curve = list[tuple[float, float]]


def codec_curve(x: Tensor, settings: Iterable[str]) -> Curve:
    """Return what each setting reaches."""
    points = []
    for text in settings:
        data = encode(x, parse_codec(text))
        points.append((_error(x, decode(data)), 8 * len(data) / x.numel()))
    return sorted(points)


def outside_curves(x: Tensor, errors: Iterable[float]) -> dict[str, Curve]:
    """Return the curves of SZ3 and zfp over absolute bounds around the errors."""
    array = np.ascontiguousarray(x.numpy())
    sigma = float(x.double().square().mean().sqrt())
    sz3: Curve = []
    zfp: Curve = []
    for error in errors:
        for factor in np.geomspace(0.5, 3.0, 5):
            bound = float(sigma * error * factor)
            config = pysz.szConfig()
            config.errorBoundMode = pysz.szErrorBoundMode.ABS
            config.absErrorBound = bound
            data, _ = pysz.sz.compress(array, config)
            back, _ = pysz.sz.decompress(data, array.dtype, array.shape)
            sz3.append(_point(x, back, len(data)))
    # zfp rounds tolerances to powers of two, and stays far below them.
    for power in range(-6, 11):
        packed = zfpy.compress_numpy(array, tolerance=sigma * 2.0**power)
        zfp.append(_point(x, zfpy.decompress_numpy(packed), len(packed)))
    return {"SZ3": sorted(sz3), "zfp": sorted(zfp)}


def bits_at(curve: Curve, error: float) -> float | None:
    """Return the bits at an error on the lower hull, or None where it is not reached.

    A setting that errs less than asked counts as it is where none errs more.
    """
    hull = _lower_hull([(math.log(max(e, 1e-12)), bits) for e, bits in curve])
    at = math.log(error)
    if at < hull[0][0]:
        return None
    for (x0, y0), (x1, y1) in itertools.pairwise(hull):
        if x0 <= at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return hull[-1][1]


def _lower_hull(points: Curve) -> Curve:
    hull: Curve = []
    for x, y in sorted(points):
        if hull and (y >= hull[-1][1] or x == hull[-1][0]):
            if y >= hull[-1][1]:
                continue
            hull.pop()
        while len(hull) > 1 and _above(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _above(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]
) -> bool:
    """Say whether b lies above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def _point(x: Tensor, back: np.ndarray, num_bytes: int) -> tuple[float, float]:
    return _error(x, torch.from_numpy(back)), 8 * num_bytes / x.numel()


def _error(x: Tensor, decoded: Tensor) -> float:
    return float((decoded.double() - x.double()).norm() / x.double().norm())
