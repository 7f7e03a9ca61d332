"""Orthonormal transforms: DCT-II, orthogonal wavelets, identity."""

from flwr_slfac.codec.transforms.basis import (
    Basis,
    forward_rows,
    inverse_rows,
    order_1d,
    order_2d,
    parse_basis,
)

__all__ = [
    "Basis",
    "forward_rows",
    "inverse_rows",
    "order_1d",
    "order_2d",
    "parse_basis",
]
