"""Who trains which part of the front: masks, chosen anew every few rounds."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from flwr_slfac.errors import (
    AllDevicesLostError,
    DecodeError,
    DeviceError,
    TrainingError,
)
from flwr_slfac.lightweight import Lightweight
from flwr_slfac.lightweight.pruning import (
    Channels,
    FullMask,
    Mask,
    channel_scores,
    choose_channels,
    choose_elements,
    increase,
    prunable_shapes,
    update_as_gradient,
)
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.link import Link
from flwr_slfac.split.mask_state import channels_of, mask_of, plain_channels
from flwr_slfac.split.protocol import Description, Lost
from flwr_slfac.states import State

logger = logging.getLogger("flwr")

_UNLIKE = "describes channels of its front that no other device has; all cut one model"


class MaskChoice:
    """Chooses masks as a `Lightweight` setting asks; one a share of pruning.

    Parameters
    ----------
    setting : Lightweight
        Shares, criterion and schedule.

    Attributes
    ----------
    channels : Channels or None
        The channels that can leave, once a device described them.
    """

    def __init__(self, setting: Lightweight) -> None:
        self._setting = setting
        self.channels: Channels | None = None
        self._profiles: dict[int, Mapping[str, Any]] = {}
        self._gradients: State | None = None
        self._first_scores: State = {}
        # The masks in force: when they were chosen, and by share.
        self._chosen_in: int | None = None
        self._by_share: dict[float, tuple[Mask, bytes]] = {}
        self._shares: dict[int, float] = {}
        # By device: one that it still holds after others' were chosen anew.
        self._older: dict[int, tuple[Mask, bytes]] = {}

    def start_round(self) -> None:
        """Forget masks that are in force no more once a round has ended."""
        self._older = {}

    def restart(self) -> None:
        """Choose from the next front as from a first one."""
        self._chosen_in = None
        self._first_scores = {}

    def observe(self, before: State, after: State) -> None:
        """Take note of what an aggregation did to the whole front."""
        setting = self._setting
        if setting.prunes and setting.criterion == "gradient":
            self._gradients = update_as_gradient(
                before, after, self._gradients, setting.gradient_decay
            )

    def renew(self, server_round: int) -> bool:
        """Choose masks anew if it is time, before a round; say whether they are."""
        setting = self._setting
        if not setting.prunes:
            return False
        first = (server_round - 1) % setting.period_rounds == 0
        waited = server_round - (self._chosen_in or 0)
        if self._chosen_in is None or (first and waited >= setting.remask_every):
            self._chosen_in = server_round
            self._by_share, self._shares = {}, {}
            return True
        return False

    def renew_within(
        self, devices: Sequence[int], full: State
    ) -> dict[int, tuple[Mask, bytes]]:
        """Choose masks anew within a round; return them by device.

        Parameters
        ----------
        devices : sequence of int
            Who is to hold them. Others of the round keep theirs until its end.
        full : mapping of str to Tensor
            The whole front.
        """
        rest = self._shares.keys() - set(devices)
        for device in sorted(rest - self._older.keys()):
            if (old := self._by_share.get(self._shares[device])) is not None:
                self._older[device] = old
        self._by_share = {}
        return {device: self.mask(device, full) for device in devices}

    def mask(self, device: int, full: State) -> tuple[Mask, bytes]:
        """Return what a device holds of the front, and its bytes.

        Parameters
        ----------
        device : int
            Partition id.
        full : mapping of str to Tensor
            The whole front, should a mask have to be chosen.
        """
        if self._chosen_in is None:
            return FullMask(), b""
        if device in self._older:
            return self._older[device]
        if device not in self._shares:
            profile = self._profiles.get(device, {"partition-id": device})
            self._shares[device] = self._setting.share(self._chosen_in, profile)
        share = self._shares[device]
        if share not in self._by_share:
            mask = self._whole(full) if share == 0 else self._choose(share, full)
            self._by_share[share] = mask, mask.to_bytes()
        return self._by_share[share]

    def _whole(self, full: State) -> Mask:
        """Return the whole front's mask; growth is counted from here if not yet."""
        if self._setting.criterion == "increase" and self.channels is not None:
            scores = channel_scores(self.channels, full)
            self._first_scores = self._first_scores or scores
        return FullMask()

    def _choose(self, share: float, full: State) -> Mask:
        setting, gradients = self._setting, self._gradients
        criterion = setting.criterion
        if criterion == "gradient" and gradients is None:
            criterion = "weight"
        if not setting.structured:
            names = list(prunable_shapes(full))
            use = gradients if criterion == "gradient" else None
            return choose_elements(full, names, share, setting.scope, use)
        if self.channels is None:
            raise TrainingError("masks are asked for before a device described itself")
        if criterion == "increase":
            scores = channel_scores(self.channels, full)
            self._first_scores = self._first_scores or scores
            scores = increase(scores, self._first_scores)
        else:
            scores = channel_scores(self.channels, full, criterion, gradients)
        return choose_channels(
            self.channels, scores, share, setting.scope, setting.at_cut
        )

    def state(self) -> dict[str, Any]:
        """Return what the next choices depend on, and the masks in force."""
        return {
            "channels": plain_channels(self.channels),
            "profiles": {d: dict(self._profiles[d]) for d in sorted(self._profiles)},
            "gradients": None if self._gradients is None else dict(self._gradients),
            "first_scores": dict(self._first_scores),
            "chosen_in": self._chosen_in,
            "masks": {share: data for share, (_, data) in self._by_share.items()},
            "shares": {d: self._shares[d] for d in sorted(self._shares)},
        }

    def load(self, state: Mapping[str, Any], full: State) -> None:
        """Go on from what `state` returned, for a front like `full`."""
        self.channels = channels_of(state["channels"])
        self._profiles = dict(state["profiles"])
        self._gradients = state["gradients"]
        self._first_scores = state["first_scores"]
        self._chosen_in = state["chosen_in"]
        self._by_share = {
            share: (mask_of(data, self.channels, full), data)
            for share, data in state["masks"].items()
        }
        self._shares = dict(state["shares"])

    def ask(
        self, link: Link, devices: Mapping[int, int], full: State, accounts: Accounts
    ) -> None:
        """Learn what a choice needs of devices: profiles, and the channels of two.

        Parameters
        ----------
        link : Link
            To the devices.
        devices : mapping of int to int
            Their partition ids by key.
        full : mapping of str to Tensor
            The whole front.
        accounts : Accounts
            Where what crosses is entered.

        Raises
        ------
        AllDevicesLostError
            If no device describes channels of the server's front.
        DeviceError
            If devices do, and no two of them the same.
        """
        if self._setting.unlike_shares:
            new = [k for k, d in devices.items() if d not in self._profiles]
            for answer in link.describe(new, channels=False).values():
                if isinstance(answer, Description):
                    accounts.carried(answer.device, answer.carried)
                    own = {"partition-id": answer.device}
                    self._profiles[answer.device] = {**answer.profile, **own}
        if not (self._setting.prunes and self._setting.structured):
            return
        if self.channels is None:
            self.channels = _ask_channels(link, devices, full, accounts)


