"""What the server's ends of all devices share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flwr_slfac.codec import Codec
from flwr_slfac.errors import SettingError
from flwr_slfac.split.features import CutFeature, ServerMemory
from flwr_slfac.split.limits import CutSize


@dataclass(frozen=True)
class ServerSide:
    """What the server's ends of all devices share.

    Parameters
    ----------
    down : Codec
        Of the gradients.
    features : sequence of (CutFeature, ServerMemory)
        In the order of sending, each with what the run remembers of it.
    size : CutSize
        How large the tensors of a device may be.
    where : torch.device
        Of the back.

    Raises
    ------
    SettingError
        If `down` remembers samples.
    """

    down: Codec
    features: Sequence[tuple[CutFeature, ServerMemory]]
    size: CutSize
    where: torch.device

    def __post_init__(self) -> None:
        if self.down.needs_samples:
            raise SettingError(
                f"down={self.down.codec_id!r} remembers samples, whose gradients are "
                "others in every epoch; give it for up, and another codec for down"
            )

    def end_step(self) -> None:
        """Take note that all devices' smashed data of a step were trained on."""
        for _, memory in self.features:
            memory.end_step()

    def forget(self, device: int) -> None:
        """Forget what a device at fault sent in this step, by partition id."""
        for _, memory in self.features:
            memory.forget(device)
