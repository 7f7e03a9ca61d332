"""State dicts: whether two fit, integers that were averaged, the weighted mean."""

from collections.abc import Mapping, Sequence

import torch

State = Mapping[str, torch.Tensor]


def misfits(state: State, like: State) -> list[str]:
    """Return what keeps a state from being loaded where another came from.

    Parameters
    ----------
    state, like : mapping of str to Tensor
        The state in question, and one of the right keys and shapes.

    Returns
    -------
    list of str
        One text a key, missing ones first; empty if the state fits. Dtypes may differ.

    Examples
    --------
    >>> misfits({"w": torch.zeros(2)}, {"w": torch.zeros(3), "b": torch.zeros(1)})
    ["'b' is missing", "'w' has shape (2,) instead of (3,)"]
    """
    missing = [f"{name!r} is missing" for name in like if name not in state]
    extra = [f"{name!r} is unexpected" for name in state if name not in like]
    shapes = [
        f"{name!r} has shape {tuple(state[name].shape)} instead of "
        f"{tuple(tensor.shape)}"
        for name, tensor in like.items()
        if name in state and state[name].shape != tensor.shape
    ]
    return missing + extra + shapes


def unshared_names(state: State, other: State) -> list[str]:
    """Return the names that only one of two states has, sorted.

    Unlike `misfits` it does not ask for shapes, which differ where one of the states is
    a part of the other.

    Examples
    --------
    >>> w, b = torch.zeros(2), torch.zeros(3)
    >>> unshared_names({"w": w}, {"w": w[:1], "b": b})
    ['b']
    """
    return sorted(state.keys() ^ other.keys())


def as_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor in a dtype; what becomes an integer is rounded to the nearest.

    Averaging turns integer buffers (`num_batches_tracked`) into floats: this turns them
    back.

    Examples
    --------
    >>> as_dtype(torch.tensor([1.5, 2.4]), torch.int64)
    tensor([2, 2])
    """
    to_integer = not (dtype.is_floating_point or dtype.is_complex)
    rounds = to_integer and tensor.is_floating_point()
    return (tensor.round() if rounds else tensor).to(dtype)


def in_dtypes_of(state: State, like: State) -> dict[str, torch.Tensor]:
    """Return the tensors of `state` that `like` names, each in its dtype there."""
    return {name: as_dtype(state[name], old.dtype) for name, old in like.items()}


def weighted_average(
    states: Sequence[State], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """Average states by weight, summing in the order given, as Flower's FedAvg does.

    Floating-point and complex tensors keep their dtype; integer ones are averaged in
    float64 and rounded. A bool is what most of the weight says, False if it is even.

    Examples
    --------
    >>> weighted_average([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], [1, 3])
    {'w': tensor([0.7500, 0.7500])}
    >>> on, off = torch.tensor(True), torch.tensor(False)
    >>> weighted_average([{"on": on}, {"on": off}], [3, 1])
    {'on': tensor(True)}
    """
    total = sum(weights)
    factors = [w / total for w in weights]
    average = {}
    for name, first in states[0].items():
        floating = first.is_floating_point() or first.is_complex()
        summed: torch.Tensor | None = None
        for state, factor in zip(states, factors, strict=True):
            value = state[name] if floating else state[name].double()
            summed = value * factor if summed is None else summed + value * factor
        if summed is not None:
            average[name] = as_dtype(summed, first.dtype)
    return average


def same_state(one: State, other: State) -> bool:
    """Say whether two states have the same keys, shapes and values.

    Examples
    --------
    >>> same_state({"w": torch.ones(2)}, {"w": torch.ones(2)})
    True
    """
    return one.keys() == other.keys() and all(
        torch.equal(one[name], tensor) for name, tensor in other.items()
    )