def _ask_channels(
    link: Link, devices: Mapping[int, int], full: State, accounts: Accounts
) -> Channels:
    """Return channels that two devices describe alike, or the only one that does."""
    found: dict[int, Channels] = {}
    reasons = []
    order = sorted(devices, key=lambda k: devices[k])
    while order:
        # Two at once, then one after the other until two agree.
        asked = order[: 1 if found else 2]
        del order[: len(asked)]
        answers = link.describe(asked, channels=True)
        for key in asked:
            try:
                own = _described(devices[key], answers[key], full, accounts)
            except DeviceError as error:
                reasons.append(str(error))
                continue
            others = {d: c.fingerprint for d, c in found.items()}
            found[devices[key]] = own
            if own.fingerprint in others.values():
                alone = [d for d, f in others.items() if f != own.fingerprint]
                for device in alone:
                    logger.warning("device %d %s", device, _UNLIKE)
                return own
    if len(found) > 1:
        raise DeviceError(f"each of devices {', '.join(map(str, found))} {_UNLIKE}")
    if found:
        return next(iter(found.values()))
    raise AllDevicesLostError(
        f"no device described the channels of its front ({'; '.join(reasons)})"
    )


def _described(
    device: int, answer: Description | Lost, full: State, accounts: Accounts
) -> Channels:
    """Return the channels in a description, or raise DeviceError."""
    if not isinstance(answer, Description):
        raise DeviceError(f"device {device}: {answer.reason}")
    accounts.carried(answer.device, answer.carried)
    if answer.channels is None:
        raise DeviceError(f"device {device} described no channels")
    try:
        return answer.channels.fitted(full)
    except DecodeError as error:
        raise DeviceError(f"device {device}: {error}") from error
