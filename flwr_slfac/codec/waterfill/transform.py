r"""The orthonormal way from a tensor to coefficients and back.

::

    planes (N, C, S) -> rotate channels -> swap mean and sample 0
                     -> spatial basis -> coefficients (S, N * r)

Every stage is orthonormal, so an error in coefficients is the same error in the tensor.
Columns of the result are planes, one row of one sample each, in an order of choice.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.kernels import PlaneTransform, kernels, scratch
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import (
    Basis,
    forward_rows,
    inverse_rows,
    plane_transform,
)

Floats = npt.NDArray[np.float32]

# Values worked on at a time, of planes and of channels: about what a CPU's cache holds.
_PLANE_VALUES, _CHUNK_VALUES = 2**17, 2**17
# Beyond this many steps, float32 transforms are off by more than the step.
LARGEST_LEVEL = 2**22
# Fewer planes at a time make products slow.
_FEWEST_PLANES = 64
# Squares of so many coefficients at a time stay in a CPU's cache, a MiB of float32.
_SQUARES_SIZE = 2**18


@dataclass(frozen=True, eq=False)
class Told:
    """Coefficients, and what is told of them.

    Parameters
    ----------
    coefficients : Tensor (S, N * r)
        Planes in the order of columns.
    largest : float
        Largest magnitude.
    energies : ndarray (S,)
        Sums of squares times the weights of columns.
    """

    coefficients: torch.Tensor
    largest: float
    energies: npt.NDArray[np.float64]

    @classmethod
    def of(cls, coefficients: torch.Tensor, weights: Floats) -> "Told":
        """Look at coefficients by PyTorch."""
        column = torch.from_numpy(weights).to(coefficients)
        # A few frequencies at a time: their squares stay in the cache.
        num = max(1, _SQUARES_SIZE // coefficients.shape[1])
        starts = range(0, len(coefficients), num)
        squares = [coefficients[i : i + num].square() @ column for i in starts]
        energies = torch.cat(squares).to("cpu", torch.float64).numpy()
        low, high = torch.aminmax(coefficients)
        return cls(coefficients, max(-float(low), float(high)), energies)


@dataclass(frozen=True, eq=False)
class Transform:
    """The stages, chosen.

    Parameters
    ----------
    shape : PlaneShape
        Of the tensor.
    basis : Basis
        Along the sizes of a plane.
    matrix : Tensor (r, C), optional
        Orthonormal rows; None leaves the channels as they are.
    has_mean : bool
        Whether the mean of the samples takes the place of sample 0.
    order : ndarray (N * r,)
        Planes, ``sample * r + row``, in the order of columns.
    """

    shape: PlaneShape
    basis: Basis
    matrix: torch.Tensor | None
    has_mean: bool
    order: npt.NDArray[Any]

    @property
    def num_rows(self) -> int:
        """Rows after the rotation of channels."""
        return self.shape.num_channels if self.matrix is None else len(self.matrix)

    def forward(self, rows: torch.Tensor, weights: Floats) -> "Told":
        """Take rotated planes (N, r, S) to coefficients (S, N * r), and tell of them.

        Coefficients may lie in a buffer of this thread, until its next call.

        Parameters
        ----------
        rows : Tensor (N, r, S)
            float32.
        weights : ndarray (N * r,)
            float32: of planes, in the order of columns.
        """
        planes = rows.reshape(len(self.order), self.shape.num_positions)
        coefficients = _room("coefficients", (planes.shape[1], len(planes)), planes)
        stages = self._stages(planes)
        if stages is None:
            self._forward_by_chunks(planes, coefficients)
            return Told.of(coefficients, weights)
        sums, ends = kernels().forward_planes(
            planes.contiguous().numpy(),
            self.order,
            stages,
            coefficients.numpy(),
            weights,
        )
        return Told(coefficients, max(-float(ends[0]), float(ends[1])), sums)

    def _stages(self, planes: torch.Tensor) -> PlaneTransform | None:
        """Return what the kernels do, None where they do not."""
        if planes.device.type != "cpu":
            return None
        return plane_transform(self.basis, self.shape.sizes or (1,))

    def _forward_by_chunks(
        self, planes: torch.Tensor, coefficients: torch.Tensor
    ) -> None:
        index = torch.from_numpy(self.order).to(planes.device)
        num = _planes_at_once(planes)
        for start in range(0, len(index), num):
            chunk = slice(start, start + num)
            some = index[chunk]
            part = _room("planes", (len(some), planes.shape[1]), planes)
            torch.index_select(planes, 0, some, out=part)
            coefficients[:, chunk] = forward_planes(
                part, self.basis, self.shape, reuses=True
            )

    def inverse(
        self, coefficients: torch.Tensor, *, is_nonnegative: bool = False
    ) -> torch.Tensor:
        """Take coefficients back to planes (N, C, S), clamped at zero if asked to."""
        rows = self.inverse_rows(coefficients, is_nonnegative=is_nonnegative)
        return self.unrotate(rows, is_nonnegative=is_nonnegative)

    def inverse_rows(
        self, coefficients: torch.Tensor, *, is_nonnegative: bool
    ) -> torch.Tensor:
        """Take coefficients back to rotated planes (N, r, S), for `unrotate`."""
        planes = coefficients.new_empty(len(self.order), self.shape.num_positions)
        is_last = self.matrix is None and not self.has_mean
        stages = self._stages(planes)
        if stages is None:
            self._inverse_by_chunks(coefficients, planes)
        else:
            kernels().inverse_planes(
                coefficients.contiguous().numpy(),
                self.order,
                stages,
                planes.numpy(),
                is_nonnegative and is_last,
            )
        rows = planes.view(self.shape.num_samples, self.num_rows, -1)
        return reflect(rows, out=rows) if self.has_mean else rows

    def _inverse_by_chunks(
        self, coefficients: torch.Tensor, planes: torch.Tensor
    ) -> None:
        """Chunks that fit a cache spare the memory of whole tensors in between."""
        index = torch.from_numpy(self.order).to(coefficients.device)
        num = _planes_at_once(planes)
        for start in range(0, len(index), num):
            chunk = slice(start, start + num)
            part = coefficients[:, chunk]
            room = _room("planes", tuple(part.shape), planes)
            part = room.copy_(part)
            part = inverse_planes(part, self.basis, self.shape, reuses=True)
            planes.index_copy_(0, index[chunk], part.contiguous())

    def unrotate(self, rows: torch.Tensor, *, is_nonnegative: bool) -> torch.Tensor:
        """Undo the rotation of channels, in place where it is square."""
        if self.matrix is None:
            # Small planes that nothing else is done to are clamped already.
            is_clamped = self._stages(rows) is not None and not self.has_mean
            needs_clamp = is_nonnegative and not is_clamped
            return rows.clamp_(min=0) if needs_clamp else rows
        num_samples, num_rows, num_positions = rows.shape
        num_channels = self.shape.num_channels
        result = rows
        if num_rows < num_channels:
            result = rows.new_empty(num_samples, num_channels, num_positions)
        step = max(1, _CHUNK_VALUES // max(1, num_channels * num_positions))
        turned = self.matrix.t().contiguous()
        for start in range(0, num_samples, step):
            chunk = slice(start, start + step)
            some = rows[chunk]
            room = _room("turned", (len(some), num_channels, num_positions), rows)
            part = torch.matmul(turned, some, out=room)
            result[chunk] = part.clamp_(min=0) if is_nonnegative else part
        return result


def _planes_at_once(planes: torch.Tensor) -> int:
    return max(_FEWEST_PLANES, _PLANE_VALUES // planes.shape[1])


def _room(name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Return memory, on the CPU that of the last call by this thread."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return scratch(f"waterfill {name}", shape, like.dtype)


def forward_planes(
    planes: torch.Tensor, basis: Basis, shape: PlaneShape, *, reuses: bool = False
) -> torch.Tensor:
    """Transform planes (R, S) to coefficients (S, R); `reuses` as in `forward_rows`."""
    if shape.num_positions == 1:
        return planes.t().contiguous()
    lines = planes.reshape(len(planes), *shape.sizes)
    return forward_rows(lines, basis, reuses=reuses).reshape(-1, len(planes))


def inverse_planes(
    coeffs: torch.Tensor, basis: Basis, shape: PlaneShape, *, reuses: bool = False
) -> torch.Tensor:
    """Undo `forward_planes`."""
    num_planes = coeffs.shape[1]
    if shape.num_positions == 1:
        return coeffs.t()
    lines = coeffs.reshape(*shape.sizes, num_planes)
    lines = inverse_rows(lines, basis, reuses=reuses)
    return lines.reshape(num_planes, -1)


def reflect(rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Swap the mean of samples and sample 0 by a Householder reflection.

    Row 0 of the result (N, r, S) is sqrt(N) times the mean of the samples. The
    reflection is its own inverse. `out` may be the rows themselves.
    """
    num_samples = len(rows)
    if num_samples == 1:
        return rows
    normal = torch.full((num_samples,), -1 / math.sqrt(num_samples), device=rows.device)
    normal[0] += 1.0
    flat = rows.reshape(num_samples, -1)
    scale = -2.0 / float(normal @ normal)
    target = None if out is None else out.view(num_samples, -1)
    result = torch.addr(flat, normal, normal @ flat, alpha=scale, out=target)
    return result.view(rows.shape)


def energy(x: torch.Tensor) -> float:
    """Return the sum of squares of (N, r, S), not empty, float32."""
    return float(plane_energies(x).sum())


def plane_energies(rows: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return sums of squares over positions (N, r), in float64."""
    if rows.device.type == "cpu":
        planes = rows.reshape(-1, rows.shape[2]).contiguous()
        found = kernels().plane_energies(planes.numpy())
        of_planes: npt.NDArray[np.float64] = found.reshape(rows.shape[:2])
        return of_planes
    norms = torch.linalg.vector_norm(rows, dim=2)
    result: npt.NDArray[np.float64] = norms.to("cpu", torch.float64).square().numpy()
    return result
