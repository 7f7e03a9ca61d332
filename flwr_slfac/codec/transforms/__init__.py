"""Orthonormal transforms: DCT-II, orthogonal wavelets, identity."""

from flwr_slfac.codec.transforms.basis import Basis, forward, inverse, parse_basis

__all__ = ["Basis", "forward", "inverse", "parse_basis"]
