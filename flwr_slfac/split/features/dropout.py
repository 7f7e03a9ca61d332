"""Dropout at the cut as a feature of what crosses: dropped units do not travel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from flwr_slfac.lightweight import (
    DropMask,
    Per,
    RunningMeans,
    Unit,
    require_dropout,
)
from flwr_slfac.lightweight.pruning import CutMask
from flwr_slfac.split.features.base import (
    CutFeature,
    Passage,
    ServerMemory,
    Shape,
    register_feature,
)
from flwr_slfac.split.place import Moment


@register_feature
@dataclass(frozen=True)
class Dropout(CutFeature):
    """Random dropout of units of the smashed data, in training.

    Kept values are scaled, so that their mean is that of all; the server restores
    dropped units to the running mean of their channel.

    Parameters
    ----------
    p : float
        Share that is dropped, in [0, 1).
    unit, per
        As in `flwr_slfac.lightweight.DropMask`.

    Raises
    ------
    SettingError
        If a setting is out of range.
    """

    feature_id: ClassVar[str] = "dropout"
    moves_places: ClassVar[bool] = True
    p: float
    unit: Unit = "channel"
    per: Per = "batch"

    def __post_init__(self) -> None:
        require_dropout(self.p, self.unit, self.per)

    def passage(self, shape: Shape, moment: Moment) -> Passage:
        """Return the way of a batch of which a random part is dropped."""
        seed = moment.seed_of("dropout")
        mask = DropMask(shape, self.p, seed, self.unit, self.per)
        return _Dropping(mask, moment.place.device)

    def memory(self) -> ServerMemory:
        """Return the running means of channels."""
        return _Means()


class _Means(ServerMemory):
    def __init__(self) -> None:
        self.channels = RunningMeans()

    def end_step(self) -> None:
        self.channels.end_step()

    def forget(self, device: int) -> None:
        self.channels.forget(device)

    def state(self) -> dict[str, Any]:
        return {"means": self.channels.means()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.channels = RunningMeans(state["means"])


class _Dropping(Passage):
    def __init__(self, mask: DropMask, device: int) -> None:
        super().__init__(mask.kept_shape)
        self._mask, self._device = mask, device

    def send(self, activations: torch.Tensor) -> torch.Tensor:
        return self._mask.gather(activations)

    def receive(
        self, sent: torch.Tensor, memory: "_Means", channels: CutMask
    ) -> torch.Tensor:
        return memory.channels.restore(sent, self._mask, channels, self._device)

    def select(self, gradient: torch.Tensor) -> torch.Tensor:
        return self._mask.select(gradient)
