"""Which channels of the smashed data a pruned front still computes.

::

    device   front ──────────► kept channels  ══up══►
    server   back ◄──scatter── kept channels          zeros at the pruned ones
    server   gradient ──gather──► of kept channels    ══down══► device
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flwr_slfac.errors import TrainingError


class CutMask(ABC):
    """Which channels of the smashed data a device computes."""

    @abstractmethod
    def gather(self, full: Tensor) -> Tensor:
        """Return the computed channels of full smashed data or its gradient.

        Differentiable; `scatter` is its adjoint.

        Parameters
        ----------
        full : Tensor
            Of all channels, batch first.

        Raises
        ------
        TrainingError
            If it is not of the full number of channels.
        """

    @abstractmethod
    def scatter(self, part: Tensor) -> Tensor:
        """Return computed channels at their places among channels of zeros.

        The server applies it before its half, under autograd: the gradient that comes
        back is then that of the computed channels alone.

        Parameters
        ----------
        part : Tensor
            Of the computed channels, batch first.

        Raises
        ------
        TrainingError
            If it is not of the number of computed channels.
        """

    @abstractmethod
    def places(self, shape: Sequence[int], dim: int) -> tuple[int, int, slice | Tensor]:
        """Return where the channels of a tensor of computed channels lie among all.

        Parameters
        ----------
        shape : sequence of int
            Of the tensor, batch first.
        dim : int
            Dimension of channels where the mask does not know it.

        Returns
        -------
        dim : int
            Dimension along which channels lie.
        size : int
            Number of channels without pruning.
        index : slice or Tensor
            Selects the computed ones of `size` values.

        Raises
        ------
        TrainingError
            If this is not a shape of the computed channels.
        """


class FullCutMask(CutMask):
    """The null form: all channels of the smashed data are computed.

    Examples
    --------
    >>> FullCutMask().places((8, 4, 2, 2), dim=1)
    (1, 4, slice(None, None, None))
    """

    def gather(self, full: Tensor) -> Tensor:
        """Return the tensor itself."""
        return full

    def scatter(self, part: Tensor) -> Tensor:
        """Return the tensor itself."""
        return part

    def places(self, shape: Sequence[int], dim: int) -> tuple[int, int, slice | Tensor]:
        """Return the dimension that was given, its size, and all of it."""
        return dim, shape[dim], slice(None)


@dataclass(frozen=True, eq=False)
class PartialCutMask(CutMask):
    """Some channels of the smashed data are computed, as a `ChannelMask` says.

    Parameters
    ----------
    dim : int
        Dimension along which channels lie.
    size : int
        Number of channels without pruning.
    index : Tensor
        int64 ``(K,)``: the computed ones, ascending, in ``[0, size)``.

    Examples
    --------
    >>> import torch
    >>> mask = PartialCutMask(1, 3, torch.tensor([0, 2]))
    >>> mask.scatter(torch.tensor([[5.0, 6.0]]))
    tensor([[5., 0., 6.]])
    """

    dim: int
    size: int
    index: Tensor

    def gather(self, full: Tensor) -> Tensor:
        """Return the computed channels.

        Raises
        ------
        TrainingError
            If it is not of the full number of channels.
        """
        self._require(full.shape, self.size)
        if self.index.numel() == self.size:
            return full
        return full.index_select(self.dim, self.index.to(full.device))

    def scatter(self, part: Tensor) -> Tensor:
        """Return the computed channels among channels of zeros.

        Raises
        ------
        TrainingError
            If it is not of the number of computed channels.
        """
        self._require(part.shape, self.index.numel())
        if self.index.numel() == self.size:
            return part
        shape = list(part.shape)
        shape[self.dim] = self.size
        full = part.new_zeros(shape)
        return full.index_copy(self.dim, self.index.to(part.device), part)

    def places(self, shape: Sequence[int], dim: int) -> tuple[int, int, slice | Tensor]:
        """Return the mask's own dimension, size and index.

        Raises
        ------
        TrainingError
            If this is not a shape of the computed channels.
        """
        self._require(shape, self.index.numel())
        return self.dim, self.size, self.index

    def _require(self, shape: Sequence[int], size: int) -> None:
        if len(shape) > self.dim and shape[self.dim] == size:
            return
        raise TrainingError(
            f"smashed data of shape {tuple(shape)}, but the mask wants {size} "
            f"channels in dimension {self.dim}; both sides must use the mask of this "
            "round"
        )
