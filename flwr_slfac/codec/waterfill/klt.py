r"""The channel Karhunen-Loeve basis: estimated, quantized, sent once, reused.

The Gram matrix of the channels has the basis as its eigenvectors. Only rows that carry
signal travel, each with a step as fine as its variance needs. Both sides then make the
rows orthonormal again, so coarse rows cost a little decorrelation and no error::

    x (N, C, S) -> Gram (C, C) -> eigenvectors -> round(row / 2**-level) -> wire
                                                          |
                           orthonormal rows (r, C) <- Gram-Schmidt (Cholesky)
"""

import zlib
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.waterfill.digits import LARGE, Digits, Ints
from flwr_slfac.codec.waterfill.level import TINY, Reals
from flwr_slfac.errors import DecodeError

# Our choice: beyond, the eigenvectors of (C, C) take longer than all else.
MAX_CHANNELS = 1024
# Finest rows have steps of 2**-20: float32 products are not more exact.
_MAX_LEVEL = 20
# Our choice: positions that a Gram matrix is estimated from, and at least so many for
# each channel.
_ENOUGH_POSITIONS, _ENOUGH_PER_CHANNEL = 8192, 32
_CHUNK_VALUES = 2**16
# Our choice: samples that tell which frequencies have energy.
_ENOUGH_SAMPLES = 8
# From so many positions a channel on, rows are finer. Our choice, least bytes on the
# benchmark's tensors: 12 would be due if all that leaks were lost, but most of it is
# coded in other rows.
_POSITIONS_PER_CHANNEL = 48
# Of a Gaussian in steps of its deviation.
_GAUSSIAN_BITS = 2.05
# Per position and channel, what a basis may cost to be worth a trial (our choice).
_MOST_BITS_PER_VALUE = 24.0
# Rows are orthonormal to this in float64, or were not independent.
_ORTHONORMAL_TO = 1e-6
# Share of the variance that a Gram matrix in float32 can tell from nothing.
_VISIBLE = 1e-6
# Our limit, against crafted headers: values of a channel basis for each value coded.
_MOST_SHARE, _SMALL = 4, 64
_CODES, _LEVELS = "stream.waterfill.codes", "stream.waterfill.levels"
# What comes of them: for small frames it takes as long as all else.
_ROWS = "stream.waterfill.rows"


class ListSource(Protocol):
    """What lists are read from, see `StreamReader.stream`."""

    def stream(self, num_values: int, digits: Digits) -> Ints:
        """Return the next list, or raise DecodeError."""
        ...


def is_allowed(num_rows: int, num_channels: int, num_values: int) -> bool:
    """Return whether a frame of so many values may carry a channel basis of a size."""
    return num_rows * num_channels <= _MOST_SHARE * num_values + _SMALL


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rows of a basis as integers.

    Parameters
    ----------
    codes : Tensor (r, C), int32
        Row k is ``codes[k] * 2**-levels[k]`` before it is made orthonormal.
    levels : Tensor (r,), int32
        In [0, 20], in units of a halving of the step.
    known : Tensor (r, C), optional
        The orthonormal rows, float32, if they are known already.
    """

    codes: torch.Tensor
    levels: torch.Tensor
    known: torch.Tensor | None = None

    def matrix(self, device: torch.device) -> torch.Tensor:
        """Return orthonormal rows (r, C), float32.

        Raises
        ------
        DecodeError
            If the rows are not independent.
        """
        if self.known is not None:
            return self.known.to(device)
        rows = self.codes.to(torch.float64) * torch.exp2(-self.levels.double())[:, None]
        factor, info = torch.linalg.cholesky_ex(rows @ rows.t())
        result: torch.Tensor = torch.linalg.solve_triangular(factor, rows, upper=False)
        excess = result @ result.t() - torch.eye(len(rows), dtype=torch.float64)
        if int(info) or not bool(excess.abs().max() < _ORTHONORMAL_TO):
            raise DecodeError("the rows of a channel basis are not independent")
        return result.to(device, torch.float32)

    def fingerprint(self) -> bytes:
        """Return 4 bytes that tell this basis from others."""
        codes = self.codes.numpy().astype("<i4").tobytes()
        levels = self.levels.numpy().astype("<i4").tobytes()
        return zlib.crc32(levels, zlib.crc32(codes)).to_bytes(4, "little")

    def store(self, memory: Memory) -> None:
        """Store the basis in the memory of a stream."""
        memory[_CODES], memory[_LEVELS] = self.codes, self.levels
        memory[_ROWS] = self.matrix(torch.device("cpu"))

    def lists(self) -> list[Ints]:
        """Return what travels, int64: changes of levels, then the rows of each."""
        levels = self.levels.numpy().astype(np.int64)
        codes = self.codes.numpy().astype(np.int64)
        rows = [codes[levels == level].reshape(-1) for level in np.unique(levels)]
        return [np.diff(levels, prepend=0), *rows]

    @classmethod
    def read(cls, reader: ListSource, num_rows: int, num_channels: int) -> "Rotation":
        """Read back what `lists` are, or raise DecodeError."""
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


def stored_rotation(memory: Memory) -> Rotation | None:
    """Return the basis in the memory of a stream, if there is one."""
    if _CODES not in memory:
        return None
    return Rotation(memory[_CODES], memory[_LEVELS], memory.get(_ROWS))


def gram_matrix(x: torch.Tensor, *, is_spectrum: bool = False) -> Reals:
    """Return the mean of outer products of channels (C, C) of x (N, C, S).

    Of large tensors every k-th position is taken, of all samples: a few samples may
    hold most of a gradient's energy. Of spectra as many frequencies are, those of most
    energy.
    """
    num_samples, num_channels, num_positions = x.shape
    enough = max(_ENOUGH_POSITIONS, _ENOUGH_PER_CHANNEL * num_channels)
    stride = max(1, num_samples * num_positions // enough)
    if stride > 1 and num_positions > 1:
        stride = min(stride, num_positions) | 1
        if is_spectrum:
            norms = x[:: 1 + num_samples // _ENOUGH_SAMPLES].square().sum((0, 1))
            x = x[:, :, norms.topk(-(-num_positions // stride)).indices]
        else:
            x = x[:, :, stride // 2 :: stride]
    product = x.new_zeros(num_channels, num_channels)
    # So many values at a time stay in a cache, and take little memory.
    for part in torch.split(x, max(1, _CHUNK_VALUES // (num_channels * x.shape[2]))):
        flat = part.transpose(0, 1).reshape(num_channels, -1)
        product.addmm_(flat, flat.t())
    moments: Reals = product.cpu().numpy().astype(np.float64)
    return moments / (num_samples * x.shape[2])


def principal_directions(moments: Reals) -> tuple[Reals, npt.NDArray[Any]]:
    """Return variances, descending, and their directions as rows."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(moments))
    variances = np.maximum(values.numpy()[::-1], 0.0)
    return variances, vectors.numpy()[:, ::-1].T


