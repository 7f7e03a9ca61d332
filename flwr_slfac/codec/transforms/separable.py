"""Apply a basis along one or two dimensions.

One product takes the last dimension to the front::

    rows (R, h, w)  --(w x w)-->  (w, R, h)  --(h x h)-->  coefficients (h, w, R)

so coefficients come out slowest in memory without a transposition; for 28 x 28 maps
that is 8 to 11 times the speed of one product with the Kronecker matrix, and for 8 x 8
still 1.5 times. What happens to one line is in `lines`. Along two dimensions the DCT is
separable; wavelets are those of `pywt.wavedec2`, laid out as `pywt.coeffs_to_array`
does (coarse at the top left).

Planes of float32 on a CPU whose sizes are at most 64 go by the stages of `stages`
instead, in loops of `kernels` that give the same bits compiled and in NumPy.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from flwr_slfac.codec.kernels import PlaneTransform, kernels, scratch
from flwr_slfac.codec.transforms.basis import Basis
from flwr_slfac.codec.transforms.lines import (
    Line,
    forward_line,
    has_small_matrix,
    inverse_line,
    level_matrix,
)
from flwr_slfac.codec.transforms.stages import plane_transform
from flwr_slfac.codec.transforms.wavelets import Array
from flwr_slfac.errors import SettingError

# Indices of more planes than this are not kept.
_CACHED_PLANES = 2**14


def forward_rows(
    rows: torch.Tensor, basis: Basis, *, reuses: bool = False
) -> torch.Tensor:
    """Transform rows (R, n) or planes (R, h, w) to coefficients (n, R) or (h, w, R).

    Parameters
    ----------
    rows : Tensor (R, n) or (R, h, w)
        float32 or float64, on any device.
    basis : Basis
        What to transform by.
    reuses : bool
        Whether the result may lie in a buffer of this thread, until its next call.

    Returns
    -------
    Tensor (n, R) or (h, w, R)
        Contiguous: one coefficient of all rows lies together.

    Raises
    ------
    SettingError
        If a wavelet cannot do the sizes, or the dtype is another.

    Examples
    --------
    >>> from flwr_slfac.codec.transforms import parse_basis
    >>> forward_rows(torch.ones(3, 4, 6), parse_basis("dct")).shape
    torch.Size([4, 6, 3])
    """
    _require_float(rows.dtype)
    sizes = tuple(rows.shape[1:])
    transform = _small_planes(rows, basis, sizes)
    if transform is not None:
        return _forward_planes(rows.contiguous(), transform, sizes, reuses)
    if not basis.is_wavelet:
        names = ("forward", "forward too") if reuses else ("", "")
        lines = [
            forward_line(basis.name, n, rows, name)
            for n, name in zip(sizes, names, strict=False)
        ]
        return _rotate_all(rows, lines)
    num_levels = basis.num_levels(*sizes)
    coeffs = rows
    if num_levels == 0:
        return coeffs.movedim(0, -1).contiguous()
    for level in range(num_levels):
        part = tuple(slice(n >> level) for n in sizes)
        steps = [forward_line(basis.name, n >> level, rows) for n in sizes]
        if level == 0:
            coeffs = _rotate_all(rows, steps)
        else:
            coeffs[part] = _rotate_all(coeffs[part].movedim(-1, 0), steps)
    return coeffs


def inverse_rows(
    coeffs: torch.Tensor, basis: Basis, *, reuses: bool = False
) -> torch.Tensor:
    """Undo `forward_rows`; the result may be a view with coefficients slowest.

    Parameters
    ----------
    coeffs : Tensor (n, R) or (h, w, R)
        Contiguous.
    basis, reuses
        See `forward_rows`.

    Raises
    ------
    SettingError
        As `forward_rows`.
    """
    _require_float(coeffs.dtype)
    sizes = tuple(coeffs.shape[:-1])
    transform = _small_planes(coeffs, basis, sizes)
    if transform is not None:
        return _inverse_planes(coeffs.contiguous(), transform, sizes, reuses)
    if not basis.is_wavelet:
        return _unrotate_all(coeffs, basis.name, reuses)
    num_levels = basis.num_levels(*sizes)
    if num_levels == 0:
        return coeffs.movedim(-1, 0).contiguous()
    if num_levels > 1:
        coeffs = coeffs.clone()
    for level in range(num_levels - 1, 0, -1):
        part = tuple(slice(n >> level) for n in sizes)
        coeffs[part] = _unrotate_all(coeffs[part], basis.name).movedim(0, -1)
    return _unrotate_all(coeffs, basis.name)


def _small_planes(
    values: torch.Tensor, basis: Basis, sizes: tuple[int, ...]
) -> PlaneTransform | None:
    """Return the stages if the kernels take such values, None if they do not."""
    if values.dtype is not torch.float32 or values.device.type != "cpu":
        return None
    return plane_transform(basis, sizes)


def _forward_planes(
    rows: torch.Tensor, transform: PlaneTransform, sizes: tuple[int, ...], reuses: bool
) -> torch.Tensor:
    num_places, num_rows = math.prod(sizes), len(rows)
    coeffs = _result("forward", (num_places, num_rows), rows, reuses)
    planes = rows.reshape(num_rows, num_places).numpy()
    kernels().forward_planes(planes, _all(num_rows), transform, coeffs.numpy())
    return coeffs.view(*sizes, num_rows)


def _inverse_planes(
    coeffs: torch.Tensor,
    transform: PlaneTransform,
    sizes: tuple[int, ...],
    reuses: bool,
) -> torch.Tensor:
    num_places, num_rows = math.prod(sizes), coeffs.shape[-1]
    planes = _result("inverse", (num_rows, num_places), coeffs, reuses)
    flat = coeffs.reshape(num_places, num_rows).numpy()
    kernels().inverse_planes(flat, _all(num_rows), transform, planes.numpy())
    return planes.view(num_rows, *sizes)


def _result(
    name: str, shape: tuple[int, int], like: torch.Tensor, reuses: bool
) -> torch.Tensor:
    return scratch(name, shape, like.dtype) if reuses else like.new_empty(shape)


def _all(num_rows: int) -> Array:
    """Return the index of all rows."""
    if num_rows <= _CACHED_PLANES:
        return _cached_all(num_rows)
    return np.arange(num_rows, dtype=np.int64)


@lru_cache(maxsize=16)
def _cached_all(num_rows: int) -> Array:
    return np.arange(num_rows, dtype=np.int64)


def _rotate_all(rows: torch.Tensor, lines: Sequence[Line]) -> torch.Tensor:
    """Apply a line transform to each dimension of (R, ...) but the first, last first.

    Each line transform takes (rest, n) to (n, rest), which brings R to the end.
    """
    shape = rows.shape
    result = rows
    for line, n in zip(reversed(lines), reversed(shape[1:]), strict=True):
        result = line(result.reshape(rows.numel() // max(n, 1), n))
    return result.reshape(*shape[1:], shape[0])


def _unrotate_all(
    coeffs: torch.Tensor, name: str, reuses: bool = False
) -> torch.Tensor:
    """Undo one level of a transform along each dimension of (..., R) but the last."""
    sizes, num_rows = coeffs.shape[:-1], coeffs.shape[-1]
    if len(sizes) == 2 and all(has_small_matrix(name, n) for n in sizes):
        # Skinny products are twice as fast with the rows last; a copy turns them back.
        first, second = (level_matrix(name, n, coeffs) for n in sizes)
        rooms: list[torch.Tensor | None] = [None, None]
        flat = coeffs.reshape(sizes[0], -1)
        if reuses and coeffs.device.type == "cpu":
            rooms[0] = scratch("inverse", tuple(flat.shape), coeffs.dtype)
            rooms[1] = scratch("inverse too", tuple(coeffs.shape), coeffs.dtype)
        down = torch.mm(first.t(), flat, out=rooms[0]).view(coeffs.shape)
        return torch.matmul(second.t(), down, out=rooms[1]).movedim(-1, 0)
    result = coeffs
    names = ("inverse", "inverse too") if reuses else ("", "")
    for n, buffer in zip(sizes, names, strict=False):
        lines = result.reshape(n, coeffs.numel() // max(n, 1))
        result = inverse_line(name, n, coeffs, buffer)(lines)
    return result.reshape(num_rows, *sizes)


def _require_float(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise SettingError(f"a basis works in float32 or float64, not {dtype}")
