"""What a device answers, as messages of slfac.proto and back."""

import json
from dataclasses import asdict

from flwr_slfac.errors import DecodeError, TrainingError
from flwr_slfac.lightweight import StepCost
from flwr_slfac.split import (
    KEPT,
    Description,
    EvaluateReply,
    Lost,
    Smashed,
    TrainReply,
)
from flwr_slfac.transport.answers import Reply
from flwr_slfac.transport.channels import channels_of_text, channels_to_text
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream.blobs import BlobReader, BlobWriter, StateBytes
from flwr_slfac.transport.stream.wire import Packed
from flwr_slfac.transport.told import metrics_of_text, metrics_to_text

_LONGEST_REASON = 2000  # several lines: longer texts are those of a hostile device


def pack_reply(reply: Reply | Lost) -> Packed:
    """Return a reply as a message.

    Raises
    ------
    SettingError
        If the front cannot be carried.
    """
    head, writer = pb.Reply(), BlobWriter()
    if isinstance(reply, TrainReply):
        _put_train(reply, head.train, writer)
    elif isinstance(reply, EvaluateReply):
        _put_evaluate(reply, head.evaluate, writer)
    elif isinstance(reply, Description):
        head.describe.device = reply.device
        head.describe.profile_blob = writer.put_text(json.dumps(dict(reply.profile)))
        if reply.channels is not None:
            text = channels_to_text(reply.channels)
            head.describe.channels_blob = writer.put_text(text)
    else:
        head.refused.reason = reply.reason[:_LONGEST_REASON]
        head.refused.at_fault = reply.at_fault
    return Packed(head, tuple(writer.blobs))


def unpack_reply(packed: Packed) -> Reply | Lost:
    """Read a reply; `Lost` is one that refuses.

    Raises
    ------
    DecodeError, TrainingError
        If it is none, or a part is missing.
    """
    head, reader = packed.head, BlobReader(packed.blobs)
    kind = head.WhichOneof("kind")
    if kind == "train":
        return _get_train(head.train, reader)
    if kind == "evaluate":
        return _get_evaluate(head.evaluate, reader)
    if kind == "describe":
        return _get_description(head.describe, reader)
    if kind == "refused":
        refused = head.refused
        reason = refused.reason[:_LONGEST_REASON]
        said = f"refused: {reason}" if refused.at_fault else reason
        return Lost(said, at_fault=refused.at_fault)
    raise DecodeError("a reply holds nothing that is known here")


def _put_train(reply: TrainReply, into: pb.TrainReply, writer: BlobWriter) -> None:
    into.device, into.num_steps = reply.device, reply.num_steps
    into.done, into.wants_front = reply.done, reply.wants_front
    into.compute_s, into.codec_s = reply.compute_s, reply.codec_s
    if reply.smashed is not None:
        _put_smashed(reply.smashed, into.smashed, writer)
    into.update_blob = writer.put(reply.update)
    if reply.front is not None:
        writer.put_state(StateBytes(reply.front), into.front)
    if reply.cost is not None:
        into.cost.values.update(asdict(reply.cost))
    if reply.metrics:
        into.metrics_blob = writer.put_text(metrics_to_text(reply.metrics))
    into.kept.extend(reply.kept)


def _get_train(reply: pb.TrainReply, reader: BlobReader) -> TrainReply:
    has_smashed = reply.HasField("smashed")
    return TrainReply(
        device=reply.device,
        num_steps=reply.num_steps,
        smashed=_get_smashed(reply.smashed, reader) if has_smashed else None,
        done=reply.done,
        front=reader.state(reply.front) if reply.HasField("front") else None,
        update=reader.get(reply.update_blob),
        wants_front=reply.wants_front,
        cost=_get_cost(reply.cost) if reply.HasField("cost") else None,
        metrics=metrics_of_text(reader.text(reply.metrics_blob) or "{}"),
        compute_s=reply.compute_s,
        codec_s=reply.codec_s,
        kept=tuple(name for name in reply.kept if name in KEPT),
    )


def _put_evaluate(
    reply: EvaluateReply, into: pb.EvaluateReply, writer: BlobWriter
) -> None:
    into.device, into.num_batches = reply.device, reply.num_batches
    into.compute_s, into.codec_s = reply.compute_s, reply.codec_s
    for smashed in reply.batches:
        _put_smashed(smashed, into.batches.add(), writer)


def _get_evaluate(reply: pb.EvaluateReply, reader: BlobReader) -> EvaluateReply:
    return EvaluateReply(
        device=reply.device,
        num_batches=reply.num_batches,
        batches=[_get_smashed(batch, reader) for batch in reply.batches],
        compute_s=reply.compute_s,
        codec_s=reply.codec_s,
    )


def _get_description(reply: pb.Description, reader: BlobReader) -> Description:
    try:
        profile = json.loads(reader.text(reply.profile_blob) or "{}")
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"a device's profile cannot be read: {error}") from error
    if not isinstance(profile, dict):
        raise TrainingError(f"a device's profile is {profile!r}, not names and values")
    text = reader.text(reply.channels_blob)
    channels = channels_of_text(text) if text else None
    return Description(reply.device, profile, channels)


def _put_smashed(smashed: Smashed, into: pb.Smashed, writer: BlobWriter) -> None:
    into.activations_blob = writer.put(smashed.activations)
    into.targets_blob = writer.put(smashed.targets)
    into.num_examples = smashed.num_examples
    into.shape.extend(smashed.shape)
    into.memory_order.extend(smashed.memory_order)
    into.order.extend(smashed.order)


def _get_smashed(smashed: pb.Smashed, reader: BlobReader) -> Smashed:
    return Smashed(
        reader.require(smashed.activations_blob, "activations"),
        reader.require(smashed.targets_blob, "targets"),
        smashed.num_examples,
        tuple(smashed.shape),
        tuple(smashed.memory_order),
        tuple(smashed.order),
    )


def _get_cost(cost: pb.StepCost) -> StepCost:
    try:
        return StepCost(**dict(cost.values))
    except TypeError as error:
        raise TrainingError(f"a device's costs cannot be read: {error}") from error
