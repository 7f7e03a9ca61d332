"""How much error a share of the mini-batch's own noise allows.

The gradient of a mini-batch is off from that of all data anyway, by the variance
between examples over their number. What a codec adds to that is in our reading

- of activations: their squared error over their variance between examples, as what all
  examples have in common tells none from another, and
- of a gradient: its squared error over its squares, both weighed by frequency (see
  `weights`), as gradients of examples have next to nothing in common.

Measured shares are 0.4 to 2 times as large (tests/bench/results/noise_budget.md).
"""

import math

import torch

from flwr_slfac.codec.base import Hints
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.waterfill.normalize import normalize
from flwr_slfac.codec.waterfill.transform import energy
from flwr_slfac.codec.waterfill.weights import Weights

# Our choice: examples that are more alike are coded as if they were not, as float32
# tells such a share of the energy no better than to some percent.
_LEAST_VARIATION = 2.0**-16
# Of an encoder: how often weights have served, and they.
_WEIGHTS = "stream.waterfill.weights"
# Our choice: from step to step spectra change little, and telling one takes a tenth of
# what coding a small frame does.
_RENEWED_EVERY = 8


def weights_of(hints: Hints, basis: str) -> Weights | None:
    """Return the weights of a gradient, None if there are none.

    In a stream those of a few steps before serve again.

    Parameters
    ----------
    hints : Hints
        Whether it is a gradient, and of what.
    basis : str
        As in `Waterfill`; with one that has no frequencies nothing is weighed.
    """
    if basis not in ("auto", "dct"):
        return None
    if hints.role != "gradient" or hints.activations is None:
        return None
    sizes = PlaneShape.of(hints.activations.shape).sizes
    kept = hints.memory.get(_WEIGHTS)
    if kept is not None:
        age, *halves = kept.tolist()
        weights = Weights.split(halves, sizes)
        if weights is not None and age < _RENEWED_EVERY:
            hints.memory[_WEIGHTS] = torch.tensor([age + 1, *halves])
            return weights
    weights = Weights.of(hints.activations)
    if weights is not None:
        halves = [n for bands in weights.bands for n in bands]
        hints.memory[_WEIGHTS] = torch.tensor([1, *halves])
    return weights


def variation(planes: torch.Tensor, total: float, hints: Hints) -> float:
    """Return the energy that a tensor's error is measured against.

    Parameters
    ----------
    planes : Tensor (N, C, S)
        Of a gradient, all its energy counts; of activations that between samples, and
        of one sample's that between positions.
    total : float
        Their energy.
    hints : Hints
        Whether it is a gradient.
    """
    # What is averaged over tells what is common.
    dim = 2 if len(planes) == 1 else 0
    num = planes.shape[dim]
    if hints.role == "gradient" or num == 1:
        return total
    between = total - num * energy(planes.mean(dim, keepdim=True))
    between *= num / (num - 1)
    return min(max(between, _LEAST_VARIATION * total), total)


def error_allowed(noise: float, tensor: torch.Tensor, hints: Hints) -> float:
    """Return the error that a share of noise allows, relative to the tensor's norm.

    Parameters
    ----------
    noise : float
        The share.
    tensor : Tensor of any shape
        Activations; 0 is returned for one without energy.
    hints : Hints
        See `variation`.
    """
    if not tensor.numel():
        return 0.0
    x, _ = normalize(PlaneShape.of(tensor.shape).to_planes(tensor.contiguous()))
    total = energy(x)
    return math.sqrt(noise * variation(x, total, hints) / total) if total else 0.0
