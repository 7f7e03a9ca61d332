"""Which channel transform and which spatial basis, by trials on a few samples.

Candidates are compared at the same distortion, by the entropy of what a sample of them
is quantized to; see `trial`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.transforms import SPECTRUM, Basis, parse_basis
from flwr_slfac.codec.waterfill import klt
from flwr_slfac.codec.waterfill.target import Target
from flwr_slfac.codec.waterfill.trial import RotatedSample, Sample, Trial

# What the benchmark's tensors suit: values without neighbourhood, smooth maps, edges.
_AUTO = ("identity", "dct", "haar", "sym4")
# Wavelets are tried where the identity takes more than so many times the bits of the
# DCT, and sym4 where it takes less than so many (on the benchmark's tensors, none is
# the best elsewhere).
_ODDS = (0.7, 1.6)
# Our choice: about so many values, and at least so many samples, to rank candidates by.
_TRIAL_SIZE = 2**13
_TRIAL_SAMPLES = 4
# Of planes that are larger, a window of so many positions each way is tried.
_WINDOW = 16
# Our choice: the mean of fewer samples holds as much noise as it saves.
_FEWEST_FOR_MEAN = 8
# What a basis has to save to be taken, and twice that the mean: where nothing is to be
# saved, its errors are only harder to foretell.
_WORTH_IT = 1.005

# Bits, and what takes them.
_Found = tuple[float, Trial]


@lru_cache(maxsize=64)
def bases_for(setting: str, sizes: tuple[int, ...]) -> tuple[Basis, ...]:
    """Return the bases to try: those of the setting that can do the sizes of planes."""
    if math.prod(sizes) == 1:
        # All are the identity there, and this one has the shortest name.
        return (parse_basis("dct"),)
    if setting != "auto":
        basis = parse_basis(setting)
        basis.num_levels(*sizes)
        return (basis,)
    bases = [parse_basis(name) for name in _AUTO]
    is_odd = any(n % 2 for n in sizes)
    return tuple(b for b in bases if not (b.is_wavelet and is_odd))


def best_trial(
    x: torch.Tensor,
    shape: PlaneShape,
    target: Target,
    options: list[klt.ChannelTransform],
    bases: Sequence[Basis],
    level: float,
) -> tuple[float, Trial]:
    """Return the least bits that a candidate takes, and it, at about its step.

    Parameters
    ----------
    x : Tensor (N, C, S)
        All planes.
    shape : PlaneShape
        Of the planes.
    target : Target
        What the step will have to meet.
    options, bases : sequence
        What to try.
    level : float
        The water level to expect.
    """
    sample = _sample_of(x, shape, bases)
    step = math.sqrt(12 * level)
    # Where no distortion is due, candidates are compared at that of the first one.
    if target.distortion is None:
        rotated = RotatedSample(sample, options[0], False, level)
        share = Trial(rotated, bases[0], step).share_lost()
    else:
        share = target.distortion / target.energy
    clamps = bool(sample.planes.min() >= 0)
    best: _Found | None = None
    for channels in options:
        found = _tried(
            RotatedSample(sample, channels, False, level), bases, share, step
        )
        nearest = min(found, key=_bits)[1]
        step = nearest.step
        if len(x) >= _FEWEST_FOR_MEAN:
            rotated = RotatedSample(sample, channels, True, level)
            trial = Trial(rotated, nearest.basis, step)
            found.append((trial.meet(share) * _WORTH_IT**2, trial))
            _forget_others(found)
        if clamps:
            found = _clamped(found)
        for _, trial in found:
            trial.forget()
        # Which basis suits depends little on the channels, but for exact zeros.
        bases = tuple(b for b in bases if b in (nearest.basis, bases[0]))
        best = min([*found, *([best] if best else [])], key=_bits)
    assert best is not None
    return best


def _bits(found: _Found) -> float:
    return found[0]


def _tried(
    rotated: RotatedSample, bases: Sequence[Basis], share: float, step: float
) -> list[_Found]:
    """Try bases; wavelets where neighbours are neither strangers nor much alike."""
    found: list[_Found] = []
    for basis in bases:
        if basis.is_wavelet and len(found) > 1:
            odds = found[0][0] / max(found[1][0], 1.0)
            # Edges take haar though they are smooth elsewhere.
            if odds < _ODDS[0] or (odds > _ODDS[1] and len(found) > 2):
                break
        trial = Trial(rotated, basis, step)
        worth = 1.0 if basis.name == "identity" else _WORTH_IT
        worth *= 1.0 if rotated.channels.matrix is None else _WORTH_IT
        found.append((trial.meet(share) * worth, trial))
        _forget_others(found)
        step = trial.step
    return found


def _forget_others(found: list[_Found]) -> None:
    """Keep the tensors of the one candidate that `_clamped` asks for more."""
    kept = min(_blurred(found), key=_bits, default=None)
    for one in found:
        if one is not kept:
            one[1].forget()


def _blurred(found: list[_Found]) -> list[_Found]:
    return [one for one in found if not one[1].keeps_zeros]


def _clamped(found: list[_Found]) -> list[_Found]:
    """Return candidates with what clamping at zero saves those that blur zeros."""
    blurred = _blurred(found)
    if not blurred:
        return found
    gain = min(blurred, key=_bits)[1].clamping_gain()
    return [
        (bits if trial.keeps_zeros else bits + trial.bits_for(gain), trial)
        for bits, trial in found
    ]


def _sample_of(x: torch.Tensor, shape: PlaneShape, bases: Sequence[Basis]) -> Sample:
    """Return samples over the range of energies, of large planes a window.

    Of large spectra it is a grid of frequencies.
    """
    mean, sizes = x.mean(0), shape.sizes
    sides = [min(n, _WINDOW if len(sizes) == 2 else _WINDOW**2) for n in sizes]
    first = x[0] - mean
    parts = [x, torch.stack([mean, first])]
    if math.prod(sides) < shape.num_positions:
        both = list(zip(sizes, sides, strict=True))
        # Off the middle, where most images hold more than elsewhere.
        window = [slice((n - m) // 4, (n - m) // 4 + m) for n, m in both]
        if bases == (SPECTRUM,):
            window = [slice(0, n // m * m, n // m) for n, m in both]
        parts = [
            part.reshape(*part.shape[:2], *sizes)[(slice(None), slice(None), *window)]
            for part in parts
        ]
    num = max(_TRIAL_SAMPLES, _TRIAL_SIZE // (x.shape[1] * math.prod(sides)))
    weight = 1.0
    if num < len(x):
        norms = torch.linalg.vector_norm(x.flatten(1), dim=1)
        order = norms.cpu().argsort(stable=True)
        at = ((np.arange(num) + 0.5) * len(x) / num).astype(np.int64)
        parts[0] = parts[0].index_select(0, order[at].to(x.device))
        weight = len(x) / num
    planes, means = (part.flatten(2) for part in parts)
    share = math.prod(sides) / shape.num_positions
    shape = replace(shape, sizes=tuple(sides))
    return Sample(shape, planes, means, weight, 1 / share)
