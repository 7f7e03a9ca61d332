"""The server's end of a device's stream: features, encoder of gradients, bytes."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from flwr_slfac.codec import Codec, Feedback, Memory, encode, restart
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
from flwr_slfac.split.crossing.decoder import Decoded
from flwr_slfac.split.crossing.server_side import ServerSide
from flwr_slfac.split.features import CutFeature, Passage, ServerMemory, passages
from flwr_slfac.split.lasting import recalled, remembered
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
class Encoded:
    """A device's part of a gradient, coded.

    Parameters
    ----------
    frame : bytes
        The code.
    memory_order : tuple of int
        The part's.
    seconds : float
        How long it took.
    """

    frame: bytes
    memory_order: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class Part:
    """What a device can use of a full gradient.

    Parameters
    ----------
    gradient : Tensor
        Of what was sent.
    activations : Tensor, optional
        The same part of what it is the gradient of, if the codec wants it.
    """

    gradient: torch.Tensor
    activations: torch.Tensor | None


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
        self._ways: list[Passage] = []
        self._activations: torch.Tensor | None = None

    def renew(self, channels: CutMask) -> None:
        """Go on with a device under another mask, as from one round to the next."""
        lasting = remembered(restart(self.down), self._channels)
        self.down, self._channels = recalled(lasting, channels), channels

    def receive(self, smashed: Smashed, decoded: Future[Decoded], step: int) -> Batch:
        """Bring a training batch to its full shape and enter its bytes.

        Parameters
        ----------
        smashed : Smashed
            What came.
        decoded : Future of Decoded
            What this device's `Decoder` makes of it, or raises.
        step : int
            The step of the round, from 0.

        Raises
        ------
        DeviceError
            If it cannot be decoded, or is not of one batch.
        DivergedError
            If the activations hold NaN or infinity.
        """
        batch = self._receive(smashed, decoded, step, self._side.features)
        if self._side.down.wants_activations:
            self._activations = batch.activations
        return batch

    def receive_test(
        self, smashed: Smashed, decoded: Future[Decoded], index: int
    ) -> Batch:
        """Do the same for a test batch, which a `Decoder` of its own decodes."""
        features = [(f, m) for f, m in self._side.features if f.in_evaluation]
        return self._receive(smashed, decoded, index, features)

    def _receive(
        self,
        smashed: Smashed,
        decoded: Future[Decoded],
        step: int,
        features: Sequence[tuple[CutFeature, ServerMemory]],
    ) -> Batch:
        device, moment = self._place.device, self._place.at(step)
        try:
            frames = decoded.result()
            start = time.perf_counter()
            full = self._restore(frames, smashed.shape, step, features)
            activations = in_memory_order(full, smashed.memory_order)
        except (DecodeError, SettingError, TrainingError, TypeError) as error:
            raise DeviceError(
                f"{moment} sent smashed data that cannot be decoded: {error}"
            ) from error
        _require_finite(activations, moment)
        num_examples, targets = smashed.num_examples, frames.targets
        shapes = tuple(activations.shape), tuple(targets.shape)
        if any(shape[:1] != (num_examples,) for shape in shapes) or num_examples < 1:
            raise DeviceError(
                f"{moment} sent activations of shape {shapes[0]} and targets of shape "
                f"{shapes[1]} for {num_examples} examples"
            )
        seconds = frames.seconds + time.perf_counter() - start
        self._accounts.frame(device, "up", smashed.activations, activations, seconds)
        self._accounts.frame(device, "targets", smashed.targets, targets)
        return Batch(activations, targets, smashed.num_examples)

    def _restore(
        self,
        frames: Decoded,
        shape: tuple[int, ...],
        step: int,
        features: Sequence[tuple[CutFeature, ServerMemory]],
    ) -> torch.Tensor:
        """Return activations of all channels from what was sent of them."""
        sent, limit = frames.sent, frames.limit
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

    def part_of(self, gradient: torch.Tensor) -> Part:
        """Return the part of a full gradient that the device can use."""
        activations, self._activations = self._activations, None
        return Part(
            self._select(gradient),
            None if activations is None else self._select(activations.detach()),
        )

    def _select(self, full: torch.Tensor) -> torch.Tensor:
        part = self._channels.gather(full)
        for way in self._ways:
            part = way.select(part)
        return part

    def encode(self, part: Part, step: int) -> Encoded:
        """Code such a part; may run on any thread, one step of this device at a time.

        Raises
        ------
        DivergedError
            If the gradient holds NaN or infinity.
        """
        start = time.perf_counter()
        moment = self._place.at(step)
        try:
            frame = encode(
                part.gradient,
                self._side.down,
                role="gradient",
                seed=moment.seed_of("down"),
                memory=self.down,
                activations=part.activations,
            )
        except EncodeError as error:
            raise DivergedError(
                f"the cut-layer gradient of {moment} cannot be coded: {error}"
            ) from error
        return Encoded(frame, memory_order(part.gradient), time.perf_counter() - start)

    def sent(self, encoded: Encoded, gradient: torch.Tensor) -> None:
        """Enter what was sent of a full gradient."""
        device, seconds = self._place.device, encoded.seconds
        self._accounts.frame(device, "down", encoded.frame, gradient, seconds)


def _require_finite(activations: torch.Tensor, moment: Moment) -> None:
    if activations.is_floating_point() and not bool(activations.isfinite().all()):
        raise DivergedError(
            f"the activations of {moment} hold NaN or infinity; lower the learning "
            "rate, clip gradients, or look at that device's data"
        )


def require_places(features: Sequence[CutFeature], *codecs: Codec) -> None:
    """Refuse codecs that remember values by place where the places change.

    Raises
    ------
    SettingError
        If a codec has error feedback or remembers samples, and a feature sends other
        places at each step.
    """
    samples = any(codec.needs_samples for codec in codecs)
    feedback = any(isinstance(codec, Feedback) for codec in codecs)
    moving = [f.feature_id for f in features if f.moves_places]
    if feedback and moving:
        raise SettingError(
            f"error feedback keeps what was lost place by place, and {moving[0]} at "
            "the cut sends other places at each step; use one of them"
        )
    if samples and moving:
        raise SettingError(
            "the codec 'temporal' predicts a sample's values place by place, and "
            f"{moving[0]} at the cut sends other places at each step; use one of them"
        )
