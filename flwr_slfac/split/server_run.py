"""The server's side of a run, which outlives its rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from flwr_slfac.codec import Memory
from flwr_slfac.split.crossing import ServerSide
from flwr_slfac.split.limits import OnDeviceError
from flwr_slfac.split.own_losses import Loss
from flwr_slfac.split.server_fronts import ServerFronts
from flwr_slfac.split.server_half import ServerHalf
from flwr_slfac.traffic import Traffic


@dataclass(frozen=True)
class ServerRun:
    """The server's side of a run, which outlives its rounds.

    Parameters
    ----------
    server : ServerHalf
        The back and how it learns.
    fronts : ServerFronts
        Who is given which front.
    traffic : Traffic
        Where what crosses is entered.
    side : ServerSide
        What the ends of all devices share.
    on_device_error : {"drop", "raise"}
        What becomes of a device at fault.
    lasting : dict of int to dict
        Of gradient codecs, by device: what outlives a round, a residual for example.
    kept : dict of int to tuple of str
        By device, what it said it keeps for the next round, as in `lasting.KEPT`.
    """

    server: ServerHalf
    fronts: ServerFronts
    traffic: Traffic
    side: ServerSide
    on_device_error: OnDeviceError = "raise"
    lasting: dict[int, Memory] = field(default_factory=dict)
    kept: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Return, between rounds, what the next one goes on from; no weights."""
        return {
            "server": self.server.replica.state(),
            "loss": _state_of(self.server.loss),
            "fronts": self.fronts.state(),
            "features": [memory.state() for _, memory in self.side.features],
            "elements_per_example": self.side.size.elements_per_example,
            "lasting": {d: dict(self.lasting[d]) for d in sorted(self.lasting)},
            "kept": {d: self.kept[d] for d in sorted(self.kept)},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, with devices that start anew."""
        self.server.replica.load(state["server"])
        if isinstance(self.server.loss, nn.Module) and state["loss"] is not None:
            self.server.loss.load_state_dict(state["loss"])
        self.fronts.load(state["fronts"])
        for (_, memory), own in zip(self.side.features, state["features"], strict=True):
            memory.load(own)
        self.side.size.elements_per_example = state["elements_per_example"]
        self.lasting.update(state["lasting"])


def _state_of(loss: Loss) -> dict[str, Any] | None:
    """Return the buffers of a loss that is a module; they may follow the data."""
    return dict(loss.state_dict()) if isinstance(loss, nn.Module) else None
