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

Where fronts are averaged within the round, every I steps, at t = I, 2 I, ... < T::

    TrainRequest(step t, gradient t-1) ------>   backward t-1
                                       <------   TrainReply(front)
    TrainRequest(step t, front)        ------>   forward t, from the mean
                                       <------   TrainReply(smashed t)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr_slfac.codec import Codec, Memory
from flwr_slfac.lightweight import DeviceConfig, StepCost
from flwr_slfac.lightweight.pruning import Channels
from flwr_slfac.split.features import CutFeature
from flwr_slfac.states import State
from flwr_slfac.traffic import Direction


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
    up : Codec
        Codec of the activations.
    release : str
        Release of flwr-slfac on the server; the device refuses another minor one.
    min_batch : int
        Smallest batch that the server-side model can train on.
    proximal_mu : float
        Weight of FedProx's proximal term, 0 for none.
    config : DeviceConfig
        What lightweight training asks of the device; the default is plain training.
    cut_features : tuple of CutFeature
        What is done to the smashed data, in the order of sending.
    mask : bytes
        Which part of the front the device holds (`Mask.to_bytes`); empty for all.
    version : int
        Number of the aggregated front that the device's front comes from.
    aggregate : bool
        Whether the front travels up at the end of the round, or stays on the device.
    told : mapping of str to number, bool, text, bytes or list of one of these
        What else the server's strategy says to the device.
    pipeline_depth : int
        1 if each forward is to run before the update of the step before.
    """

    server_round: int
    seed: int
    front: State | None
    up: Codec
    release: str
    min_batch: int = 1
    proximal_mu: float = 0.0
    config: DeviceConfig = field(default_factory=DeviceConfig)
    cut_features: tuple[CutFeature, ...] = ()
    mask: bytes = b""
    version: int = 0
    aggregate: bool = True
    told: Mapping[str, Any] = field(default_factory=dict)
    pipeline_depth: int = 0


@dataclass(frozen=True)
class Piece:
    """Bytes that a link carried besides frames: models, or the records around them.

    Parameters
    ----------
    direction : str
        As in `flwr_slfac.traffic`.
    num_bytes : int
        What was handed to the transport.
    raw_bytes : int
        The same values in float32; 0 where nothing is a tensor.
    """

    direction: Direction
    num_bytes: int
    raw_bytes: int = 0


@dataclass(frozen=True)
class TrainRequest:
    """One fused step: backward of step - 1 (if a gradient is here), forward of step.

    Parameters
    ----------
    step : int
        The step of the round, from 0.
    begin : Begin or None
        In the first request of a round.
    gradient : bytes or None
        Frame of the cut-layer gradient of the step before.
    memory_order : tuple of int
        Of that gradient: see `flwr_slfac.memory_order`.
    front : mapping of str to Tensor or None
        Within a round: the mean of fronts that the device is to go on from.
    update : bytes or None
        Instead of `front`: its difference to what the server sent before, quantized.
    mask : bytes
        Beside a whole `front`: the mask that it is under from here on; empty for none.
    """

    step: int
    begin: Begin | None = None
    gradient: bytes | None = None
    memory_order: tuple[int, ...] = ()
    front: State | None = None
    update: bytes | None = None
    mask: bytes = b""


@dataclass(frozen=True)
class Smashed:
    """One batch's activations and targets, as frames.

    Parameters
    ----------
    activations, targets : bytes
        Frames of a codec.
    num_examples : int
        Size of the batch.
    shape, memory_order : tuple of int
        Of the front's activations, the shape where that of the frame differs from it;
        see `flwr_slfac.memory_order`.
    order : tuple of int
        With a round's first batch: what `known_order` tells of which samples follow.
    """

    activations: bytes
    targets: bytes
    num_examples: int
    shape: tuple[int, ...] = ()
    memory_order: tuple[int, ...] = ()
    order: tuple[int, ...] = ()


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
        Set unless this is the last reply, or brings a front within the round.
    done : bool
        Whether this is the last reply.
    front : mapping of str to Tensor or None
        In the last reply of a round that aggregates, and at each end of a period within
        it: the trained front.
    update : bytes or None
        Instead of `front`: its difference to what the server sent, quantized.
    wants_front : bool
        The device does not have the front that it is to go on with; nothing was done.
    cost : StepCost or None
        In the last reply, where asked for: what a step costs.
    metrics : mapping of str to number or list of numbers
        In the last reply: what the device adds to the metrics of the round.
    kept : tuple of str
        In the last reply: what the device keeps for later rounds, of `lasting.KEPT`.
    compute_s, codec_s : float
        Seconds that the device spent on forward and backward, and on its codec.
    carried : tuple of Piece
        What the link carried for the request and this reply, frames left out.
    """

    device: int
    num_steps: int
    smashed: Smashed | None = None
    done: bool = False
    front: State | None = None
    update: bytes | None = None
    wants_front: bool = False
    cost: StepCost | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    compute_s: float = 0.0
    codec_s: float = 0.0
    carried: tuple[Piece, ...] = ()


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
    carried: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Description:
    """What a device says of itself.

    Parameters
    ----------
    device : int
        Partition id.
    profile : mapping
        `Device.profile`.
    channels : Channels or None
        Where asked for: the channels that can leave its front. Their shapes are those
        of the receiver's front: see `Channels.fitted`.
    carried : tuple of Piece
        What the link carried for this description.
    """

    device: int
    profile: Mapping[str, Any]
    channels: Channels | None = None
    carried: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A device in the midst of a round, for `DeviceHalf.restore`.

    Parameters
    ----------
    begin : Begin
        What it was told at the start, without the front.
    batch : str or None
        Fingerprint of the batch of its last forward; None if it evaluates.
    step : int
        Its last forward, -1 before the first.
    paused : bool
        Whether its update is done, too, and the device waits for a mean of fronts.
    front : dict
        `DeviceFront.state`; ``buffers`` from before that forward, or of now if paused.
    memory : tuple of dict
        `DeviceEnd.state`.
    """

    begin: Begin
    batch: str | None
    step: int
    front: dict[str, Any]
    memory: tuple[Memory, Memory, Memory]
    paused: bool = False


@dataclass(frozen=True)
class Lost:
    """A device that gave no answer that can be used.

    Parameters
    ----------
    reason : str
        Why.
    device : int or None
        Its partition id, where it is known.
    at_fault : bool
        Whether it refused or sent what cannot be read, and did not just vanish.
    """

    reason: str
    device: int | None = None
    at_fault: bool = False


TrainAnswer = TrainReply | Lost
EvaluateAnswer = EvaluateReply | Lost
