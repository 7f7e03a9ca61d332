"""What may be done to the training of a front, each with its null form.

::

    forward ─Activations─► backward ─GradientRules─► optimizer ─FrontUpdate─► server
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from flwr_slfac.errors import DeviceError, TrainingError
from flwr_slfac.lightweight import FULL_BITS, DeviceConfig
from flwr_slfac.lightweight.activations import saved_in_8_bits, without_values
from flwr_slfac.lightweight.quantization import (
    pack_update,
    require_sendable,
    unpack_update,
)
from flwr_slfac.split.place import Moment
from flwr_slfac.split.protocol import TrainReply, TrainRequest
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
    residual : mapping of str to Tensor
        On the device: what updates left unsent.
    """

    def __init__(self) -> None:
        self.reference: State = {}
        self.residual: State = {}

    def start(self, part: Callable[[], State]) -> None:
        """Take note, on the device, of the front that the server holds too."""

    def pack(self, part: State, moment: Moment) -> tuple[dict[str, Any], State]:
        """Return the fields of `TrainReply` that bring a front, and the residual then.

        Nothing is changed, so that it may be asked for again.

        Parameters
        ----------
        part : mapping of str to Tensor
            The trained front.
        moment : Moment
            What noise is a function of.
        """
        return {"front": part}, {}

    def unpack(self, device: int, reply: TrainReply, given: State) -> State:
        """Return, on the server, the front that a reply brings.

        Parameters
        ----------
        device : int
            Partition id.
        reply : TrainReply
            The device's last one, or that of a period's end.
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

    def pack_mean(self, mean: State, given: State) -> tuple[dict[str, Any], State]:
        """Return, on the server, the fields of `TrainRequest` that bring a mean.

        Parameters
        ----------
        mean : mapping of str to Tensor
            The part that a device is to go on from.
        given : mapping of str to Tensor
            What it was sent before.

        Returns
        -------
        fields : dict
            Of the request.
        arrives : mapping of str to Tensor
            What the device then has.
        """
        return {"front": mean}, mean

    def unpack_mean(self, request: TrainRequest) -> State:
        """Return, on the device, the part to go on from; whole under another mask.

        Raises
        ------
        TrainingError
            If it comes in another way than was asked for.
        DecodeError
            If it cannot be decoded.
        """
        return _whole_mean(request)


class QuantizedUpdate(FrontUpdate):
    """The difference to what the server sent, quantized by QSGD.

    A mean on its way down is rounded to nearest: it is the difference of what the
    server holds to what the device has, so what one rounding lost is in the next.

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

    def pack(self, part: State, moment: Moment) -> tuple[dict[str, Any], State]:
        """Return the quantized difference to the reference."""
        residual = dict(self.residual)
        update = pack_update(
            part,
            self.reference,
            self._bits,
            moment.generator("update"),
            bucket=self._bucket,
            residual=residual if self._feedback else None,
        )
        return {"update": update}, residual

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

    def pack_mean(self, mean: State, given: State) -> tuple[dict[str, Any], State]:
        """Return the quantized difference to what the device was sent before.

        Raises
        ------
        DivergedError
            If a difference is above the largest bfloat16.
        """
        update = pack_update(
            mean,
            given,
            self._bits,
            torch.Generator(),
            bucket=self._bucket,
            residual={},
        )
        return {"update": update}, unpack_update(update, given)

    def unpack_mean(self, request: TrainRequest) -> State:
        """Return what was sent before, moved by the difference.

        Raises
        ------
        TrainingError
            If the mean came in full, or did not under another mask.
        DecodeError
            If it cannot be decoded.
        """
        if request.mask:
            return _whole_mean(request)
        if request.update is None:
            raise TrainingError("the server sent a mean in full, and was not to")
        return unpack_update(request.update, self.reference)


def update_of(config: DeviceConfig) -> FrontUpdate:
    """Return how fronts come back under a configuration."""
    if config.update_bits == FULL_BITS:
        return FrontUpdate()
    return QuantizedUpdate(config.update_bits, config.bucket, config.error_feedback)


def _whole_mean(request: TrainRequest) -> State:
    if request.front is None:
        raise TrainingError("the server sent a mean quantized, and was not to")
    return request.front


def _unasked(device: int, how: str) -> DeviceError:
    return DeviceError(f"device {device} sent its front {how}, and was not asked to")
