"""Unstructured pruning: single weights leave, and only the others travel.

The network stays as large as it was, so this saves bytes, not time. ::

    frame of masks, one part a tensor in the order of the names

    offset  bytes  field
    0       1      0: nothing left; 1: places of kept weights; 2: of those that left
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
from flwr_slfac.errors import DecodeError, DivergedError, SettingError
from flwr_slfac.lightweight.pruning.coordinates import Holding, require_shape
from flwr_slfac.lightweight.pruning.importance import Scope, choose
from flwr_slfac.states import State

_PART = struct.Struct("<BBII")
_ALL, _KEPT, _GONE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class ElementMasks(Holding):
    """An unstructured mask: which weights of each tensor a device keeps.

    Parameters
    ----------
    masks : Mapping of str to Tensor
        By parameter: bool of its shape, True where kept. Tensors without a mask are
        kept whole.

    Raises
    ------
    SettingError
        If a mask is not bool or keeps nothing.

    Examples
    --------
    >>> masks = ElementMasks({"w": torch.tensor([[True, False], [False, True]])})
    >>> masks.take("w", torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
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

    def take(self, name: str, full: Tensor) -> Tensor:
        """Return the kept values as a vector, in the tensor's order."""
        mask = self.masks.get(name)
        if mask is None:
            return full
        require_shape(name, full, tuple(mask.shape))
        return full[mask.to(full.device)]

    def put(self, name: str, held: Tensor, full: Tensor) -> Tensor:
        """Return a copy of a full tensor with the kept values at their places."""
        mask = self.masks.get(name)
        if mask is None:
            require_shape(name, held, tuple(full.shape))
            return held.to(full.dtype)
        require_shape(name, full, tuple(mask.shape))
        require_shape(name, held, (int(mask.sum()),))
        return full.masked_scatter(mask.to(full.device), held.to(full.dtype))

    def held(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the mask, or True everywhere."""
        mask = self.masks.get(name)
        return torch.ones(shape, dtype=torch.bool) if mask is None else mask

    def to_bytes(self) -> bytes:
        """Return the masks as bytes: bitmap or places, whichever is smaller."""
        return b"".join(_pack(self.masks[name]) for name in sorted(self.masks))

    @classmethod
    def from_bytes(
        cls, data: bytes, shapes: Mapping[str, Sequence[int]]
    ) -> "ElementMasks":
        """Undo `to_bytes`, given the shapes of the masked tensors.

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
    kind = _KEPT if 2 * num_kept <= flat.size else _GONE
    places = np.flatnonzero(flat if kind == _KEPT else ~flat)
    rice, low, unary = pack_positions(places)
    return _PART.pack(kind, rice, low.nbytes, len(unary)) + bytes(low) + unary


def _unpack(data: bytes, offset: int, num: int) -> tuple[Tensor, int]:
    if len(data) < offset + _PART.size:
        raise DecodeError("the masks end within a header")
    kind, rice, num_low, num_unary = _PART.unpack_from(data, offset)
    start = offset + _PART.size
    middle, end = start + num_low, start + num_low + num_unary
    if kind not in (_ALL, _KEPT, _GONE) or len(data) < end:
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


def choose_elements(
    state: State,
    names: Sequence[str],
    rho: float,
    scope: Scope = "layer",
    gradients: State | None = None,
) -> ElementMasks:
    """Keep the weights of the largest magnitude, or of the largest |w g|.

    Parameters
    ----------
    state : Mapping of str to Tensor
        Full state of the front.
    names : sequence of str
        Parameters to prune, for example those of :func:`prunable_shapes`.
    rho : float
        Share of weights that leave, in [0, 1); each tensor keeps at least one.
    scope : {"layer", "global"} (default: "layer")
        As for :func:`choose_channels`.
    gradients : Mapping of str to Tensor, optional
        Accumulated gradients; with them a weight's score is |w g|, else |w|.

    Raises
    ------
    SettingError
        If `rho` or `scope` is out of range, or a gradient is missing.
    DivergedError
        If a score is NaN or infinite.
    """
    scores = {}
    for name in names:
        score = state[name].detach().cpu().double()
        if gradients is not None:
            if name not in gradients:
                raise SettingError(f"no gradient of {name!r} was given")
            score = score * gradients[name].detach().cpu().double()
        if not score.isfinite().all():
            raise DivergedError(
                f"the importance of {name!r} is NaN or infinite; lower the learning "
                "rate"
            )
        scores[name] = score.abs().flatten()
    masks = choose(scores, rho, scope)
    return ElementMasks({n: masks[n].reshape(state[n].shape) for n in names})


def prunable_shapes(state: State) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a state's weights: floating, of two or more dimensions.

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


def hold_zero(
    optimizer: Optimizer, front: nn.Module, masks: ElementMasks
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
    masks : ElementMasks
        What is kept.

    Returns
    -------
    list of RemovableHandle
        ``remove()`` each before another mask is set.
    """
    own = dict(front.named_parameters())
    pairs = [(own[n], ~mask.to(own[n].device)) for n, mask in masks.masks.items()]

    @torch.no_grad()
    def clear_weights(*_: object) -> None:
        for parameter, gone in pairs:
            parameter.masked_fill_(gone, 0)

    @torch.no_grad()
    def clear_gradients(*_: object) -> None:
        for parameter, gone in pairs:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(gone, 0)

    clear_weights()
    return [
        optimizer.register_step_pre_hook(clear_gradients),
        optimizer.register_step_post_hook(clear_weights),
    ]