@dataclass(frozen=True, eq=False)
class ChannelTransform:
    """One way to decorrelate the channels, or none.

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
    num_positions : int
        Positions of all samples, which new rows serve.
    """

    matrix: torch.Tensor | None
    variances: Reals
    rotation: Rotation | None = None
    is_new: bool = False
    num_positions: int = 1

    def side_bits(self, level: float) -> float:
        """Return about how many bits the rows take."""
        if self.matrix is None or not self.is_new:
            return 0.0
        num_channels = self.matrix.shape[1]
        # An entry is about 1 / sqrt(C), as a Gaussian in steps of 2**-level.
        bits = self._levels(level) - 0.5 * np.log2(num_channels) + _GAUSSIAN_BITS
        return float(bits.sum()) * num_channels

    def quantized(self, level: float) -> "ChannelTransform":
        """Return the same with rows as the wire will have them, for a water level."""
        if self.matrix is None or not self.is_new:
            return self
        rows, levels = self.matrix.cpu().double().numpy(), self._levels(level)
        codes = np.rint(rows * np.exp2(levels)[:, None]).astype(np.int32)
        rotation = Rotation(torch.from_numpy(codes), torch.from_numpy(levels))
        matrix = rotation.matrix(self.matrix.device)
        return replace(self, matrix=matrix, rotation=rotation)

    def _levels(self, level: float) -> npt.NDArray[np.int32]:
        """Return the fineness of rows, by the variance and the positions they serve.

        Entries of row k that err by e leak ``variances[k] * e**2`` at each position and
        channel. With steps of ``sqrt(level / (C * variance))`` that is a twelfth of
        what is lost; many positions are worth finer ones.
        """
        assert self.matrix is not None
        num_channels = self.matrix.shape[1]
        worth = max(self.num_positions / _POSITIONS_PER_CHANNEL, num_channels)
        fineness = self.variances * worth / max(level, TINY)
        levels = np.ceil(0.5 * np.log2(np.maximum(fineness, num_channels)))
        return np.clip(levels, 1, _MAX_LEVEL).astype(np.int32)


def channel_transforms(
    moments: Reals,
    num_positions: int,
    level: float,
    spare: float,
    memory: Memory,
    device: torch.device,
) -> list[ChannelTransform]:
    """Return the channel transforms that are worth a trial.

    Parameters
    ----------
    moments : ndarray (C, C)
        From `gram_matrix`.
    num_positions : int
        Positions that a basis would serve.
    level : float
        The water level to expect, a variance.
    spare : float
        Variance that rows which are left out may hold.
    memory : dict
        Of the stream.
    device : torch.device
        Where the rows are wanted.
    """
    total = float(np.trace(moments))
    if spare < _VISIBLE * total:
        spare = -1.0
    diagonal = np.diag(moments)
    plain = ChannelTransform(None, diagonal)
    variances, vectors = principal_directions(moments)
    num_rows = _num_rows(variances, total, spare)
    fresh = ChannelTransform(
        torch.from_numpy(vectors[:num_rows].astype(np.float32)).to(device),
        variances[:num_rows],
        is_new=True,
        num_positions=num_positions,
    )
    # Exact zeros make untransformed channels cheaper than their variances tell.
    options = [plain]
    if fresh.side_bits(level) < _MOST_BITS_PER_VALUE * num_positions * len(diagonal):
        options.insert(0, fresh)
    old = stored_rotation(memory)
    if old is not None and old.codes.shape[1] == len(diagonal):
        rows = old.matrix(torch.device("cpu"))
        wide = rows.double().numpy()
        reached = np.einsum("kc,kc->k", wide @ moments, wide)
        if total - float(reached.sum()) <= spare or len(rows) == len(diagonal):
            num_rows = _num_rows(reached, total, spare)
            matrix = rows[:num_rows].to(device)
            options.append(ChannelTransform(matrix, reached[:num_rows], old))
    return options


def _num_rows(variances: Reals, total: float, spare: float) -> int:
    """Return how many leading rows leave at most `spare` variance out."""
    left = total - np.cumsum(variances)
    enough = np.flatnonzero(left <= spare)
    return int(enough[0]) + 1 if enough.size else len(variances)
