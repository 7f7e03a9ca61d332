"""Orthonormal transforms: DCT-II, orthogonal wavelets, identity.

::

    "dct", "sym4:2"  --parse_basis--> Basis
    rows (R, h, w)   --forward_rows--> coefficients (h, w, R) --inverse_rows--> rows
    coefficients     --order_2d--> coarse to fine

`separable` applies a basis along the dimensions one after the other, `lines` chooses
how a line is transformed: by a matrix, by an FFT (`dct`) or by filters (`wavelets`).
`stages` says it of small planes, which loops of `kernels` transform.
"""

from flwr_slfac.codec.transforms.basis import SPECTRUM, Basis, parse_basis
from flwr_slfac.codec.transforms.order import order_1d, order_2d
from flwr_slfac.codec.transforms.separable import forward_rows, inverse_rows
from flwr_slfac.codec.transforms.stages import plane_transform

__all__ = [
    "SPECTRUM",
    "Basis",
    "forward_rows",
    "inverse_rows",
    "order_1d",
    "order_2d",
    "parse_basis",
    "plane_transform",
]
