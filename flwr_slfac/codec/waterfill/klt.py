r"""The channel Karhunen-Loeve basis: estimated, quantized, sent once, reused.

The Gram matrix of the channels has the basis as its eigenvectors. Only rows that carry
signal travel, each with a step as fine as its variance needs. Both sides then make the
rows orthonormal again, so coarse rows cost a little decorrelation and no error::

    x (N, C, S) -> Gram (C, C) -> eigenvectors -> round(row / 2**-level) -> wire
                                                          |
                           orthonormal rows (r, C) <- Gram-Schmidt (Cholesky)
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.waterfill.entropy import LARGE, Reader, Writer
from flwr_slfac.errors import DecodeError

MAX_ROWS = 4096
_MAX_LEVEL = 20
MAX_CHANNELS = 1024
_ENOUGH_POSITIONS = 8192
# Share of the variance that a Gram matrix in float32 can tell from nothing.
_VISIBLE = 1e-6
_CODES, _LEVELS = "stream.waterfill.codes", "stream.waterfill.levels"
_Reals = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rows of a basis as integers.

    Parameters
    ----------
    codes : Tensor (r, C), int32
        Row k is ``codes[k] * 2**-levels[k]`` before it is made orthonormal.
    levels : Tensor (r,), int32
        In [0, 20], in units of a halving of the step.
    """

    codes: torch.Tensor
    levels: torch.Tensor

    def matrix(self, device: torch.device) -> torch.Tensor:
        """Return orthonormal rows (r, C), float32.

        Raises
        ------
        DecodeError
            If the rows are not independent.
        """
        rows = self.codes.to(torch.float64) * torch.exp2(-self.levels.double())[:, None]
        factor, info = torch.linalg.cholesky_ex(rows @ rows.t())
        result: torch.Tensor = torch.linalg.solve_triangular(factor, rows, upper=False)
        excess = result @ result.t() - torch.eye(len(rows), dtype=torch.float64)
        if int(info) or not bool(excess.abs().max() < 1e-6):
            raise DecodeError("the rows of a channel basis are not independent")
        return result.to(device, torch.float32)

    def fingerprint(self) -> bytes:
        """Return 4 bytes that tell this basis from others."""
        codes = self.codes.numpy().astype("<i4").tobytes()
        levels = self.levels.numpy().astype("<i4").tobytes()
        return zlib.crc32(levels, zlib.crc32(codes)).to_bytes(4, "little")

    def remember(self, memory: Memory) -> None:
        """Store the basis in the memory of a stream."""
        memory[_CODES], memory[_LEVELS] = self.codes, self.levels

    def write(self, writer: Writer) -> None:
        """Add the rows to the streams; rows of one level share a model."""
        levels = self.levels.numpy().astype(np.int64)
        writer.stream(np.diff(levels, prepend=0), LARGE)
        codes = self.codes.numpy()
        for level in np.unique(levels):
            writer.stream(codes[levels == level].reshape(-1), LARGE)

    @classmethod
    def read(cls, reader: Reader, num_rows: int, num_channels: int) -> "Rotation":
        """Read back what `write` added."""
        levels = np.cumsum(reader.stream(num_rows, LARGE).astype(np.int64))
        if levels.min() < 0 or levels.max() > _MAX_LEVEL:
            raise DecodeError("a level of the channel basis is out of range")
        codes = np.zeros((num_rows, num_channels), np.int32)
        for level in np.unique(levels):
            rows = np.flatnonzero(levels == level)
            values = reader.stream(rows.size * num_channels, LARGE)
            if np.abs(values.astype(np.int64)).max() > 2 ** (_MAX_LEVEL + 1):
                raise DecodeError("a code of the channel basis is out of range")
            codes[rows] = values.reshape(rows.size, num_channels)
        return cls(torch.from_numpy(codes), torch.from_numpy(levels.astype(np.int32)))


def remembered(memory: Memory) -> Rotation | None:
    """Return the basis in the memory of a stream, if there is one."""
    if _CODES not in memory:
        return None
    return Rotation(memory[_CODES], memory[_LEVELS])


def water_level(variances: _Reals, distortion: float) -> float:
    """Return the level t with ``sum(min(variances, t)) == distortion``.

    Reverse water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3):
    components below the level are not sent, all others bear the same error.
    """
    ascending = np.sort(np.maximum(variances, 0.0))
    below = np.concatenate([[0.0], np.cumsum(ascending)[:-1]])
    levels = (distortion - below) / np.arange(len(ascending), 0, -1)
    fits = np.flatnonzero(levels <= ascending)
    return float(levels[fits[0]] if fits.size else ascending[-1])


def gaussian_bits(variances: _Reals, level: float) -> float:
    """Return the bits of one sample of all components at a water level."""
    return float(0.5 * np.log2(np.maximum(variances / max(level, 1e-300), 1.0)).sum())


