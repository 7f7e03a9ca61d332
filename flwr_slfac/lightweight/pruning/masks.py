"""Which coordinates of a front a device holds; states full and in part.

A device that holds a part of the front trains, downloads and uploads that part only.
Coordinates are those of parameters and buffers alike. ::

    full state ──take_state──► part: what a device is sent, trains and sends back
    full state ◄──put_state─── part, with another full state where it holds nothing
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flwr_slfac.errors import TrainingError
from flwr_slfac.lightweight.pruning.cut_mask import CutMask, FullCutMask
from flwr_slfac.states import State, unshared_names

# A message names so many keys: enough to recognize a layer, and it stays one line.
_MAX_NAMED = 5


class Mask(ABC):
    """Which coordinates of a front a device holds, tensor by tensor.

    `ChannelMask` holds whole channels (structured), `ElementMask` single weights
    (unstructured), and `FullMask`, the null form, everything.
    """

    @property
    @abstractmethod
    def is_full(self) -> bool:
        """Whether this is the null form, under which nothing is ever pruned."""

    @property
    @abstractmethod
    def cut(self) -> CutMask:
        """Which channels of the smashed data the device computes."""

    @abstractmethod
    def take(self, name: str, full: Tensor) -> Tensor:
        """Return the held values of a full tensor.

        Parameters
        ----------
        name : str
            Key of the front's state.
        full : Tensor
            Of the shape that the front has without pruning, any dtype and device.

        Returns
        -------
        Tensor
            Of the same dtype and device; its shape is that of what travels.

        Raises
        ------
        TrainingError
            If the tensor is not of the shape that the mask is for.
        """

    @abstractmethod
    def put(self, name: str, part: Tensor, full: Tensor) -> Tensor:
        """Return a copy of a full tensor with held values at their places.

        Parameters
        ----------
        name : str
            Key of the front's state.
        part : Tensor
            Of the shape that `take` returns.
        full : Tensor
            Values of the coordinates that are not held; not changed.

        Returns
        -------
        Tensor
            Of the shape and dtype of `full`.

        Raises
        ------
        TrainingError
            If a tensor is not of the shape that the mask is for.
        """

    @abstractmethod
    def held(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return which coordinates of a tensor are held: bool, of the full shape."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """Return the mask as it travels; empty where everything is held."""

    def take_state(self, state: State) -> dict[str, Tensor]:
        """Return the part of a full state that a device holds.

        Parameters
        ----------
        state : mapping of str to Tensor
            Full state of the front: parameters and buffers.

        Returns
        -------
        dict of str to Tensor
            With `ChannelMask`, the state of the small network; with `ElementMask`,
            masked tensors as vectors of their kept values. Keys and dtypes are those of
            `state`.

        Raises
        ------
        TrainingError
            If a tensor is not of the shape that the mask is for.
        """
        return {name: self.take(name, full) for name, full in state.items()}

    def put_state(self, part: State, previous: State) -> dict[str, Tensor]:
        """Return a full state: held coordinates from `part`, others from `previous`.

        Parameters
        ----------
        part : mapping of str to Tensor
            What `take_state` returns, possibly trained since.
        previous : mapping of str to Tensor
            Full state; zeros for a state whose pruned weights are zero.

        Returns
        -------
        dict of str to Tensor
            Of the keys, shapes and dtypes of `previous`.

        Raises
        ------
        TrainingError
            If keys differ or a tensor is not of the shape that the mask is for.
        """
        require_keys(part, previous)
        return {name: self.put(name, part[name], t) for name, t in previous.items()}


class FullMask(Mask):
    """The null form: the mask of a device whose front is not pruned.

    Examples
    --------
    >>> FullMask().take("w", torch.ones(2))
    tensor([1., 1.])
    >>> FullMask().to_bytes()
    b''
    """

    @property
    def is_full(self) -> bool:
        """True."""
        return True

    @property
    def cut(self) -> CutMask:
        """All channels of the smashed data."""
        return FullCutMask()

    def take(self, name: str, full: Tensor) -> Tensor:
        """Return the tensor itself."""
        return full

    def put(self, name: str, part: Tensor, full: Tensor) -> Tensor:
        """Return the part, which is all, in the dtype of `full`.

        Raises
        ------
        TrainingError
            If the shapes differ.
        """
        require_shape(name, part, full.shape)
        return part.to(full.dtype)

    def held(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return True everywhere."""
        return torch.ones(shape, dtype=torch.bool)

    def to_bytes(self) -> bytes:
        """Return no bytes."""
        return b""


def require_keys(part: State, full: State) -> None:
    """Raise TrainingError unless both states have the same keys."""
    if odd := unshared_names(part, full):
        raise TrainingError(
            f"a device's state differs in the keys "
            f"{', '.join(map(repr, odd[:_MAX_NAMED]))}; both sides must build the same "
            "front"
        )


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise TrainingError unless a tensor has the shape that the mask says."""
    if tensor.shape != shape:
        raise TrainingError(
            f"{name!r} has shape {tuple(tensor.shape)}, the mask is for {tuple(shape)};"
            " both sides must use the mask of this round"
        )
