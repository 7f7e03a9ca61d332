"""The server's side of lightweight training: who trains which part of the front.

Over a period of I rounds::

    round    1                    2 .. I-1            I
    devices  front, masked ──►    go on with theirs   update ──► server
    server   masks chosen                             mean by coordinate, next version

The server keeps the front with the weights that masks left out, as they were (they may
come back), and serves it with zeros where nobody holds a coordinate.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from flwr_slfac.errors import (
    AllDevicesLostError,
    DecodeError,
    DeviceError,
    TrainingError,
)
from flwr_slfac.lightweight import FULL_BITS, Lightweight
from flwr_slfac.lightweight.pruning import (
    Channels,
    CutMask,
    FullMask,
    Mask,
    channel_scores,
    choose_channels,
    choose_elements,
    fill_unheld,
    increase,
    prunable_shapes,
    restore_unheld,
    update_as_gradient,
)
from flwr_slfac.lightweight.quantization import unpack_update
from flwr_slfac.split.protocol import Begin, Description, Link, TrainReply
from flwr_slfac.states import State


class Fronts:
    """Hands out fronts and takes them back, as a `Lightweight` setting asks.

    Parameters
    ----------
    setting : Lightweight
        What is asked of devices.
    relay : bool
        Whether the front is handed from device to device within a round.
    last_round : int, optional
        The round in which fronts are aggregated whatever the period.
    """

    def __init__(
        self, setting: Lightweight, *, relay: bool, last_round: int | None = None
    ) -> None:
        self.setting = setting
        self.last_round = last_round
        self.relay = relay and setting.aggregate_every == 1
        self.orders = setting.orders
        self._full: dict[str, torch.Tensor] = {}
        self._version = 0
        self._channels: Channels | None = None
        self._profiles: dict[int, dict[str, object]] = {}
        self._gradients: dict[str, torch.Tensor] | None = None
        self._first_scores: dict[str, torch.Tensor] = {}
        # The masks in force: when they were chosen, and by share.
        self._chosen_in: int | None = None
        self._by_share: dict[float, tuple[Mask, bytes]] = {}
        self._shares: dict[int, float] = {}
        # By device: the version that its own front comes from, and what it was given.
        self._lives: dict[int, int] = {}
        self._given: dict[int, State] = {}
        self._holders: list[tuple[float, Mask]] = []

    def aggregates(self, server_round: int) -> bool:
        """Say whether fronts come back at the end of this round."""
        return self.setting.aggregates(server_round, self.last_round)

    def replace(self, front: State) -> None:
        """Take a full front, which devices have not yet, from somewhere else."""
        self._full = {name: tensor.clone() for name, tensor in front.items()}
        self._version += 1
        self._chosen_in = None
        self._first_scores = {}

    def meet(self, link: Link, devices: Mapping[int, int]) -> None:
        """Learn what must be known of devices before they are given a mask.

        Parameters
        ----------
        link : Link
            To the devices.
        devices : mapping of int to int
            Their partition ids by key.

        Raises
        ------
        DeviceError
            If the channels of a device's front are not those of the server's.
        """
        if self.setting.prunes:
            self._ask(link, devices)

    def choose_masks(self, server_round: int) -> None:
        """Choose masks anew if it is time, before a round of training."""
        if not self.setting.prunes:
            return
        first = (server_round - 1) % self.setting.aggregate_every == 0
        waited = server_round - (self._chosen_in or 0)
        if self._chosen_in is None or (first and waited >= self.setting.remask_every):
            self._chosen_in = server_round
            self._by_share, self._shares = {}, {}
            # A front that a device kept fits its old mask only.
            self._lives = {}

    def begin(self, device: int, begin: Begin) -> Begin:
        """Return what a device is told at the start of training."""
        held, mask = self._mask(device)
        full = begin.front if self.relay and begin.front else self._full
        self._given[device] = full
        lives = self._lives.get(device) == self._version
        return replace(
            begin,
            front=None if lives else held.take_state(full),
            orders=self.orders.to_text(),
            mask=mask,
            version=self._version,
            aggregate=self.aggregates(begin.server_round),
        )

    def forget(self, device: int) -> None:
        """Note that a device does not have the front that it should have."""
        self._lives.pop(device, None)

    def begin_evaluation(self, device: int, begin: Begin) -> Begin:
        """Return what a device is told before it is evaluated."""
        held, mask = self._mask(device)
        lives = self._lives.get(device) == self._version
        front = begin.front
        if front is not None:
            front = held.take_state(front)
        return replace(
            begin,
            front=None if lives else front,
            orders=replace(self.orders, dropout=0.0).to_text(),
            mask=mask,
            version=self._version,
        )

    def at_cut(self, device: int) -> CutMask:
        """Return which channels of the smashed data a device computes."""
        held, _ = self._mask(device)
        return held.cut

    def receive(self, device: int, reply: TrainReply) -> State | None:
        """Return the part of the front that came back, or None if it stays there.

        Raises
        ------
        DeviceError
            If what came is not what was asked for, or cannot be decoded.
        """
        held, _ = self._mask(device)
        given = self._given.pop(device)
        if reply.update is None and reply.front is None:
            self._lives[device] = self._version
            return None
        self._lives.pop(device, None)
        if (reply.update is not None) != (self.orders.update_bits < FULL_BITS):
            raise DeviceError(
                f"device {device} sent its front "
                f"{'quantized' if reply.update is not None else 'in full'}, and was "
                "not asked to"
            )
        part: State = {} if reply.front is None else reply.front
        try:
            if reply.update is not None:
                part = unpack_update(reply.update, held.take_state(given))
            # The relay hands a full front on.
            return held.put_state(part, given) if self.relay else dict(part)
        except (DecodeError, TrainingError) as error:
            raise DeviceError(f"the front of device {device}: {error}") from error

    def complete(
        self, parts: Mapping[int, State], num_examples: Mapping[int, int]
    ) -> dict[int, State]:
        """Return the full front of each device, by device, fit for a plain mean.

        Raises
        ------
        DeviceError
            If a part is not of this front.
        """
        order = sorted(parts)
        masks = [self._mask(d)[0] for d in order]
        weights = [float(num_examples[d]) for d in order]
        self._holders = list(zip(weights, masks, strict=True))
        if self.relay or all(mask.is_full for mask in masks):
            return {d: parts[d] for d in order}
        try:
            filled = fill_unheld([parts[d] for d in order], weights, masks, self._full)
        except TrainingError as error:
            raise DeviceError(str(error)) from error
        return dict(zip(order, filled, strict=True))

    def advance(self, averaged: State) -> dict[str, torch.Tensor]:
        """Take the mean of what `complete` returned; return the front to be served.

        In what is served, a coordinate that nobody held is zero.
        """
        averaged = {n: _as_before(averaged[n], old) for n, old in self._full.items()}
        weights = [weight for weight, _ in self._holders]
        masks = [mask for _, mask in self._holders]
        if not all(mask.is_full for mask in masks):
            averaged = restore_unheld(averaged, weights, masks, self._full)
        if self.setting.prunes and self.setting.criterion == "gradient":
            self._gradients = update_as_gradient(
                self._full, averaged, self._gradients, self.setting.gradient_decay
            )
        self._full = dict(averaged)
        self._version += 1
        return self._served(weights, masks)

    def _served(
        self, weights: list[float], masks: list[Mask]
    ) -> dict[str, torch.Tensor]:
        if not masks or any(mask.is_full for mask in masks):
            return dict(self._full)
        zeros = {n: torch.zeros_like(t) for n, t in self._full.items()}
        served = restore_unheld(self._full, weights, masks, zeros)
        groups = self._channels.groups if self._channels else ()
        statistics = {
            m.tensor for g in groups for m in g.members if m.role == "statistic"
        }
        return {n: self._full[n] if n in statistics else t for n, t in served.items()}

    @property
    def full(self) -> dict[str, torch.Tensor]:
        """The front with all weights, those left out by masks included."""
        return dict(self._full)

    def _mask(self, device: int) -> tuple[Mask, bytes]:
        """Return what a device holds, and the mask's bytes."""
        if self._chosen_in is None:
            return FullMask(), b""
        if device not in self._shares:
            profile = self._profiles.get(device, {"partition-id": device})
            self._shares[device] = self.setting.share(self._chosen_in, profile)
        share = self._shares[device]
        if share == 0:
            return FullMask(), b""
        if share not in self._by_share:
            mask = self._choose(share)
            self._by_share[share] = mask, mask.to_bytes()
        return self._by_share[share]

    def _choose(self, share: float) -> Mask:
        setting, gradients = self.setting, self._gradients
        criterion = setting.criterion
        if criterion == "gradient" and gradients is None:
            criterion = "weight"
        if not setting.structured:
            names = list(prunable_shapes(self._full))
            use = gradients if criterion == "gradient" else None
            return choose_elements(self._full, names, share, setting.scope, use)
        if self._channels is None:
            raise TrainingError("masks are asked for before any device was met")
        if criterion == "increase":
            scores = channel_scores(self._channels, self._full)
            self._first_scores = self._first_scores or scores
            scores = increase(scores, self._first_scores)
        else:
            scores = channel_scores(self._channels, self._full, criterion, gradients)
        return choose_channels(
            self._channels, scores, share, setting.scope, setting.at_cut
        )

    def _ask(self, link: Link, devices: Mapping[int, int]) -> None:
        """Ask devices for profiles, each once, and the first for its channels."""
        if self.setting.unlike_shares:
            new = [k for k, d in devices.items() if d not in self._profiles]
            for answer in link.describe(new, channels=False).values():
                if isinstance(answer, Description):
                    own = {"partition-id": answer.device}
                    self._profiles[answer.device] = {**answer.profile, **own}
        if not self.setting.structured or self._channels is not None:
            return
        reasons = []
        for key in sorted(devices, key=lambda k: devices[k]):
            answer = link.describe([key], channels=True)[key]
            if isinstance(answer, Description):
                try:
                    self._channels = Channels.from_text(answer.channels, self._full)
                except DecodeError as error:
                    raise DeviceError(f"device {devices[key]}: {error}") from error
                return
            reasons.append(f"device {devices[key]}: {answer.reason}")
        raise AllDevicesLostError(
            f"no device described the channels of its front ({'; '.join(reasons)})"
        )


def _as_before(tensor: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the dtype that it had; a mean of integers is rounded."""
    tensor = tensor if old.is_floating_point() else tensor.round()
    return tensor.to(old.dtype)
