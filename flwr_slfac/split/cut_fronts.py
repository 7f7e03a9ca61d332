"""Fronts of devices with cuts of their own: the server trains what lies behind them."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from flwr_slfac.errors import DeviceError, SettingError
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.crossing import Batch
from flwr_slfac.split.device import OptimizerFactory, SchedulerFactory, has_batch_norm
from flwr_slfac.split.device_cuts import DeviceCuts
from flwr_slfac.split.device_front import DeviceFront
from flwr_slfac.split.features import named
from flwr_slfac.split.link import Link
from flwr_slfac.split.place import Moment, Place
from flwr_slfac.split.protocol import Begin, TrainReply
from flwr_slfac.split.whole_fronts import WholeFronts, require_front
from flwr_slfac.states import State


@dataclass(frozen=True)
class _Layers:
    """The layers of a middle and how they are trained, as of a device."""

    front: nn.Module
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory | None
    scheduler_per: Literal["round", "step"]
    keep_optimizer: bool
    clip_norm: float | None
    device: torch.device | str


class _Middle:
    """The layers behind one device's cut, in one round.

    Parameters
    ----------
    layers : _Layers
        Their own copy.
    begin : Begin
        What the device is told; its front is that of these layers.
    device : int
        Partition id.
    kept : mapping
        What `finish` returned in an earlier round.
    """

    def __init__(
        self, layers: _Layers, begin: Begin, device: int, kept: Mapping[str, Any]
    ) -> None:
        self._front = DeviceFront(layers, example=lambda: torch.empty(0))
        self._begin, self._device = begin, device
        self._front.take(begin, kept, f"the server's middle of device {device}")
        self._kept = kept
        # Not the device's: its own draws would be drawn again.
        self._place = Place(begin.seed, begin.server_round, -2 - device)
        self._moment: Moment | None = None

    def start(self) -> None:
        """Make ready to train."""
        self._front.start(self._begin, self._kept)

    def lift(self, batch: Batch, step: int) -> Batch:
        """Return a training batch as it is at the common cut."""
        self._moment = self._place.at(step)
        sent = batch.activations.detach()
        self._sent = sent.requires_grad_(sent.is_floating_point())
        # A copy, because the layers may begin with an operation in place.
        self._out = self._front.forward(self._sent.clone(), self._moment)
        return replace(batch, activations=self._out.detach())

    def lift_test(self, batch: Batch) -> Batch:
        """Return a test batch as it is at the common cut."""
        self._front.network.eval()
        return replace(batch, activations=self._front.test(batch.activations))

    def lower(self, gradient: torch.Tensor) -> torch.Tensor:
        """Take a step; return the gradient at the device's own cut."""
        # As it arrives: the leaf's own is laid out as the leaf is.
        arrived: list[torch.Tensor] = []
        self._sent.register_hook(arrived.append)  # type: ignore[no-untyped-call]
        assert self._moment is not None
        self._front.step(self._out, gradient, self._moment)
        del self._out
        return arrived[0] if arrived else torch.zeros_like(self._sent)

    def finish(self) -> tuple[State, dict[str, Any]]:
        """Return the trained layers, and what is kept for the next round."""
        moment = self._moment or self._place.at(0)
        sent, keeps = self._front.finish(self._begin, moment)
        return sent["front"], keeps


