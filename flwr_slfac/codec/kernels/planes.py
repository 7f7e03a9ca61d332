r"""Separable transforms of many planes at once, by NumPy.

::

    planes (R, h, w) --stage by stage--> coefficients (h, w, R)

Products and sums are of float32, in the order of taps, and rounded one by one, which
settles every bit, however many are worked on at once.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels.stages import PlaneTransform, Stage, Sums

__all__ = ["LANES", "energies", "forward", "inverse", "spectra"]

# Planes that the compiled loops work on at once: sums of squares are in as many lanes.
LANES = 16
# So many squares are summed in float32, the sums of them in float64.
_RUN = 1024
# Our choice: values at a time, with what comes of them about what a cache holds.
_CHUNK = 2**16

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def forward(
    planes: Floats,
    index: Array,
    transform: PlaneTransform,
    coeffs: Floats,
    weights: Floats | None = None,
) -> tuple[Array, Floats]:
    """Transform planes, and tell of their coefficients.

    Parameters
    ----------
    planes : ndarray (K, S)
        float32, contiguous.
    index : ndarray (R,)
        int64: which plane a column is.
    transform : PlaneTransform
        Of planes of S values.
    coeffs : ndarray (S, R)
        float32, contiguous; written.
    weights : ndarray (R,), optional
        float32, of columns.

    Returns
    -------
    tuple of ndarray
        With weights, the sums of squares times weights (S,), float64, and the least
        and the largest of coefficients and zero, float32; else arbitrary values. Any
        where squares overflow.
    """
    lanes = np.zeros((len(coeffs), LANES), np.float32)
    ends = np.zeros(2, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        _forward(planes, index, transform, coeffs, weights, lanes, ends)
    # One lane after the other: sums of float64 depend on their order too.
    return np.cumsum(lanes, axis=1, dtype=np.float64)[:, -1], ends


def _forward(
    planes: Floats,
    index: Array,
    transform: PlaneTransform,
    coeffs: Floats,
    weights: Floats | None,
    lanes: Floats,
    ends: Floats,
) -> None:
    for chunk in _chunks(coeffs):
        part = _transformed(planes[index[chunk]], transform)
        coeffs[:, chunk] = part
        if weights is not None:
            low, high = part.min(initial=ends[0]), part.max(initial=ends[1])
            ends[:] = low, high
            _add_squares(lanes, part, weights[chunk])


def spectra(
    planes: Floats, transform: PlaneTransform, scales: Floats, result: Floats
) -> None:
    """Transform planes to scaled coefficients that lie as planes do.

    Parameters
    ----------
    planes : ndarray (R, S)
        float32, contiguous.
    transform : PlaneTransform
        Of planes of S values.
    scales : ndarray (S,)
        float32, of coefficients.
    result : ndarray (R, S)
        float32, contiguous; written.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for chunk in _chunks(planes.T):
            part = _transformed(planes[chunk], transform)
            result[chunk] = (part * scales[:, None]).T


def inverse(
    coeffs: Floats,
    index: Array,
    transform: PlaneTransform,
    planes: Floats,
    clamps: bool = False,
) -> None:
    """Undo `forward`.

    Parameters
    ----------
    coeffs, index, transform
        See `forward`.
    planes : ndarray (K, S)
        float32, contiguous; written.
    clamps : bool
        Whether what is not above zero becomes zero.
    """
    for chunk in _chunks(coeffs):
        tile = _tile(coeffs[:, chunk], transform)
        # Crafted coefficients may overflow: who decodes them looks at the result.
        with np.errstate(over="ignore", invalid="ignore"):
            for stage in reversed(transform.stages):
                line = _lines(tile, stage)
                line[...] = _unfold(_apply(stage.inverse_sums, line), stage.folds)
        part = tile.reshape(len(coeffs), -1)
        if clamps:
            part = np.where(part > 0, part, np.float32(0))
        planes[index[chunk]] = part.T


def energies(planes: Floats) -> npt.NDArray[np.float64]:
    """Return the sums of squares (R,) of planes (R, S), float32 and contiguous."""
    num_planes, num_places = planes.shape
    total = np.zeros(num_planes)
    for start in range(0, num_places, _RUN):
        run = planes[:, start : start + _RUN]
        lanes = np.zeros((num_planes, LANES), np.float32)
        for i in range(0, run.shape[1], LANES):
            some = run[:, i : i + LANES]
            lanes[:, : some.shape[1]] += some * some
        total += np.cumsum(lanes, axis=1, dtype=np.float64)[:, -1]
    return total


def _transformed(planes: Floats, transform: PlaneTransform) -> Floats:
    """Return coefficients (S, K) of planes (K, S)."""
    tile = _tile(planes.T, transform)
    for stage in transform.stages:
        line = _lines(tile, stage)
        line[...] = _apply(stage.sums, _fold(line, stage.folds))
    return tile.reshape(planes.shape[1], -1)


def _chunks(coeffs: Floats) -> list[slice]:
    num_places, num_planes = coeffs.shape
    step = LANES * max(1, _CHUNK // (LANES * num_places))
    return [slice(i, min(i + step, num_planes)) for i in range(0, num_planes, step)]


def _tile(values: Floats, transform: PlaneTransform) -> Floats:
    """Return a copy (h, w, K)."""
    return np.array(values, order="C").reshape(transform.height, transform.width, -1)


def _lines(tile: Floats, stage: Stage) -> Floats:
    """View what a stage transforms as (n, lines, K)."""
    part = tile[: stage.rows, : stage.columns]
    return part.transpose(1, 0, 2) if stage.is_along_rows else part


def _fold(line: Floats, folds: int) -> Floats:
    n = len(line)
    for _ in range(folds):
        first, last = line[: n // 2], line[n // 2 : n][::-1]
        part = np.concatenate([first + last, (first - last)[::-1]])
        line = part if n == len(line) else np.concatenate([part, line[n:]])
        n //= 2
    return line


def _unfold(line: Floats, folds: int) -> Floats:
    for fold in range(folds - 1, -1, -1):
        line = np.concatenate(
            [_fold(line[: len(line) >> fold], 1), line[len(line) >> fold :]]
        )
    return line


def _apply(sums: Sums, line: Floats) -> Floats:
    result = np.empty_like(line)
    for outputs, taps, weights in sums:
        if (taps == taps[:1]).all():
            taps = taps[:1]
        total = line[taps[:, 0]] * weights[:, 0, None, None]
        part = np.empty_like(total)
        for t in range(1, weights.shape[1]):
            np.multiply(line[taps[:, t]], weights[:, t, None, None], out=part)
            total += part
        result[outputs] = total
    return result


def _add_squares(lanes: Floats, part: Floats, weights: Floats) -> None:
    weighted = part * part * weights
    for start in range(0, part.shape[1], LANES):
        some = weighted[:, start : start + LANES]
        lanes[:, : some.shape[1]] += some
