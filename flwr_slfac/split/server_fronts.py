"""The server's side of fronts: handed out and taken back."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flwr_slfac.lightweight import Lightweight
from flwr_slfac.lightweight.pruning import CutMask
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.crossing import Batch
from flwr_slfac.split.features import CutFeature
from flwr_slfac.split.link import Link
from flwr_slfac.split.protocol import Begin, TrainReply
from flwr_slfac.states import State


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
    in_parts : bool
        Whether the server trains a part of devices' fronts for them.
    shapes : sequence of (tuple of int or None)
        Of smashed data of an example at cuts of devices' own, where they are known.
    """

    full: State
    setting: Lightweight | None = None
    last_round: int | None = None
    needs_devices = False
    hands_on = True
    unlike_parts = False
    cut_features: tuple[CutFeature, ...] = ()
    period_steps = 0
    in_parts = False
    shapes: Sequence[tuple[int, ...] | None] = ()

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

    def lift(self, device: int, batch: Batch, step: int) -> Batch:
        """Return a device's training batch as it is at the cut of the back.

        Raises
        ------
        DeviceError
            If what the device sent cannot be brought there.
        """
        return batch

    def lift_test(self, device: int, batch: Batch) -> Batch:
        """Return a device's test batch as it is at the cut of the back."""
        return batch

    def lower(self, device: int, gradient: torch.Tensor) -> torch.Tensor:
        """Return, of a gradient at the cut of the back, that at the device's cut."""
        return gradient

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

    def settings(self) -> dict[str, Any]:
        """Return what makes a run another one, `setting` aside."""
        return {}

    @abstractmethod
    def summary(self) -> list[str]:
        """Return what a user should read of it at the start, a line each."""
