"""The part of a front that a device holds, under the mask of a round."""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import nn

from flwr_slfac.lightweight import DeviceConfig
from flwr_slfac.lightweight.pruning import (
    Channels,
    CutMask,
    FullCutMask,
    FullMask,
    channel_groups,
)
from flwr_slfac.split.buffers import changed_buffers, put_buffers, unsent_buffers
from flwr_slfac.split.device import TrainedFront
from flwr_slfac.split.masked_network import masked_network, read_mask
from flwr_slfac.split.tuning import Tuning, tuning_of


class HeldPart:
    """The part of a front that a device holds; all of it until a mask is put on.

    Parameters
    ----------
    full : nn.Module
        The whole front.
    example : callable
        Returns one input, batch first; called when channels are first asked for.

    Attributes
    ----------
    full : nn.Module
        As given.
    trained : TrainedNetwork
        What runs, and how its state travels.
    mask : bytes
        The mask that is on; empty for none.
    channels_sent : CutMask
        Which channels of the smashed data the network computes.
    """

    def __init__(self, full: nn.Module, example: Callable[[], torch.Tensor]) -> None:
        self.full, self._example = full, example
        self.mask, self._config = b"", DeviceConfig()
        self.channels_sent: CutMask = FullCutMask()
        self.trained = masked_network(full, FullMask())
        # Of buffers that no state dict names, those that the front came with.
        self._unsent_full = self._unsent = unsent_buffers(full)

    @property
    def network(self) -> nn.Module:
        """What runs."""
        return self.trained.module

    @cached_property
    def channels(self) -> Channels:
        """The channels that can be pruned.

        Raises
        ------
        SettingError
            If the front's channels cannot be pruned.
        """
        return channel_groups(self.full, self._example())

    def put_on(self, data: bytes, config: DeviceConfig) -> None:
        """Take over a mask, as bytes, and how the part is to be trained.

        Raises
        ------
        DecodeError
            If it is not a mask of this front; all of it is held then.
        SettingError
            If the front's channels cannot be pruned.
        """
        self._config = config
        if data == self.mask:
            return
        # The whole front, should the mask be refused.
        self.trained, self.mask = masked_network(self.full, FullMask()), b""
        self._unsent, self.channels_sent = self._unsent_full, FullCutMask()
        structured = config.structured
        mask = read_mask(data, self.full, lambda: self.channels, structured=structured)
        put_buffers(self.full, self._unsent_full)
        self.trained, self.mask = masked_network(self.full, mask), data
        self.channels_sent = mask.cut
        self._unsent = unsent_buffers(self.network)

    def renew(self, data: bytes) -> None:
        """Put on another mask of the same kind; raises as `put_on`."""
        self.put_on(data, self._config)

    def tuning(self, device: TrainedFront) -> Tuning:
        """Return what trains the part, new; pruned weights stay zero under it.

        Raises
        ------
        SettingError
            If there are no control variates for what the device trains with.
        """
        control = self._config.control_variates
        tuning = tuning_of(device, self.network.parameters(), control=control)
        self.trained.hold(tuning.optimizer)
        return tuning

    def buffers(self) -> dict[str, torch.Tensor]:
        """Return a copy of the buffers that a forward may change, or has changed."""
        return changed_buffers(self.network, self._unsent)

    def load_buffers(self, buffers: Mapping[str, torch.Tensor]) -> None:
        """Bring back what `buffers` returned."""
        put_buffers(self.network, {**self._unsent, **buffers})
