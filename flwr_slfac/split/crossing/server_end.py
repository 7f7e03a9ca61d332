"""The server's end of a device's stream: decoder, features, encoder of gradients."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flwr_slfac.codec import Codec, Feedback, Memory, decode, encode
from flwr_slfac.errors import (
    DecodeError,
    DeviceError,
    DivergedError,
    EncodeError,
    SettingError,
    TrainingError,
)
from flwr_slfac.lightweight.pruning import CutMask
from flwr_slfac.memory_order import in_memory_order, memory_order
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.features import CutFeature, Passage, ServerMemory, passages
from flwr_slfac.split.limits import CutSize
from flwr_slfac.split.place import Moment, Place
from flwr_slfac.split.protocol import Smashed


@dataclass(frozen=True)
class Batch:
    """One device's decoded smashed data.

    Parameters
    ----------
    activations : Tensor
        Of all channels, the batch first.
    targets : Tensor
        As many, first dimension.
    num_examples : int
        How many.
    """

    activations: torch.Tensor
    targets: torch.Tensor
    num_examples: int


@dataclass(frozen=True)
class ServerSide:
    """What the server's ends of all devices share.

    Parameters
    ----------
    down : Codec
        Of the gradients.
    features : sequence of (CutFeature, ServerMemory)
        In the order of sending, each with what the run remembers of it.
    size : CutSize
        How large the tensors of a device may be.
    where : torch.device
        Of the back.
    """

    down: Codec
    features: Sequence[tuple[CutFeature, ServerMemory]]
    size: CutSize
    where: torch.device

    def end_step(self) -> None:
        """Take note that all devices' smashed data of a step were trained on."""
        for _, memory in self.features:
            memory.end_step()

    def forget(self, device: int) -> None:
        """Forget what a device at fault sent in this step, by partition id."""
        for _, memory in self.features:
            memory.forget(device)