class CutFronts(WholeFronts):
    """Hands each device the layers up to its own cut, and trains the others for it.

    Parameters
    ----------
    cuts : DeviceCuts
        Who is cut where.
    where : torch.device or str (default: "cpu")
        Where the middles run: beside the back.
    """

    needs_devices = True
    in_parts = True

    def __init__(self, cuts: DeviceCuts, where: torch.device | str = "cpu") -> None:
        super().__init__()
        self.shapes = cuts.shapes()
        self._cuts, self._where = cuts, where
        self._given_to: dict[int, State] = {}
        self._middles: dict[int, _Middle] = {}
        # By device, what outlives a round of its middle.
        self._kept: dict[int, dict[str, Any]] = {}

    def take(self, served: State) -> State:
        """Return the front that was served.

        Raises
        ------
        SettingError
            If it is not that of the common cut.
        """
        if odd := sorted(self._cuts.names ^ served.keys()):
            raise SettingError(
                f"the front is not that of the common cut of cuts=: {odd[0]!r} is in "
                "one of them only; give SplitFed and DeviceCuts the same model and cut"
            )
        return super().take(served)

    def prepare(
        self,
        link: Link,
        devices: Mapping[int, int],
        accounts: Accounts,
        train_round: int | None,
    ) -> None:
        """Let the middles of the last round go."""
        self._middles = {}

    def begin(self, device: int, begin: Begin) -> Begin:
        """Return what a device is told at the start of training."""
        begin = self._split(device, begin)
        self._given_to[device] = begin.front or {}
        if device in self._middles:
            self._middles[device].start()
        return begin

    def begin_evaluation(self, device: int, begin: Begin) -> Begin:
        """Return what a device is told before it is evaluated."""
        return self._split(device, begin)

    def _split(self, device: int, begin: Begin) -> Begin:
        """Give the server its part of a front; return the device's."""
        module, front = self._cuts.middle(device), begin.front or {}
        self._middles.pop(device, None)
        if module is None:
            return begin
        c, layers = self._cuts, copy.deepcopy(module)
        own = layers.state_dict().keys()
        how = c.optimizer, c.scheduler, c.scheduler_per, c.keep_optimizer, c.clip_norm
        self._middles[device] = _Middle(
            _Layers(layers, *how, self._where),
            replace(begin, front=_only(front, own), pipeline_depth=0),
            device,
            self._kept.get(device, {}),
        )
        smallest = 2 if has_batch_norm(layers) else 1
        return replace(
            begin,
            front=_only(front, front.keys() - own),
            min_batch=max(begin.min_batch, smallest),
            cut_features=named(begin.cut_features, module),
        )

    def lift(self, device: int, batch: Batch, step: int) -> Batch:
        """Return a device's training batch as it is at the common cut.

        Raises
        ------
        DeviceError
            If it does not go through the layers in between.
        """
        middle = self._middles.get(device)
        if middle is None:
            return batch
        try:
            return middle.lift(batch, step)
        except Exception as error:  # whatever layers of the user's raise
            raise DeviceError(
                f"device {device}, step {step}: what it sent does not go through the "
                f"layers behind its cut: {type(error).__name__}: {error}"
            ) from error

    def lift_test(self, device: int, batch: Batch) -> Batch:
        """Return a device's test batch as it is at the common cut."""
        middle = self._middles.get(device)
        return batch if middle is None else middle.lift_test(batch)

    def lower(self, device: int, gradient: torch.Tensor) -> torch.Tensor:
        """Train the middle; return the gradient at the device's own cut."""
        middle = self._middles.get(device)
        return gradient if middle is None else middle.lower(gradient)

    def receive(self, device: int, reply: TrainReply) -> State | None:
        """Return the front that came back, with what the server trained of it.

        Raises
        ------
        DeviceError
            If none came, or one that cannot be averaged, the server's layers included.
        """
        self._given = self._given_to[device]
        front = super().receive(device, reply)
        middle = self._middles.pop(device, None)
        if middle is None or front is None:
            return front
        trained, self._kept[device] = middle.finish()
        whole = {**front, **trained}
        require_front(device, whole, self.full)
        return {name: whole[name] for name in self.full}

    def state(self) -> dict[str, Any]:
        """Return what middles keep between rounds."""
        return {"middles": {d: kept for d, kept in self._kept.items() if kept}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._kept = dict(state["middles"])

    def settings(self) -> dict[str, Any]:
        """Return what makes a run another one."""
        return {f"cuts {name}": value for name, value in self._cuts.settings().items()}

    def summary(self) -> list[str]:
        """Return who is cut where."""
        return [str(self._cuts)]


def _only(state: State, names: Collection[str]) -> State:
    return {name: tensor for name, tensor in state.items() if name in names}
