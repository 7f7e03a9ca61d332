"""The server's side of a run, which outlives its rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from flwr_slfac.codec import Memory, restart
from flwr_slfac.split.crossing import ServerSide
from flwr_slfac.split.device_codecs import DeviceCodecs
from flwr_slfac.split.lasting import remembered
from flwr_slfac.split.limits import OnDeviceError
from flwr_slfac.split.own_losses import Loss
from flwr_slfac.split.protocol import Begin, TrainReply
from flwr_slfac.split.recalled_samples import RecalledSamples
from flwr_slfac.split.server_fronts import ServerFronts
from flwr_slfac.split.server_half import ServerHalf
from flwr_slfac.split.usual_choices import UsualChoices
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
    codecs : DeviceCodecs or None
        Codecs of devices' own; None for the same ones for all.
    lasting : dict of int to dict
        Of gradient codecs, by device: what outlives a round, a residual for example.
    samples : RecalledSamples
        Of the activations' codec, by device: samples that it remembers.
    choices : UsualChoices
        What their encoders mostly chose.
    kept : dict of int to tuple of str
        By device, what it said it keeps for the next round, as in `lasting.KEPT`.
    """

    server: ServerHalf
    fronts: ServerFronts
    traffic: Traffic
    side: ServerSide
    on_device_error: OnDeviceError = "raise"
    codecs: DeviceCodecs | None = None
    lasting: dict[int, Memory] = field(default_factory=dict)
    samples: RecalledSamples = field(default_factory=RecalledSamples)
    choices: UsualChoices = field(default_factory=UsualChoices)
    kept: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def needs_devices(self, begin: Begin) -> bool:
        """Say whether devices must be known by partition id before a round begins."""
        own = self.codecs is not None
        return self.fronts.needs_devices or begin.up.needs_samples or own

    def coding(self, device: int, begin: Begin) -> tuple[Begin, ServerSide]:
        """Return what a device is told, and the server's side, with its own codecs.

        Raises
        ------
        SettingError
            If its codecs cannot be those of one round only.
        """
        if self.codecs is None:
            return begin, self.side
        up, down = self.codecs.choose(begin.server_round, device)
        told = begin if up is None else replace(begin, up=up)
        return told, self.side if down is None else replace(self.side, down=down)

    def remember(self, device: int, down: Memory, reply: TrainReply) -> None:
        """Keep what outlives a round of the gradient's codec, and what a device said.

        Parameters
        ----------
        device : int
            Partition id.
        down : dict of str to Tensor
            What the codec remembers.
        reply : TrainReply
            The device's last one in the round.
        """
        if lasting := restart(down):
            channels = self.fronts.at_cut(device)
            self.lasting[device] = remembered(lasting, channels)
        self.kept[device] = reply.kept

    def state(self) -> dict[str, Any]:
        """Return, between rounds, what the next one goes on from; no weights."""
        return {
            "server": self.server.replica.state(),
            "loss": _state_of(self.server.loss),
            "fronts": self.fronts.state(),
            "features": [memory.state() for _, memory in self.side.features],
            "elements_per_example": self.side.size.elements_per_example,
            "lasting": {d: dict(self.lasting[d]) for d in sorted(self.lasting)},
            "samples": self.samples.state(),
            "choices": self.choices.state(),
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
        # Of a run that was saved before samples were remembered there are none.
        folder = self.side.size.limits.sample_folder
        self.samples.load(state.get("samples", {}), folder)
        self.choices.load(state["choices"])


def _state_of(loss: Loss) -> dict[str, Any] | None:
    """Return the buffers of a loss that is a module; they may follow the data."""
    return dict(loss.state_dict()) if isinstance(loss, nn.Module) else None