class ServerEnd:
    """The server's end of one device's stream in one phase of a round.

    Parameters
    ----------
    side : ServerSide
        What is common to all devices.
    place : Place
        The device in the round.
    channels : CutMask
        Which channels of the smashed data the device's front computes.
    accounts : Accounts
        Where what crosses is entered.
    down : dict of str to Tensor
        What the encoder remembers of earlier rounds.

    Attributes
    ----------
    down : dict of str to Tensor
        What it remembers now.
    """

    def __init__(
        self,
        side: ServerSide,
        place: Place,
        channels: CutMask,
        accounts: Accounts,
        down: Memory,
    ) -> None:
        self.down = down
        self._side, self._place, self._channels = side, place, channels
        self._accounts = accounts
        self._up: Memory = {}
        self._ways: list[Passage] = []

    def receive(self, smashed: Smashed, step: int) -> Batch:
        """Decode a training batch to its full shape and enter its bytes.

        Raises
        ------
        DeviceError
            If it cannot be decoded, or is not of one batch.
        DivergedError
            If the activations hold NaN or infinity.
        """
        return self._receive(smashed, step, self._side.features, self._up)

    def receive_test(self, smashed: Smashed, index: int) -> Batch:
        """Do the same for a test batch, which was coded on its own."""
        features = [(f, m) for f, m in self._side.features if f.in_evaluation]
        return self._receive(smashed, index, features, {})

    def _receive(
        self,
        smashed: Smashed,
        step: int,
        features: Sequence[tuple[CutFeature, ServerMemory]],
        memory: Memory,
    ) -> Batch:
        start = time.perf_counter()
        device, moment = self._place.device, self._place.at(step)
        try:
            # Targets first: their frame is at least as long as there are examples, so
            # that a short frame of activations cannot claim many.
            targets = self._decode(smashed.targets, {}, len(smashed.targets))
            limit = self._side.size.limit(len(targets))
            sent = self._decode(smashed.activations, memory, limit)
            full = self._restore(sent, smashed.shape, step, features, limit)
            activations = in_memory_order(full, smashed.memory_order)
        except (DecodeError, SettingError, TrainingError, TypeError) as error:
            raise DeviceError(
                f"{moment} sent smashed data that cannot be decoded: {error}"
            ) from error
        _require_finite(activations, moment)
        num_examples = smashed.num_examples
        shapes = tuple(activations.shape), tuple(targets.shape)
        if any(shape[:1] != (num_examples,) for shape in shapes) or num_examples < 1:
            raise DeviceError(
                f"{moment} sent activations of shape {shapes[0]} and targets of shape "
                f"{shapes[1]} for {num_examples} examples"
            )
        seconds = time.perf_counter() - start
        self._accounts.frame(device, "up", smashed.activations, activations, seconds)
        self._accounts.frame(device, "targets", smashed.targets, targets)
        return Batch(activations, targets, smashed.num_examples)

    def _decode(self, frame: bytes, memory: Memory, limit: int) -> torch.Tensor:
        side = self._side
        side.size.limits.require_frame(frame)
        return decode(frame, max_elements=limit, memory=memory, device=side.where)

    def _restore(
        self,
        sent: torch.Tensor,
        shape: tuple[int, ...],
        step: int,
        features: Sequence[tuple[CutFeature, ServerMemory]],
        limit: int,
    ) -> torch.Tensor:
        """Return activations of all channels from what was sent of them."""
        shape = shape or tuple(sent.shape)
        if min(shape, default=0) < 0 or math.prod(shape) > limit:
            raise DecodeError(
                f"activations of shape {shape} are no shape, or above the limit of "
                f"{limit} elements"
            )
        moment = self._place.at(step)
        self._ways = passages([f for f, _ in features], shape, moment)
        memories = [memory for _, memory in features]
        for way, memory in zip(reversed(self._ways), reversed(memories), strict=True):
            if tuple(sent.shape) != way.shape:
                raise DecodeError(
                    f"they have shape {tuple(sent.shape)}, which is not what is sent "
                    f"of {shape}: {way.shape}"
                )
            sent = way.receive(sent, memory, self._channels)
        return self._channels.scatter(sent)

    def send(self, gradient: torch.Tensor, step: int) -> tuple[bytes, tuple[int, ...]]:
        """Code the part of a full gradient that the device can use.

        Returns
        -------
        frame : bytes
            The code.
        order : tuple of int
            The part's `memory_order`.

        Raises
        ------
        DivergedError
            If the gradient holds NaN or infinity.
        """
        start = time.perf_counter()
        moment = self._place.at(step)
        part = self._channels.gather(gradient)
        for way in self._ways:
            part = way.select(part)
        try:
            frame = encode(
                part,
                self._side.down,
                role="gradient",
                seed=moment.seed_of("down"),
                memory=self.down,
            )
        except EncodeError as error:
            raise DivergedError(
                f"the cut-layer gradient of {moment} cannot be coded: {error}"
            ) from error
        seconds = time.perf_counter() - start
        self._accounts.frame(self._place.device, "down", frame, gradient, seconds)
        return frame, memory_order(part)


def _require_finite(activations: torch.Tensor, moment: Moment) -> None:
    if activations.is_floating_point() and not bool(activations.isfinite().all()):
        raise DivergedError(
            f"the activations of {moment} hold NaN or infinity; lower the learning "
            "rate, clip gradients, or look at that device's data"
        )


def require_places(features: Sequence[CutFeature], *codecs: Codec) -> None:
    """Refuse codecs that keep a residual by place where the places change.

    Raises
    ------
    SettingError
        If a codec has error feedback and a feature sends other places at each step.
    """
    feedback = any(isinstance(codec, Feedback) for codec in codecs)
    moving = [f.feature_id for f in features if f.moves_places]
    if feedback and moving:
        raise SettingError(
            f"error feedback keeps what was lost place by place, and {moving[0]} at "
            "the cut sends other places at each step; use one of them"
        )
