"""What does not travel at the cut: pruned channels and dropped units.

::

    device   activations --prune--> fewer channels --drop--> kept   ==up==>
    server   back <-- zeros at pruned <-- means at dropped <-- kept
    server   gradient --kept channels--> --kept units-->    ==down==> device
"""

from dataclasses import dataclass, field

import torch

from flwr_slfac.lightweight import DropMask, Orders, RunningMeans
from flwr_slfac.lightweight.pruning import CutMask, FullCutMask
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
    channels : CutMask
        Channels that its front still computes.
    dropped : DropMask or None
        Units of those that travelled.
    """

    channels: CutMask = field(default_factory=FullCutMask)
    dropped: DropMask | None = None

    def restore(self, travelled: torch.Tensor, means: RunningMeans) -> torch.Tensor:
        """Return activations of full shape.

        Pruned channels are zero, dropped units the mean of their channel.

        Raises
        ------
        TrainingError
            If the shape is not that of this mask.
        """
        if self.dropped is not None:
            travelled = means.restore(travelled, self.dropped, self.channels)
        return self.channels.scatter(travelled)

    def select(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the part of a full gradient that the device can use.

        The device's own graph applies the scale of dropout, so it is not applied here.
        """
        gradient = self.channels.gather(gradient)
        return gradient if self.dropped is None else self.dropped.select(gradient)
