"""Unstructured pruning: single weights leave, and only the others travel.

The network stays as large as it was, so this saves bytes, not time. ::

    one part a masked tensor, in the order of their names, little-endian

    offset  bytes  field
    0       1      0: all are kept; 1: places of kept weights; 2: of pruned ones
    1       1      Rice parameter of the gaps between places
    2       4      bytes of the low bits of the gaps
    6       4      bytes of their unary part
    10      ...    low bits, unary part
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flwr_slfac.codec.packing import pack_positions, unpack_positions
from flwr_slfac.errors import DecodeError, SettingError
from flwr_slfac.lightweight.pruning.cut_mask import CutMask, FullCutMask
from flwr_slfac.lightweight.pruning.masks import Mask, require_shape
from flwr_slfac.states import State

# Kind and Rice parameter in a byte each; lengths in 4, since a tensor may have
# more than 2**16 weights.
_PART = struct.Struct("<BBII")
_ALL, _KEPT, _PRUNED = 0, 1, 2


@dataclass(frozen=True, eq=False)
class ElementMask(Mask):
    """An unstructured mask: which weights of each tensor a device keeps.

    Parameters
    ----------
    masks : mapping of str to Tensor
        By parameter: bool of its shape, True where kept. Tensors without a mask are
        kept whole.

    Raises
    ------
    SettingError
        If a mask is not bool or keeps nothing.

    Examples
    --------
    >>> mask = ElementMask({"w": torch.tensor([[True, False], [False, True]])})
    >>> mask.take("w", torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([1., 4.])
    """

    masks: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, mask in self.masks.items():
            if mask.dtype != torch.bool:
                raise SettingError(f"the mask of {name!r} is {mask.dtype}; give bool")
            if not mask.any():
                raise SettingError(
                    f"the mask of {name!r} keeps none of its {mask.numel()} weights, "
                    "which would empty the layer; keep at least one"
                )

    @property
    def is_full(self) -> bool:
        """False, also where every weight is kept."""
        return False

    @property
    def cut(self) -> CutMask:
        """All channels of the smashed data: the network is as large as it was."""
        return FullCutMask()

    def take(self, name: str, full: Tensor) -> Tensor:
        """Return the kept values as a vector, in the tensor's order.

        Raises
        ------
        TrainingError
            If the tensor is not of its mask's shape.
        """
        mask = self.masks.get(name)
        if mask is None:
            return full
        require_shape(name, full, tuple(mask.shape))
        return full[mask.to(full.device)]

    def put(self, name: str, part: Tensor, full: Tensor) -> Tensor:
        """Return a copy of a full tensor with the kept values at their places.

        Raises
        ------
        TrainingError
            If a tensor is not of the shape that the mask is for.
        """
        mask = self.masks.get(name)
        if mask is None:
            require_shape(name, part, tuple(full.shape))
            return part.to(full.dtype)
        require_shape(name, full, tuple(mask.shape))
        require_shape(name, part, (int(mask.sum()),))
        return full.masked_scatter(mask.to(full.device), part.to(full.dtype))

    def held(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the mask, or True everywhere."""
        mask = self.masks.get(name)
        return torch.ones(shape, dtype=torch.bool) if mask is None else mask

    def to_bytes(self) -> bytes:
        """Return the mask as bytes: places of kept or pruned weights, as are fewer."""
        return b"".join(_pack(self.masks[name]) for name in sorted(self.masks))

    @classmethod
    def from_bytes(
        cls, data: bytes, shapes: Mapping[str, Sequence[int]]
    ) -> "ElementMask":
        """Undo `to_bytes`, given the shapes of the masked tensors.

        Parameters
        ----------
        data : bytes
            What `to_bytes` returned, or anything at all.
        shapes : mapping of str to sequence of int
            By parameter, as :func:`prunable_shapes` returns them.

        Raises
        ------
        DecodeError
            If the bytes are not masks of these shapes.
        """
        masks, offset = {}, 0
        for name in sorted(shapes):
            flat, offset = _unpack(data, offset, math.prod(shapes[name]))
            masks[name] = flat.reshape(tuple(shapes[name]))
        if offset != len(data):
            raise DecodeError(f"{len(data) - offset} bytes behind the last mask")
        try:
            return cls(masks)
        except SettingError as error:
            raise DecodeError(str(error)) from error


def _pack(mask: Tensor) -> bytes:
    flat = mask.cpu().flatten().numpy()
    num_kept = int(flat.sum())
    if num_kept == flat.size:
        return _PART.pack(_ALL, 0, 0, 0)
    kind = _KEPT if 2 * num_kept <= flat.size else _PRUNED
    places = np.flatnonzero(flat if kind == _KEPT else ~flat)
    rice, low, unary = pack_positions(places)
    return _PART.pack(kind, rice, low.nbytes, len(unary)) + bytes(low) + unary


def _unpack(data: bytes, offset: int, num: int) -> tuple[Tensor, int]:
    if len(data) < offset + _PART.size:
        raise DecodeError("the masks end within a header")
    kind, rice, num_low, num_unary = _PART.unpack_from(data, offset)
    start = offset + _PART.size
    middle, end = start + num_low, start + num_low + num_unary
    if kind not in (_ALL, _KEPT, _PRUNED) or len(data) < end:
        raise DecodeError("the masks are cut short or of an unknown kind")
    flat = np.full(num, kind != _KEPT)
    if kind == _ALL:
        if num_low or num_unary or rice:
            raise DecodeError("a mask that keeps everything has places")
    else:
        view = memoryview(data)
        flat[unpack_positions(rice, view[start:middle], view[middle:end], num)] = (
            kind == _KEPT
        )
    return torch.from_numpy(flat), end


def prunable_shapes(state: State) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a state's weights: floating, of two or more dimensions.

    Biases and norms, of one dimension, stay: they are few, and without them a layer
    loses more than a weight.

    Parameters
    ----------
    state : mapping of str to Tensor
        Full state of a front.

    Returns
    -------
    dict of str to tuple of int
        By parameter, empty ones left out.

    Examples
    --------
    >>> prunable_shapes(nn.Linear(2, 3).state_dict())
    {'weight': (3, 2)}
    """
    return {
        n: tuple(t.shape)
        for n, t in state.items()
        if t.ndim > 1 and t.is_floating_point() and t.numel()
    }


def keep_pruned_zero(
    optimizer: Optimizer, front: nn.Module, mask: ElementMask
) -> list[RemovableHandle]:
    """Set pruned weights to zero, and keep them so through every optimizer step.

    Gradients at pruned weights are zeroed before the step, so that neither momentum nor
    a later clipping sees them, and the weights after it, so that momentum of an earlier
    mask does not move them.

    Parameters
    ----------
    optimizer : Optimizer
        That trains the front.
    front : nn.Module
        The full front; changed.
    mask : ElementMask
        What is kept.

    Returns
    -------
    list of RemovableHandle
        ``remove()`` each before another mask is set.
    """
    own = dict(front.named_parameters())
    pairs = [(own[n], ~kept.to(own[n].device)) for n, kept in mask.masks.items()]

    @torch.no_grad()
    def clear_weights(*_: object) -> None:
        for parameter, pruned in pairs:
            parameter.masked_fill_(pruned, 0)

    @torch.no_grad()
    def clear_gradients(*_: object) -> None:
        for parameter, pruned in pairs:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0)

    clear_weights()
    return [
        optimizer.register_step_pre_hook(clear_gradients),
        optimizer.register_step_post_hook(clear_weights),
    ]