def gram(x: torch.Tensor) -> _Reals:
    """Return the mean of outer products of channels (C, C) of x (N, C, S).

    Of large tensors every k-th position is taken, of all samples: a few samples may
    hold most of a gradient's energy.
    """
    num_samples, num_channels, num_positions = x.shape
    enough = max(_ENOUGH_POSITIONS, 32 * num_channels)
    stride = max(1, num_samples * num_positions // enough)
    if stride > 1 and num_positions > 1:
        stride = min(stride, num_positions) | 1
        x = x[:, :, stride // 2 :: stride]
    if x.shape[2] == 1:
        flat = x[:, :, 0].t()
    else:
        flat = x.transpose(0, 1).reshape(num_channels, -1)
    product: _Reals = (flat @ flat.t()).cpu().numpy().astype(np.float64)
    return product / max(flat.shape[1], 1)


def principal(moments: _Reals) -> tuple[_Reals, npt.NDArray[Any]]:
    """Return variances, descending, and their directions as rows."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(moments))
    variances = np.maximum(values.numpy()[::-1], 0.0)
    return variances, vectors.numpy()[:, ::-1].T


@dataclass(frozen=True, eq=False)
class Channels:
    """One way to treat the channels.

    Parameters
    ----------
    matrix : Tensor (r, C), optional
        Orthonormal rows, float32; None leaves the channels as they are.
    variances : ndarray (r,)
        Of the rows.
    rotation : Rotation, optional
        What the rows are on the wire, once that is settled.
    is_new : bool
        Whether the rows have to be sent.
    """

    matrix: torch.Tensor | None
    variances: _Reals
    rotation: Rotation | None = None
    is_new: bool = False

    def side_bits(self, level: float) -> float:
        """Return about how many bits the rows take."""
        if self.matrix is None or not self.is_new:
            return 0.0
        num_rows, num_channels = self.matrix.shape
        return num_channels * (gaussian_bits(self.variances, level) + 2.1 * num_rows)

    def settled(self, level: float) -> "Channels":
        """Return the same with rows as the wire will have them, for a water level."""
        if self.matrix is None or not self.is_new:
            return self
        rotation = _quantized(self.matrix.cpu().double().numpy(), self.variances, level)
        matrix = rotation.matrix(self.matrix.device)
        return Channels(matrix, self.variances, rotation, is_new=True)


def options(
    moments: _Reals,
    num_positions: int,
    level: float,
    kept: float,
    memory: Memory,
    device: torch.device,
) -> list[Channels]:
    """Return the ways to treat the channels that are worth a trial.

    Parameters
    ----------
    moments : ndarray (C, C)
        From `gram`.
    num_positions : int
        Positions that a basis would serve.
    level : float
        The water level to expect, a variance.
    kept : float
        Variance that may be lost with rows that are left out.
    memory : dict
        Of the stream.
    device : torch.device
        Where the rows are wanted.
    """
    total = float(np.trace(moments))
    if kept < _VISIBLE * total:
        kept = -1.0
    diagonal = np.diag(moments)
    plain = Channels(None, diagonal)
    variances, vectors = principal(moments)
    num_rows = _num_rows(variances, total, kept)
    fresh = Channels(
        torch.from_numpy(vectors[:num_rows].astype(np.float32)).to(device),
        variances[:num_rows],
        is_new=True,
    )
    ideal = gaussian_bits(variances, level)
    ways = []
    if fresh.side_bits(level) < 24.0 * num_positions * len(diagonal):
        ways.append(fresh)
    if not ways or gaussian_bits(diagonal, level) < 2 * ideal + 1:
        ways.append(plain)
    old = remembered(memory)
    if old is not None and old.codes.shape[1] == len(diagonal):
        rows = old.matrix(torch.device("cpu"))
        wide = rows.double().numpy()
        reached = np.einsum("kc,kc->k", wide @ moments, wide)
        if total - float(reached.sum()) <= kept or len(rows) == len(diagonal):
            num_rows = _num_rows(reached, total, kept)
            matrix = rows[:num_rows].to(device)
            ways.append(Channels(matrix, reached[:num_rows], old))
    return ways


def _num_rows(variances: _Reals, total: float, kept: float) -> int:
    """Return how many leading rows leave at most `kept` variance out."""
    left = total - np.cumsum(variances)
    enough = np.flatnonzero(left <= kept)
    num_rows = int(enough[0]) + 1 if enough.size else len(variances)
    return min(num_rows, MAX_ROWS)


def _quantized(vectors: npt.NDArray[Any], variances: _Reals, level: float) -> Rotation:
    """Round rows with steps that leak a few percent of the water level in all.

    An error e in each entry of row k leaks ``variances[k] * e**2`` into every other
    direction, so the step goes with ``sqrt(level / (C * variances[k]))``.
    """
    num_channels = vectors.shape[1]
    fineness = variances * num_channels / max(level, 1e-300)
    levels = np.ceil(0.5 * np.log2(np.maximum(fineness, num_channels)))
    levels = np.clip(levels, 1, _MAX_LEVEL).astype(np.int32)
    codes = np.rint(vectors * np.exp2(levels)[:, None]).astype(np.int32)
    return Rotation(torch.from_numpy(codes), torch.from_numpy(levels))
