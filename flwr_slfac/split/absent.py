"""What does not travel at the cut: pruned channels and dropped units.

::

    device   activations --prune--> fewer channels --drop--> kept   ==up==>
    server   back <-- zeros at pruned <-- means at dropped <-- kept
    server   gradient --kept channels--> --kept units-->    ==down==> device
"""

from dataclasses import dataclass

import torch

from flwr_slfac.lightweight.centre import Centres
from flwr_slfac.lightweight.dropout import DropMask
from flwr_slfac.lightweight.pruning.channel_masks import CutChannels
from flwr_slfac.lightweight.setting import Orders
from flwr_slfac.split.noise import seed_for


def drop_mask(
    orders: Orders,
    shape: tuple[int, ...],
    seed: int,
    server_round: int,
    device: int,
    step: int,
) -> DropMask:
    """Return the dropout mask of a step, the same on both sides."""
    return DropMask(
        shape,
        orders.dropout,
        seed=seed_for(seed, server_round, device, step, "dropout"),
        unit=orders.dropout_unit,
        per=orders.dropout_per,
    )


@dataclass(frozen=True)
class Absent:
    """What one device's smashed data of one step lacks.

    Parameters
    ----------
    channels : CutChannels or None
        Channels that its front still computes.
    dropped : DropMask or None
        Units of those that travelled.
    """

    channels: CutChannels | None = None
    dropped: DropMask | None = None

    def restore(self, travelled: torch.Tensor, centres: Centres) -> torch.Tensor:
        """Return activations of full shape.

        Pruned channels are zero, dropped units the mean of their channel.

        Raises
        ------
        TrainingError
            If the shape is not that of this mask.
        """
        if self.dropped is not None:
            travelled = centres.restore(travelled, self.dropped, self.channels)
        return travelled if self.channels is None else self.channels.scatter(travelled)

    def select(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the part of a full gradient that the device can use.

        The device's own graph applies the scale of dropout, so it is not applied here.
        """
        if self.channels is not None:
            gradient = self.channels.gather(gradient)
        return gradient if self.dropped is None else self.dropped.select(gradient)
