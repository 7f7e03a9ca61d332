"""What server and device say to each other, whatever carries it.

::

    server                                       device
    TrainRequest(step 0, begin)        ------>   forward 0
                                       <------   TrainReply(smashed 0)
    TrainRequest(step 1, gradient 0)   ------>   backward 0, forward 1
                                       <------   TrainReply(smashed 1)
    ...
    TrainRequest(step T, gradient T-1) ------>   backward T-1
                                       <------   TrainReply(front)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from flwr_slfac.states import State


@dataclass(frozen=True)
class Begin:
    """What a device is told at the start of its work in a round.

    Parameters
    ----------
    server_round, seed : int
        The round, from 1, and the seed of the run.
    front : mapping of str to Tensor or None
        State dict of the device-side model, or the part that the mask leaves; None if
        the device goes on with the front that it kept.
    up : str
        Codec of the activations, as `parse_codec` reads it.
    release : str
        Release of flwr-slfac on the server; the device refuses another minor one.
    min_batch : int
        Smallest batch that the server-side model can train on.
    proximal_mu : float
        Weight of FedProx's proximal term, 0 for none.
    orders : str
        What lightweight training asks of the device (`Orders.to_text`); empty for
        plain training.
    mask : bytes
        Which part of the front the device holds; empty for all of it.
    version : int
        Number of the aggregated front that the device's front comes from.
    aggregate : bool
        Whether the front travels up at the end of the round, or stays on the device.
    """

    server_round: int
    seed: int
    front: State | None
    up: str
    release: str
    min_batch: int = 1
    proximal_mu: float = 0.0
    orders: str = ""
    mask: bytes = b""
    version: int = 0
    aggregate: bool = True


@dataclass(frozen=True)
class TrainRequest:
    """One fused step: backward of step - 1 (if a gradient is here), forward of step."""

    step: int
    begin: Begin | None = None
    gradient: bytes | None = None


@dataclass(frozen=True)
class Smashed:
    """One batch's activations and targets, as frames.

    Parameters
    ----------
    activations, targets : bytes
        Frames of a codec.
    num_examples : int
        Size of the batch.
    shape : tuple of int
        With dropout at the cut: the shape of the activations before it.
    """

    activations: bytes
    targets: bytes
    num_examples: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainReply:
    """A batch's smashed data, or what follows the last backward.

    Parameters
    ----------
    device : int
        Partition id of the device.
    num_steps : int
        Steps of this device in this round.
    smashed : Smashed or None
        Set unless this is the last reply.
    done : bool
        Whether this is the last reply.
    front : mapping of str to Tensor or None
        In the last reply of a round that aggregates: the trained front.
    update : bytes or None
        Instead of `front`: its difference to what the server sent, quantized.
    wants_front : bool
        The device does not have the front that it is to go on with; nothing was done.
    cost : str
        In the last reply of lightweight training: what a step costs, as JSON.
    compute_s, codec_s : float
        Seconds that the device spent on forward and backward, and on its codec.
    """

    device: int
    num_steps: int
    smashed: Smashed | None = None
    done: bool = False
    front: State | None = None
    update: bytes | None = None
    wants_front: bool = False
    cost: str = ""
    compute_s: float = 0.0
    codec_s: float = 0.0


@dataclass(frozen=True)
class EvaluateRequest:
    """Forward of test batches from `first` on, up to `max_bytes` of smashed data."""

    first: int
    max_bytes: int
    begin: Begin | None = None


@dataclass(frozen=True)
class EvaluateReply:
    """Smashed test batches; `num_batches` is how many the device has in all."""

    device: int
    num_batches: int
    batches: list[Smashed] = field(default_factory=list)
    compute_s: float = 0.0
    codec_s: float = 0.0


@dataclass(frozen=True)
class Description:
    """What a device says of itself.

    Parameters
    ----------
    device : int
        Partition id.
    profile : mapping
        `Device.profile`.
    channels : str
        Where asked for: the channels that can leave its front (`Channels.to_text`).
    """

    device: int
    profile: Mapping[str, Any]
    channels: str = ""


@dataclass(frozen=True)
class Lost:
    """A device that did not answer: why, and its partition id where it is known."""

    reason: str
    device: int | None = None


TrainAnswer = TrainReply | Lost
EvaluateAnswer = EvaluateReply | Lost
T = TypeVar("T")


class Link(Protocol):
    """Carries requests to devices, all at once, and their replies back."""

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Return the partition id of each reachable device by its key."""
        ...

    def describe(
        self, keys: list[int], *, channels: bool
    ) -> dict[int, Description | Lost]:
        """Ask devices for their descriptions, with channels where wanted."""
        ...

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Deliver training requests; every key is answered."""
        ...

    def evaluate(
        self, requests: Mapping[int, EvaluateRequest]
    ) -> dict[int, EvaluateAnswer]:
        """Deliver evaluation requests; every key is answered."""
        ...
