"""Which coordinates of a front a device holds; states full and small.

A device that holds a part of the front trains, downloads and uploads that part only.
Coordinates are those of parameters and buffers alike.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flwr_slfac.errors import TrainingError
from flwr_slfac.states import State


class Holding(ABC):
    """What a device holds of a front, tensor by tensor."""

    @abstractmethod
    def take(self, name: str, full: Tensor) -> Tensor:
        """Return the held values of a full tensor."""

    @abstractmethod
    def put(self, name: str, held: Tensor, full: Tensor) -> Tensor:
        """Return a copy of a full tensor with held values at their places."""

    @abstractmethod
    def held(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return which coordinates are held: bool, of the full shape."""


class Everything(Holding):
    """The holding of a device whose front is not pruned.

    Examples
    --------
    >>> Everything().take("w", torch.ones(2))
    tensor([1., 1.])
    """

    def take(self, name: str, full: Tensor) -> Tensor:
        """Return the tensor itself."""
        return full

    def put(self, name: str, held: Tensor, full: Tensor) -> Tensor:
        """Return the held tensor."""
        require_shape(name, held, full.shape)
        return held.to(full.dtype)

    def held(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return True everywhere."""
        return torch.ones(shape, dtype=torch.bool)


def sub_state(state: State, kept: Holding | None) -> dict[str, Tensor]:
    """Return the part of a full state that a device holds.

    Parameters
    ----------
    state : Mapping of str to Tensor
        Full state of the front: parameters and buffers.
    kept : KeptChannels, ElementMasks or None
        What the device holds; None is everything.

    Returns
    -------
    dict of str to Tensor
        With `KeptChannels`, the state of the small network; with `ElementMasks`, masked
        tensors as vectors of their kept values. Keys and dtypes are those of `state`.

    Raises
    ------
    TrainingError
        If a tensor is not of the shape that was analysed.
    """
    holding = kept or Everything()
    return {name: holding.take(name, full) for name, full in state.items()}


def expand_state(
    sub: State, kept: Holding | None, previous: State
) -> dict[str, Tensor]:
    """Return a full state: held coordinates from `sub`, the others from `previous`.

    Parameters
    ----------
    sub : Mapping of str to Tensor
        What `sub_state` returns, possibly trained since.
    kept : KeptChannels, ElementMasks or None
        What the device holds.
    previous : Mapping of str to Tensor
        Full state; zeros for a state whose pruned weights are zero.

    Raises
    ------
    TrainingError
        If keys differ or a tensor has not the shape that `kept` says.
    """
    holding = kept or Everything()
    require_keys(sub, previous)
    return {name: holding.put(name, sub[name], full) for name, full in previous.items()}


def require_keys(given: State, full: State) -> None:
    """Raise TrainingError unless both states have the same keys."""
    if odd := sorted(given.keys() ^ full.keys()):
        raise TrainingError(
            f"a device's state differs in the keys {', '.join(map(repr, odd[:5]))}; "
            "both sides must build the same front"
        )


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise TrainingError unless a tensor has the shape that the mask says."""
    if tensor.shape != shape:
        raise TrainingError(
            f"{name!r} has shape {tuple(tensor.shape)}, the mask is for {tuple(shape)};"
            " both sides must use the mask of this round"
        )
