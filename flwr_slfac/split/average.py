"""The weighted mean of model states, in the arithmetic of Flower's FedAvg."""

from collections.abc import Sequence

import torch

from flwr_slfac.split.protocol import State


def weighted_average(
    states: Sequence[State], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """Average states by weight, summing in the order given.

    Floating-point tensors keep their dtype; integer ones (`num_batches_tracked`) are
    averaged in float64 and rounded.

    Examples
    --------
    >>> import torch
    >>> weighted_average([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], [1, 3])
    {'w': tensor([0.7500, 0.7500])}
    """
    total = sum(weights)
    factors = [w / total for w in weights]
    average = {}
    for name, first in states[0].items():
        floating = first.is_floating_point()
        summed: torch.Tensor | None = None
        for state, factor in zip(states, factors, strict=True):
            value = state[name] if floating else state[name].double()
            summed = value * factor if summed is None else summed + value * factor
        if summed is not None:
            average[name] = summed if floating else summed.round().to(first.dtype)
    return average
