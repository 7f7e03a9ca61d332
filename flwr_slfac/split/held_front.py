"""The front that a device trains: whole, with fewer channels, or with zeros in it."""

from collections.abc import Callable, Mapping
from functools import cached_property

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
    channel_groups,
    keep_pruned_zero,
    prunable_shapes,
    shrink,
)
from flwr_slfac.states import State


class HeldFront:
    """A device's front under the mask of the round.

    Parameters
    ----------
    full : nn.Module
        The whole front, where it runs.
    example : callable
        Returns one input, batch first; called when channels are first asked for.

    Attributes
    ----------
    network : nn.Module
        What runs: `full` itself unless channels are pruned.
    """

    def __init__(self, full: nn.Module, example: Callable[[], torch.Tensor]) -> None:
        self.full = full
        self.network = full
        self._example = example
        self._mask = b""
        self._kept: Mask = FullMask()

    @cached_property
    def channels(self) -> Channels:
        """The channels that can be pruned."""
        return channel_groups(self.full, self._example())

    def wear(self, mask: bytes, *, structured: bool) -> None:
        """Take a mask as it came from the server; empty for the whole front.

        Raises
        ------
        DecodeError
            If it is not a mask of this front.
        SettingError
            If the front's channels cannot be pruned.
        """
        if mask == self._mask:
            return
        self.network, self._kept = self.full, FullMask()
        if mask and structured:
            kept = ChannelMask.from_bytes(mask, self.channels)
            self.network, self._kept = shrink(self.full, kept), kept
        elif mask:
            shapes = prunable_shapes(self.full.state_dict())
            self._kept = ElementMask.from_bytes(mask, shapes)
        self._mask = mask

    def load(self, state: State, who: str) -> None:
        """Load what the server sent: the held part of its front.

        Raises
        ------
        SettingError
            If names or shapes differ.
        """
        if isinstance(self._kept, ElementMask):
            own = self.full.state_dict()
            zeros = {n: torch.zeros_like(t, device="cpu") for n, t in own.items()}
            state = self._kept.put_state(state, zeros)
        load_front(self.network, state, who)

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the held part, on the CPU, as it travels."""
        state = {
            n: t.detach().cpu().clone() for n, t in self.network.state_dict().items()
        }
        if isinstance(self._kept, ElementMask):
            state = self._kept.take_state(state)
        return state

    def hold_zero(self, optimizer: Optimizer | None) -> None:
        """Keep single pruned weights at zero while this optimizer steps."""
        if optimizer is not None and isinstance(self._kept, ElementMask):
            keep_pruned_zero(optimizer, self.network, self._kept)


def load_front(front: nn.Module, state: State, who: str) -> None:
    """Load the server's front into a device's, or say what does not fit.

    Averaged integer buffers (`num_batches_tracked`) arrive as floats: they are rounded.

    Raises
    ------
    SettingError
        If names or shapes differ.
    """
    own: Mapping[str, torch.Tensor] = front.state_dict()
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    shapes = [
        f"{n} {tuple(state[n].shape)} against {tuple(own[n].shape)} here"
        for n in own.keys() & state.keys()
        if state[n].shape != own[n].shape
    ]
    problems = [
        f"{what}: {', '.join(sorted(names)[:5])}"
        for what, names in (
            ("missing from the server's", missing),
            ("unknown here", unexpected),
            ("other shapes", shapes),
        )
        if names
    ]
    if problems:
        raise SettingError(
            f"the front of {who} is not the server's ({'; '.join(problems)}); build "
            "both with the same model and cut"
        )
    front.load_state_dict(
        {n: t if own[n].is_floating_point() else t.round() for n, t in state.items()}
    )
