"""The server's side of fronts: handed out and taken back; the null form is whole."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flwr_slfac.errors import DecodeError, DeviceError
from flwr_slfac.lightweight import Lightweight
from flwr_slfac.lightweight.pruning import CutMask, FullCutMask
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.features import CutFeature
from flwr_slfac.split.link import Link
from flwr_slfac.split.protocol import Begin, TrainReply
from flwr_slfac.states import State, in_dtypes_of, misfits


@dataclass(frozen=True)
class Mean:
    """What a device goes on from within a round.

    Parameters
    ----------
    part : mapping of str to Tensor
        The part of the front that it then has.
    fields : mapping
        Of the `TrainRequest` that brings it.
    """

    part: State
    fields: Mapping[str, Any]


class ServerFronts(ABC):
    """Who is given which front, and what becomes of those that come back.

    Attributes
    ----------
    full : mapping of str to Tensor
        The front with all weights, those left out by masks included.
    setting : Lightweight or None
        What is asked of devices.
    last_round : int or None
        The round in which fronts are aggregated whatever the period.
    needs_devices : bool
        Whether devices must be known by partition id before a round begins.
    hands_on : bool
        Whether a relay's device goes on with the front of the one before.
    unlike_parts : bool
        Whether devices of one round may hold unlike parts.
    cut_features : tuple of CutFeature
        What is done to the smashed data.
    period_steps : int
        Steps between two means of fronts within a round; 0 for none there.
    """

    full: State
    setting: Lightweight | None = None
    last_round: int | None = None
    needs_devices = False
    hands_on = True
    unlike_parts = False
    cut_features: tuple[CutFeature, ...] = ()
    period_steps = 0

    @abstractmethod
    def take(self, served: State) -> State:
        """Return the whole front behind one that was served, or that is new."""

    @abstractmethod
    def prepare(
        self,
        link: Link,
        devices: Mapping[int, int],
        accounts: Accounts,
        train_round: int | None,
    ) -> None:
        """Learn what must be known of devices before they are given a front.

        Parameters
        ----------
        link : Link
            To the devices.
        devices : mapping of int to int
            Their partition ids by key.
        accounts : Accounts
            Where what crosses is entered.
        train_round : int or None
            The round of training that follows; None before an evaluation.

        Raises
        ------
        AllDevicesLostError, DeviceError
            If devices do not tell what must be known.
        """

    @abstractmethod
    def aggregates(self, server_round: int) -> bool:
        """Say whether fronts come back at the end of a round, from 1."""

    def is_forced(self, server_round: int) -> bool:
        """Say whether fronts come back then only because it is the last round."""
        endless = copy.copy(self)
        endless.last_round = None
        return not endless.aggregates(server_round)

    @abstractmethod
    def begin(self, device: int, begin: Begin) -> Begin:
        """Return what a device is told at the start of training."""

    @abstractmethod
    def begin_evaluation(self, device: int, begin: Begin) -> Begin:
        """Return what a device is told before it is evaluated."""

    @abstractmethod
    def forget(self, device: int) -> None:
        """Note that a device does not have the front that it should have."""

    @abstractmethod
    def at_cut(self, device: int) -> CutMask:
        """Return which channels of the smashed data a device computes."""

    @abstractmethod
    def receive(self, device: int, reply: TrainReply) -> State | None:
        """Return the part of the front that came back, or None if it stays there.

        Raises
        ------
        DeviceError
            If what came is not what was asked for, or cannot be decoded.
        """

    def meet(self, num_examples: Mapping[int, int]) -> Mapping[int, Mean]:
        """Average the fronts that came within a round; return what follows on them.

        Parameters
        ----------
        num_examples : mapping of int to int
            Of devices whose fronts `receive` was given since: what each trained on in
            the period.

        Raises
        ------
        DivergedError
            If a mean cannot be sent.
        """
        raise NotImplementedError

    @abstractmethod
    def complete(
        self, parts: Mapping[int, State], num_examples: Mapping[int, int]
    ) -> Mapping[int, State]:
        """Return the whole front of each device, by device, fit for a plain mean.

        Raises
        ------
        DeviceError
            If a part is not of this front.
        """

    @abstractmethod
    def advance(self, averaged: State) -> State:
        """Take the mean of what `complete` returned; return the front to be served."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return, after a round that aggregates, what the next one goes on from."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, with devices that kept no front."""

    @abstractmethod
    def summary(self) -> list[str]:
        """Return what a user should read of it at the start, a line each."""


class WholeFronts(ServerFronts):
    """The null form: every device is given the whole front in every round."""

    def __init__(self) -> None:
        self.full = {}
        # What devices were last given: the front that was served, or handed on.
        self._given: State = {}

    def take(self, served: State) -> State:
        """Return the front that was served."""
        self.full = served
        return served

    def prepare(
        self,
        link: Link,
        devices: Mapping[int, int],
        accounts: Accounts,
        train_round: int | None,
    ) -> None:
        """Ask nothing."""

    def aggregates(self, server_round: int) -> bool:
        """Return True."""
        return True

    def begin(self, device: int, begin: Begin) -> Begin:
        """Return what all devices are told."""
        self._given = begin.front or {}
        return begin

    def begin_evaluation(self, device: int, begin: Begin) -> Begin:
        """Return what all devices are told."""
        return begin

    def forget(self, device: int) -> None:
        """No front stays on a device."""

    def at_cut(self, device: int) -> CutMask:
        """Return all channels."""
        return FullCutMask()

    def receive(self, device: int, reply: TrainReply) -> State | None:
        """Return the front that came back.

        Raises
        ------
        DeviceError
            If none came, or one that cannot be averaged.
        """
        if reply.front is None:
            raise DeviceError(f"device {device} did not send its front")
        require_front(device, reply.front, self._given)
        return reply.front

    def complete(
        self, parts: Mapping[int, State], num_examples: Mapping[int, int]
    ) -> Mapping[int, State]:
        """Return the fronts: they are whole."""
        return parts

    def advance(self, averaged: State) -> State:
        """Return the mean in the front's own dtypes."""
        self.full = in_dtypes_of(averaged, self.full)
        return self.full

    def state(self) -> dict[str, Any]:
        """Return nothing: the front is whole in each round."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take nothing."""

    def summary(self) -> list[str]:
        """Return no line."""
        return []


def require_front(device: int, front: State, like: State) -> None:
    """Refuse a device's front that cannot be averaged.

    Raises
    ------
    DeviceError
        If it has other keys or shapes than `like`, another kind of numbers, or holds
        NaN or infinity.
    """
    try:
        problems = misfits(front, like)
    except DecodeError as error:
        raise DeviceError(f"the front of device {device}: {error}") from error
    problems += [
        f"{name!r} is {front[name].dtype} instead of {old.dtype}"
        for name, old in like.items()
        if not problems and _kind(front[name]) != _kind(old)
    ]
    if not problems:
        bad = [n for n, t in front.items() if not bool(torch.isfinite(t).all())]
        problems = [f"{name!r} holds NaN or infinity" for name in bad]
    if problems:
        # A few tell which model it is.
        raise DeviceError(
            f"the front of device {device} is not one of the server's: "
            f"{'; '.join(problems[:3])}"
        )


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()
