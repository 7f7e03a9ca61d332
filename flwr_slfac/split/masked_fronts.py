"""The server's side of fronts in lightweight training: in part, and not every round.

Over a period of I rounds::

    round    1                    2 .. I-1            I
    devices  front, masked ──►    go on with theirs   update ──► server
    server   masks chosen                             mean by coordinate, next version

The server keeps the front with the weights that masks left out, as they were (they may
come back), and serves it with zeros where nobody holds a coordinate.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from flwr_slfac.errors import DecodeError, DeviceError, TrainingError
from flwr_slfac.lightweight import Lightweight
from flwr_slfac.lightweight.pruning import (
    CutMask,
    Mask,
    fill_unheld,
    restore_unheld,
)
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.features import Dropout
from flwr_slfac.split.front_features import update_of
from flwr_slfac.split.link import Link
from flwr_slfac.split.mask_choice import MaskChoice
from flwr_slfac.split.periods import Periods
from flwr_slfac.split.protocol import Begin, TrainReply
from flwr_slfac.split.server_fronts import Mean, ServerFronts
from flwr_slfac.split.whole_fronts import require_front
from flwr_slfac.states import State, in_dtypes_of, same_state


class Fronts(ServerFronts):
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

    needs_devices = True

    def __init__(
        self, setting: Lightweight, *, relay: bool, last_round: int | None = None
    ) -> None:
        self.setting, self.last_round = setting, last_round
        self.full = {}
        self.hands_on = relay and setting.period_rounds == 1
        self.unlike_parts = setting.unlike_shares
        p, unit, per = (
            setting.activation_dropout,
            setting.dropout_unit or "channel",
            setting.dropout_per or "batch",
        )
        self.cut_features = (Dropout(p, unit, per),) if p else ()
        self._setting = setting
        self._config = setting.device_config
        self._update = update_of(self._config)
        self.period_steps = setting.period_steps
        self._periods = Periods(self._update)
        self._masks = MaskChoice(setting)
        self._version = 0
        self._aggregate = True
        self._served: State = {}
        # By device: the version of the front that stays on it, what it was given.
        self._resident: dict[int, int] = {}
        self._given: dict[int, State] = {}
        self._holders: list[tuple[float, Mask]] = []

    def take(self, served: State) -> State:
        """Return the whole front behind one that was served, or that is new."""
        if not same_state(served, self._served):
            self.replace(served)
        return self.full

    def replace(self, front: State) -> None:
        """Take a whole front, which devices have not yet, from somewhere else."""
        self.full = {name: tensor.clone() for name, tensor in front.items()}
        self._served = self.full
        self._version += 1
        self._masks.restart()

    def prepare(
        self,
        link: Link,
        devices: Mapping[int, int],
        accounts: Accounts,
        train_round: int | None,
    ) -> None:
        """Ask devices what masks depend on, and choose masks if it is time."""
        self._start_round()
        self._masks.ask(link, devices, self.full, accounts)
        if train_round is not None and self._masks.renew(train_round):
            # A front that a device kept fits its old mask only.
            self._resident = {}

    def aggregates(self, server_round: int) -> bool:
        """Say whether fronts come back at the end of a round, from 1."""
        return self._setting.aggregates(server_round, self.last_round)

    def begin(self, device: int, begin: Begin) -> Begin:
        """Return what a device is told at the start of training."""
        full = begin.front if self.hands_on and begin.front else self.full
        self._given[device] = full
        self._aggregate = self.aggregates(begin.server_round)
        begin = replace(begin, aggregate=self._aggregate)
        return self._masked(device, begin, full)

    def begin_evaluation(self, device: int, begin: Begin) -> Begin:
        """Return what a device is told before it is evaluated."""
        return self._masked(device, begin, begin.front or {})

    def _masked(self, device: int, begin: Begin, front: State) -> Begin:
        mask, data = self._masks.mask(device, self.full)
        part = front if mask.is_full else mask.take_state(front)
        stays = self._resident.get(device) == self._version
        return replace(
            begin,
            front=None if stays else part,
            config=self._config,
            mask=data,
            version=self._version,
        )

    def forget(self, device: int) -> None:
        """Note that a device does not have the front that it should have."""
        self._resident.pop(device, None)

    def at_cut(self, device: int) -> CutMask:
        """Return which channels of the smashed data a device computes."""
        return self._masks.mask(device, self.full)[0].cut

    def receive(self, device: int, reply: TrainReply) -> State | None:
        """Return the part of the front that came back, or None if it stays there.

        The relay hands a whole front on.

        Raises
        ------
        DeviceError
            If what came is not what was asked for, or cannot be decoded.
        """
        mask, _ = self._masks.mask(device, self.full)
        given = self._given.pop(device) if reply.done else self._given[device]
        came = reply.update is not None or reply.front is not None
        if came != self._aggregate:
            raise DeviceError(
                f"device {device} {'sent' if came else 'did not send'} its front, and "
                f"was {'not ' if came else ''}asked to"
            )
        if not came:
            self._resident[device] = self._version
            return None
        self._resident.pop(device, None)
        try:
            held = self._periods.given(device) or mask.take_state(given)
            part = self._update.unpack(device, reply, held)
            require_front(device, part, held)
            if self.period_steps:
                return self._periods.bring(device, part, mask.take_state(self._now))
            return mask.put_state(part, given) if self.hands_on else dict(part)
        except DeviceError:
            raise
        except (DecodeError, TrainingError) as error:
            raise DeviceError(f"the front of device {device}: {error}") from error

    def meet(self, num_examples: Mapping[int, int]) -> Mapping[int, Mean]:
        """Average the fronts that came within a round; return what follows on them.

        Raises
        ------
        DivergedError
            If a difference cannot be sent.
        """
        order = sorted(num_examples)
        before = now = {d: self._masks.mask(d, self.full) for d in order}
        mean = self._periods.average(before, num_examples, self._now)
        every = self._setting.renew_every
        if every and self._periods.num_means % every == 0:
            now = self._masks.renew_within(order, mean)
        return self._periods.hand_out(before, now, self.full)

    def _start_round(self) -> None:
        self._periods.start_round()
        self._masks.start_round()

    @property
    def _now(self) -> State:
        """The whole front within a round: of its start, or the last mean."""
        return self._periods.full or self.full

    def complete(
        self, parts: Mapping[int, State], num_examples: Mapping[int, int]
    ) -> Mapping[int, State]:
        """Return the whole front of each device, by device, fit for a plain mean.

        Raises
        ------
        DeviceError
            If a part is not of this front.
        """
        order = sorted(parts)
        masks = [self._masks.mask(d, self.full)[0] for d in order]
        weights = [float(num_examples[d]) for d in order]
        self._holders = list(zip(weights, masks, strict=True))
        if self.hands_on or all(mask.is_full for mask in masks):
            return {d: parts[d] for d in order}
        try:
            filled = fill_unheld([parts[d] for d in order], weights, masks, self._now)
        except TrainingError as error:
            raise DeviceError(str(error)) from error
        return dict(zip(order, filled, strict=True))

    def advance(self, averaged: State) -> State:
        """Take the mean of what `complete` returned; return the front to be served.

        In what is served, a coordinate that nobody held is zero.
        """
        before, after = self.full, in_dtypes_of(averaged, self.full)
        weights = [weight for weight, _ in self._holders]
        masks = [mask for _, mask in self._holders]
        if not all(mask.is_full for mask in masks):
            after = restore_unheld(after, weights, masks, self._now)
        self._masks.observe(before, after)
        self._start_round()
        self.full = after
        self._version += 1
        self._served = self._without_unheld(weights, masks)
        return self._served

    def _without_unheld(
        self, weights: list[float], masks: list[Mask]
    ) -> dict[str, torch.Tensor]:
        """Return the front with zeros where nobody holds a coordinate."""
        full = dict(self.full)
        if not masks or any(mask.is_full for mask in masks):
            return full
        zeros = {n: torch.zeros_like(t) for n, t in full.items()}
        served = restore_unheld(full, weights, masks, zeros)
        channels = self._masks.channels
        groups = channels.groups if channels else ()
        statistics = {
            m.tensor for g in groups for m in g.members if m.role == "statistic"
        }
        return {n: full[n] if n in statistics else t for n, t in served.items()}

    def state(self) -> dict[str, Any]:
        """Return the whole front, what is served of it, and the masks."""
        return {
            "full": dict(self.full),
            "served": dict(self._served),
            "version": self._version,
            "masks": self._masks.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, with devices that kept no front."""
        self.full, self._served = state["full"], state["served"]
        self._version = state["version"]
        self._masks.load(state["masks"], self.full)
        self._resident = {}

    def summary(self) -> list[str]:
        """Return the setting."""
        return [str(self._setting)]
