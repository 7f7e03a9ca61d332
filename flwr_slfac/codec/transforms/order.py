"""The order of coefficients, coarse to fine."""

from functools import lru_cache

import torch

from flwr_slfac.codec.transforms.basis import SPECTRUM, Basis

# Orders of larger planes are not kept: 64 of them would hold more than 32 MiB.
_CACHED_ORDER_LIMIT = 2**16


def order_1d(basis: Basis, n: int) -> torch.Tensor:
    """Return the order of n coefficients, coarse to fine: as they are.

    Raises
    ------
    SettingError
        If a wavelet cannot do the size.
    """
    basis.num_levels(n)
    return torch.arange(n)


def order_2d(basis: Basis, h: int, w: int) -> torch.Tensor:
    """Return flat indices (h * w,) of the coefficients of a plane, coarse to fine.

    Zig-zag by anti-diagonals for the DCT, as JPEG does: (0, 0), (0, 1), (1, 0),
    (2, 0), ...; approximation, then horizontal, vertical and diagonal details of each
    level, each row by row, for wavelets; row by row for the identity. Do not write to
    the result: small ones are shared.

    Raises
    ------
    SettingError
        If a wavelet cannot do the sizes.

    Examples
    --------
    >>> from flwr_slfac.codec.transforms import parse_basis
    >>> order_2d(parse_basis("dct"), 3, 3)
    tensor([0, 1, 3, 6, 4, 2, 5, 7, 8])
    """
    levels = basis.num_levels(h, w)
    kind = "wavelet" if basis.is_wavelet else basis.name
    if basis == SPECTRUM:
        kind = "dct"
    if h * w <= _CACHED_ORDER_LIMIT:
        return _cached_order(kind, levels, h, w)
    return _order(kind, levels, h, w)


# Outside of inference mode, as what is shared must serve every caller.
@torch.inference_mode(False)
def _order(kind: str, levels: int, h: int, w: int) -> torch.Tensor:
    if kind == "dct":
        return _zigzag(h, w)
    index = torch.arange(h * w).reshape(h, w)
    parts = []
    for level in range(1, levels + 1):
        y, x, y2, x2 = h >> level, w >> level, h >> (level - 1), w >> (level - 1)
        details = index[y:y2, :x], index[:y, x:x2], index[y:y2, x:x2]
        parts.append(torch.cat([d.reshape(-1) for d in details]))
    parts.append(index[: h >> levels, : w >> levels].reshape(-1))
    return torch.cat(parts[::-1])


def _zigzag(h: int, w: int) -> torch.Tensor:
    order = torch.empty(h * w, dtype=torch.int64)
    start = 0
    for diagonal in range(h + w - 1 if h * w else 0):
        top, bottom = max(0, diagonal - w + 1), min(diagonal, h - 1)
        # Even diagonals run up (column grows), odd ones run down (row grows).
        first, step = (top, w - 1) if diagonal % 2 else (bottom, 1 - w)
        end = start + bottom - top + 1
        along = torch.arange(end - start) * step
        order[start:end] = along + (first * (w - 1) + diagonal)
        start = end
    return order


_cached_order = lru_cache(maxsize=64)(_order)
