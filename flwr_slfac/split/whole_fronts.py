"""Whole fronts, for every device in every round: the null form of server fronts."""

from collections.abc import Mapping
from typing import Any

import torch

from flwr_slfac.errors import DecodeError, DeviceError
from flwr_slfac.lightweight.pruning import CutMask, FullCutMask
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.link import Link
from flwr_slfac.split.protocol import Begin, TrainReply
from flwr_slfac.split.server_fronts import ServerFronts
from flwr_slfac.states import State, in_dtypes_of, misfits


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
