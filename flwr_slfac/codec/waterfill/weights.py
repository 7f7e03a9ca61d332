r"""Weights by frequency: where an error of a gradient matters, and where it does not.

The device multiplies a cut-layer gradient with activations to get its weights'
gradients, position by position. By Parseval's theorem the error in these is, frequency
by frequency, that of the gradient times what activations have there: of smooth maps
nothing at high frequencies, where a strided convolution leaves most of the gradient's
energy. So what is coded of maps is their weighted spectrum::

    planes -> DCT -> times 2**(-k / 2), k = 0 ... 15 by band -> code

and the decoder divides by the weights before it inverts the DCT. The least mean-square
error of what is coded is then the least weighted error of the gradient. Weights go with
the fourth root of the activations' power, not with the square root that the theorem
gives, because ReLUs in between mix frequencies (our choice, by
tests/bench/results/noise_budget.md). What is constant in a channel, as behind a
sigmoid, tells nothing of what the layers before have had; so it is left out, and the
lowest frequency, all that biases see, weighs in full.

Each frequency bears its own error, so the error stays below the gradient's energy; in
another basis, dividing would amplify what errors spread to other frequencies. Sequences
are not weighed: what a class token alone has of a gradient is cheap where it is, and
takes several times the bytes as a spectrum.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.kernels import kernels, scratch
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import parse_basis, plane_transform
from flwr_slfac.codec.waterfill.transform import forward_planes
from flwr_slfac.errors import DecodeError

# Half octaves of attenuation, a nibble each.
_MOST = 15
_POWER = 0.25
# Our choice: more planes tell a spectrum no better, if each channel has its share.
_ENOUGH_VALUES = 2**16
# Our choice: of more, a channel's mean is next to the same.
_ENOUGH_SAMPLES = 16
# A constant is left out up to float32's rounding, which leaves this share of energy.
_ROUNDING = 2.0**-40
# Our limit, against crafted headers: positions of a plane whose weights are kept, a few
# MiB of 64 frames.
_MOST_KEPT = 2**14
_DCT = parse_basis("dct")


@dataclass(frozen=True)
class Weights:
    """Attenuation of the bands of each axis of a plane, in half octaves.

    Parameters
    ----------
    bands : tuple of tuple of int
        For each size of the plane, those of its bands, 0 to 15.
    """

    bands: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, activations: torch.Tensor) -> "Weights | None":
        """Return the weights that activations give; None if they have no frequencies.

        Parameters
        ----------
        activations : Tensor of any shape
            Of the shape of the gradient, in floating point; maps, or None is returned.
        """
        shape = PlaneShape.of(activations.shape)
        if len(shape.sizes) < 2 or shape.num_positions == 1 or not activations.numel():
            return None
        some, total = _some_planes(shape.to_planes(activations.contiguous()))
        powers = forward_planes(some, _DCT, shape).double().square().sum(1)
        if not _ROUNDING * total < float(powers.sum()) < math.inf:
            return None
        axes = powers.numpy().reshape(shape.sizes)
        return cls(
            tuple(
                _attenuation(axes.sum(tuple(d for d in range(axes.ndim) if d != axis)))
                for axis in range(axes.ndim)
            )
        )

    @classmethod
    def unpack(cls, data: bytes, sizes: tuple[int, ...]) -> "Weights":
        """Read what `pack` wrote for planes of such sizes, or raise DecodeError."""
        nibbles = [n for byte in data for n in (byte >> 4, byte & _MOST)]
        if sum(map(_num_bands, sizes)) % 2 and nibbles and nibbles.pop():
            nibbles = []
        found = cls.split(nibbles, sizes)
        if found is None:
            raise DecodeError("weights of codec 'waterfill' do not fit the planes")
        return found

    @classmethod
    def split(cls, halves: Sequence[int], sizes: tuple[int, ...]) -> "Weights | None":
        """Return the weights of all axes one after the other, None if too few or many.

        Parameters
        ----------
        halves : sequence of int
            All bands.
        sizes : tuple of int
            Of the planes.
        """
        ends = [0, *itertools.accumulate(map(_num_bands, sizes))]
        if len(halves) != ends[-1]:
            return None
        return cls(tuple(tuple(halves[i:j]) for i, j in itertools.pairwise(ends)))

    def pack(self) -> bytes:
        """Return the bands as nibbles."""
        nibbles = [n for bands in self.bands for n in bands]
        nibbles += [0] * (len(nibbles) % 2)
        return bytes(
            high << 4 | low
            for high, low in zip(nibbles[::2], nibbles[1::2], strict=True)
        )

    def scales(self, shape: PlaneShape, *, undo: bool = False) -> torch.Tensor:
        """Return what coefficients (S, ...) are multiplied by, or divided."""
        find = _scales if shape.num_positions <= _MOST_KEPT else _scales.__wrapped__
        return find(self.bands, shape.sizes, 0.5 if undo else -0.5)

    def spectra(self, planes: torch.Tensor, shape: PlaneShape) -> torch.Tensor:
        """Return the weighted spectra (N, C, S) of planes (N, C, S), float32.

        They may lie in a buffer of this thread, until its next call.
        """
        flat, scales = planes.view(-1, shape.num_positions), self.scales(shape)
        stages = plane_transform(_DCT, shape.sizes)
        if stages is None or planes.device.type != "cpu":
            coefficients = forward_planes(flat, _DCT, shape)
            result = (coefficients * scales[:, None].to(planes.device)).t()
            return result.contiguous().view(planes.shape)
        result = scratch("waterfill spectra", tuple(flat.shape), flat.dtype)
        kernels().plane_spectra(flat.numpy(), stages, scales.numpy(), result.numpy())
        return result.view(planes.shape)


# A stream's frames have the same weights several times.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _scales(
    bands: tuple[tuple[int, ...], ...], sizes: tuple[int, ...], octaves: float
) -> torch.Tensor:
    """Return two to half octaves of all axes; do not write to it."""
    halves = np.zeros(1)
    for half, size in zip(bands, sizes, strict=True):
        halves = np.add.outer(halves, np.array(half)[_bands(size)]).reshape(-1)
    return torch.from_numpy((2.0 ** (octaves * halves)).astype(np.float32))


def _some_planes(planes: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return some planes (n, S) less their channels' means, and their energy before."""
    num_samples, num_channels, num_positions = planes.shape
    step = max(1, min(planes.numel() // _ENOUGH_VALUES, num_samples))
    # Else each sample would give the same few channels.
    while math.gcd(step, num_channels) > 1:
        step += 1
    fewer = max(1, num_samples // _ENOUGH_SAMPLES)
    means = planes[::fewer].mean((0, 2), dtype=torch.float32)
    means = means.repeat(num_samples)[::step]
    some = planes.reshape(-1, num_positions)[::step].to(torch.float32)
    total = float(some.double().square().sum())
    return (some - means[:, None]).to("cpu").contiguous(), total


def _attenuation(powers: npt.NDArray[np.float64]) -> tuple[int, ...]:
    """Return half octaves by band: the fourth root of its mean power."""
    bands = _bands(len(powers))
    means = np.bincount(bands, powers) / np.bincount(bands)
    means[0] = means.max()
    floor = means.max() * 2.0 ** (-_MOST / 2 / _POWER)
    octaves = _POWER * np.log2(means.max() / np.maximum(means, floor))
    return tuple(int(n) for n in np.rint(2 * octaves).clip(0, _MOST))


@lru_cache(maxsize=64)
def _bands(size: int) -> npt.NDArray[np.int64]:
    """Return the band of each frequency of an axis: two to an octave, none empty."""
    wanted = np.floor(2 * np.log2(1 + np.arange(size))).astype(np.int64)
    return np.unique(wanted, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _num_bands(size: int) -> int:
    return int(_bands(size)[-1]) + 1 if size else 0
