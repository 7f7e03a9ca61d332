"""The network that a device trains under a mask, and how its state travels."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.pruning import (
    ChannelMask,
    Channels,
    ElementMask,
    FullMask,
    Mask,
    keep_pruned_zero,
    prunable_shapes,
    shrink,
)
from flwr_slfac.states import State, in_dtypes_of, misfits

# A message names so many misfits: the first ones tell which model it is.
_MAX_NAMED = 5


class TrainedNetwork:
    """A network whose state travels as it is: whole, or of fewer channels.

    Parameters
    ----------
    module : nn.Module
        What runs.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def load(self, state: State, who: str) -> None:
        """Load the server's state, or say what does not fit.

        Averaged integer buffers (`num_batches_tracked`) may arrive as floats.

        Raises
        ------
        SettingError
            If names or shapes differ.
        """
        own: State = self.module.state_dict()
        if problems := misfits(state, own):
            raise SettingError(
                f"the front of {who} is not the server's: what the server sent has "
                f"{'; '.join(problems[:_MAX_NAMED])}; build both with the same model "
                "and cut"
            )
        self.module.load_state_dict(in_dtypes_of(state, own))

    def part(self) -> dict[str, torch.Tensor]:
        """Return a copy of the state, on the CPU, as it travels.

        Names of one tied weight share their copy, so that they are coded alike.
        """
        copies: dict[tuple[object, ...], torch.Tensor] = {}
        part = {}
        for name, tensor in self.module.state_dict().items():
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if place not in copies:
                copies[place] = tensor.detach().cpu().clone()
            part[name] = copies[place]
        return part

    def hold(self, optimizer: Optimizer | None) -> None:
        """Keep what is pruned as it is while this optimizer steps."""

    def drop_gradients(self) -> None:
        """Drop the gradients of what is pruned, before anything is made of them."""


class ZeroedNetwork(TrainedNetwork):
    """A whole network in which single weights are zero; the others travel.

    Parameters
    ----------
    module : nn.Module
        What runs.
    mask : ElementMask
        Which weights are trained.
    """

    def __init__(self, module: nn.Module, mask: ElementMask) -> None:
        super().__init__(module)
        self._mask = mask

    def load(self, state: State, who: str) -> None:
        """Load the held weights, and zeros at the others.

        Raises
        ------
        SettingError, TrainingError
            If names or shapes differ.
        """
        own = self.module.state_dict()
        zeros = {n: torch.zeros_like(t, device="cpu") for n, t in own.items()}
        super().load(self._mask.put_state(state, zeros), who)

    def part(self) -> dict[str, torch.Tensor]:
        """Return a copy of the held weights."""
        return self._mask.take_state(super().part())

    def hold(self, optimizer: Optimizer | None) -> None:
        """Keep pruned weights at zero while this optimizer steps."""
        if optimizer is not None:
            keep_pruned_zero(optimizer, self.module, self._mask)

    @torch.no_grad()
    def drop_gradients(self) -> None:
        """Set the gradients of pruned weights to zero."""
        own = dict(self.module.named_parameters())
        for name, kept in self._mask.masks.items():
            gradient = own[name].grad
            if gradient is not None:
                gradient.masked_fill_(~kept.to(gradient.device), 0)


def masked_network(full: nn.Module, mask: Mask) -> TrainedNetwork:
    """Return the network that a device trains under a mask."""
    if isinstance(mask, ChannelMask):
        return TrainedNetwork(shrink(full, mask))
    if isinstance(mask, ElementMask):
        return ZeroedNetwork(full, mask)
    return TrainedNetwork(full)


def read_mask(
    data: bytes, full: nn.Module, channels: Callable[[], Channels], *, structured: bool
) -> Mask:
    """Return the mask that a device was sent.

    Parameters
    ----------
    data : bytes
        `Mask.to_bytes`; empty for the whole front.
    full : nn.Module
        The whole front.
    channels : callable
        Returns the channels of that front.
    structured : bool
        Whether it is a mask of channels.

    Raises
    ------
    DecodeError
        If it is not a mask of this front.
    SettingError
        If the front's channels cannot be pruned.
    """
    if not data:
        return FullMask()
    if structured:
        return ChannelMask.from_bytes(data, channels())
    _require_own_weights(full)
    return ElementMask.from_bytes(data, prunable_shapes(full.state_dict()))


def _require_own_weights(full: nn.Module) -> None:
    """Refuse what an unstructured mask would take for a weight of its own."""
    own = dict(full.named_parameters())
    shared = dict(full.named_parameters(remove_duplicate=False))
    for name in prunable_shapes(full.state_dict()):
        if name in own:
            continue
        what = "a buffer (register it with persistent=False"
        if name in shared:
            first = next(n for n, p in own.items() if p is shared[name])
            what = f"tied to {first!r} (untie them"
        raise SettingError(
            f"the front's {name!r} cannot be pruned by weights: it is {what}, prune "
            "channels with structured=True, or set prune=0)"
        )
