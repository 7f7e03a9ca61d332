"""What may be done to the training of a front, each with its null form.

::

    forward ─Activations─► backward ─GradientRules─► optimizer ─FrontUpdate─► server
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from flwr_slfac.errors import DeviceError
from flwr_slfac.lightweight import FULL_BITS, DeviceConfig
from flwr_slfac.lightweight.activations import saved_in_8_bits, without_values
from flwr_slfac.lightweight.quantization import (
    pack_update,
    require_sendable,
    unpack_update,
)
from flwr_slfac.split.place import Moment
from flwr_slfac.split.protocol import TrainReply
from flwr_slfac.states import State


class Activations:
    """How activations are held from forward to backward; the null form: as they are."""

    def holding(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return the context that a forward of the network runs in."""
        return nullcontext()

    def handle(self, sent: torch.Tensor) -> torch.Tensor:
        """Return what backward begins at once `sent` is on the wire."""
        return sent


class CodedActivations(Activations):
    """Activations held in 8 bits; what was sent is not held at all."""

    def holding(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return `saved_in_8_bits`."""
        return saved_in_8_bits(network)

    def handle(self, sent: torch.Tensor) -> torch.Tensor:
        """Return a tensor without values whose backward is that of `sent`."""
        return without_values(sent)


def activations_of(config: DeviceConfig) -> Activations:
    """Return how a configuration holds activations."""
    return Activations() if config.saved_bits == FULL_BITS else CodedActivations()


class FrontUpdate:
    """How a trained front comes back, both ends; the null form: whole.

    Attributes
    ----------
    reference : mapping of str to Tensor
        On the device: what the server sent, where that is needed.
    """

    def __init__(self) -> None:
        self.reference: State = {}

    def start(self, part: Callable[[], State]) -> None:
        """Take note, on the device, of the front that the server holds too."""

    def pack(
        self, part: State, moment: Moment, residual: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        """Return the fields of `TrainReply` that bring a front back.

        Parameters
        ----------
        part : mapping of str to Tensor
            The trained front.
        moment : Moment
            What noise is a function of.
        residual : dict of str to Tensor
            What earlier updates left unsent; changed to what this one leaves.
        """
        return {"front": part}

    def unpack(self, device: int, reply: TrainReply, given: State) -> State:
        """Return, on the server, the front that a reply brings.

        Parameters
        ----------
        device : int
            Partition id.
        reply : TrainReply
            The device's last one.
        given : mapping of str to Tensor
            What the device was sent.

        Raises
        ------
        DeviceError
            If it comes in another way than was asked for.
        DecodeError
            If it cannot be decoded.
        """
        if reply.front is None:
            raise _unasked(device, "quantized")
        return reply.front


class QuantizedUpdate(FrontUpdate):
    """The difference to what the server sent, quantized by QSGD.

    Parameters
    ----------
    bits, bucket : int
        As ``update_bits`` and ``bucket`` of `Lightweight`.
    error_feedback : bool
        Whether what an update lost is added to the next one.
    """

    def __init__(self, bits: int, bucket: int, error_feedback: bool) -> None:
        super().__init__()
        self._bits, self._bucket, self._feedback = bits, bucket, error_feedback

    def start(self, part: Callable[[], State]) -> None:
        """Keep the front that was sent.

        Raises
        ------
        SettingError
            If updates of such a front cannot be quantized.
        """
        self.reference = part()
        require_sendable(self.reference)

    def pack(
        self, part: State, moment: Moment, residual: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        """Return the quantized difference to the reference."""
        update = pack_update(
            part,
            self.reference,
            self._bits,
            moment.generator("update"),
            bucket=self._bucket,
            residual=residual if self._feedback else None,
        )
        return {"update": update}

    def unpack(self, device: int, reply: TrainReply, given: State) -> State:
        """Return what was sent, moved by the update.

        Raises
        ------
        DeviceError
            If the front came in full.
        DecodeError
            If the update cannot be decoded.
        """
        if reply.update is None:
            raise _unasked(device, "in full")
        return unpack_update(reply.update, given)


def update_of(config: DeviceConfig) -> FrontUpdate:
    """Return how fronts come back under a configuration."""
    if config.update_bits == FULL_BITS:
        return FrontUpdate()
    return QuantizedUpdate(config.update_bits, config.bucket, config.error_feedback)


def _unasked(device: int, how: str) -> DeviceError:
    return DeviceError(f"device {device} sent its front {how}, and was not asked to")
