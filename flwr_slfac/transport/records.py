"""The protocol's requests and replies as Flower records, and back.

A request or reply is one ConfigRecord named ``split``; models travel in an ArrayRecord
named ``arrays``, or ``mean`` where they come down within a round; frames of 1 MB and
more in an ArrayRecord named ``frames``, because Flower carries large Arrays faster than
large config values.
"""

import json
from dataclasses import asdict, replace

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from flwr_slfac.errors import TrainingError
from flwr_slfac.lightweight import StepCost
from flwr_slfac.split import (
    KEPT,
    Begin,
    Description,
    EvaluateReply,
    EvaluateRequest,
    Smashed,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.transport.begins import begin_of_fields, begin_to_fields
from flwr_slfac.transport.channels import channels_of_text, channels_to_text
from flwr_slfac.transport.record_state import RecordState, as_record
from flwr_slfac.transport.record_values import float_in, int_in, sizes_in
from flwr_slfac.transport.told import metrics_of_text, metrics_to_text

SPLIT, ARRAYS, FRAMES, MEAN = "split", "arrays", "frames", "mean"
STYPE = "slfac.v1"
# From here on Arrays are faster than config values: measured with Flower 1.41.
_LARGE_BYTES = 2**20


def put_frame(content: RecordDict, name: str, frame: bytes) -> None:
    """Store bytes under a name, in the kind of record that carries them faster."""
    if len(frame) < _LARGE_BYTES:
        content.config_records[SPLIT][name] = frame
        return
    frames = content.array_records.setdefault(FRAMES, ArrayRecord())
    frames[name] = Array("uint8", (len(frame),), STYPE, frame)


def get_frame(content: RecordDict, name: str) -> bytes | None:
    """Return the bytes stored under a name, or None."""
    value = content.config_records[SPLIT].get(name)
    if isinstance(value, bytes):
        return value
    frames = content.array_records.get(FRAMES)
    return frames[name].data if frames is not None and name in frames else None


def from_train_request(request: TrainRequest) -> RecordDict:
    """Return a training request as records."""
    content = RecordDict({SPLIT: ConfigRecord({"step": request.step})})
    _put_begin(content, request.begin)
    if request.gradient is not None:
        put_frame(content, "gradient", request.gradient)
    if request.memory_order:
        content.config_records[SPLIT]["memory-order"] = list(request.memory_order)
    if request.update is not None:
        put_frame(content, "update", request.update)
    if request.mask:
        put_frame(content, "mean-mask", request.mask)
    if request.front is not None:
        content[MEAN] = as_record(request.front)
    return content


def to_train_request(content: RecordDict) -> TrainRequest:
    """Read a training request."""
    config = _split(content)
    mean = content.array_records.get(MEAN)
    return TrainRequest(
        step=int_in(config, "step"),
        begin=get_begin(content),
        gradient=get_frame(content, "gradient"),
        memory_order=sizes_in(config, "memory-order"),
        front=None if mean is None else RecordState(mean),
        update=get_frame(content, "update"),
        mask=get_frame(content, "mean-mask") or b"",
    )


def from_train_reply(reply: TrainReply) -> RecordDict:
    """Return a training reply as records."""
    config = ConfigRecord(
        {
            "device": reply.device,
            "num-steps": reply.num_steps,
            "compute-s": reply.compute_s,
            "codec-s": reply.codec_s,
        }
    )
    for name, present in (("done", reply.done), ("wants-front", reply.wants_front)):
        if present:
            config[name] = True
    if reply.cost is not None:
        config["cost"] = json.dumps(asdict(reply.cost))
    if reply.metrics:
        config["metrics"] = metrics_to_text(reply.metrics)
    if reply.kept:
        config["kept"] = " ".join(reply.kept)
    content = RecordDict({SPLIT: config})
    if reply.smashed is not None:
        _put_smashed(content, "", reply.smashed)
    if reply.update is not None:
        put_frame(content, "update", reply.update)
    if reply.front is not None:
        content[ARRAYS] = as_record(reply.front)
    return content


def to_train_reply(content: RecordDict) -> TrainReply:
    """Read a training reply."""
    config = _split(content)
    arrays = content.array_records.get(ARRAYS)
    return TrainReply(
        device=int_in(config, "device"),
        num_steps=int_in(config, "num-steps"),
        smashed=_get_smashed(content, ""),
        done=bool(config.get("done", False)),
        front=None if arrays is None else RecordState(arrays),
        update=get_frame(content, "update"),
        wants_front=bool(config.get("wants-front", False)),
        cost=_get_cost(config),
        metrics=metrics_of_text(str(config.get("metrics", "{}"))),
        kept=tuple(k for k in str(config.get("kept", "")).split() if k in KEPT),
        compute_s=float_in(config, "compute-s"),
        codec_s=float_in(config, "codec-s"),
    )


def from_evaluate_request(request: EvaluateRequest) -> RecordDict:
    """Return an evaluation request as records."""
    config = ConfigRecord({"first": request.first, "max-bytes": request.max_bytes})
    content = RecordDict({SPLIT: config})
    _put_begin(content, request.begin)
    return content


def to_evaluate_request(content: RecordDict) -> EvaluateRequest:
    """Read an evaluation request."""
    config = _split(content)
    return EvaluateRequest(
        first=int_in(config, "first"),
        max_bytes=int_in(config, "max-bytes"),
        begin=get_begin(content),
    )


def from_evaluate_reply(reply: EvaluateReply) -> RecordDict:
    """Return an evaluation reply as records."""
    config = ConfigRecord(
        {
            "device": reply.device,
            "num-batches": reply.num_batches,
            "num-sent": len(reply.batches),
            "compute-s": reply.compute_s,
            "codec-s": reply.codec_s,
        }
    )
    content = RecordDict({SPLIT: config})
    for index, smashed in enumerate(reply.batches):
        _put_smashed(content, f"{index}.", smashed)
    return content


def to_evaluate_reply(content: RecordDict) -> EvaluateReply:
    """Read an evaluation reply.

    Raises
    ------
    TrainingError
        If a batch or a number is missing.
    """
    config = _split(content)
    batches = []
    for index in range(int_in(config, "num-sent")):
        smashed = _get_smashed(content, f"{index}.")
        if smashed is None:
            raise TrainingError(f"an evaluation reply lacks its batch {index}")
        batches.append(smashed)
    return EvaluateReply(
        device=int_in(config, "device"),
        num_batches=int_in(config, "num-batches"),
        batches=batches,
        compute_s=float_in(config, "compute-s"),
        codec_s=float_in(config, "codec-s"),
    )


def _put_begin(content: RecordDict, begin: Begin | None) -> None:
    if begin is None:
        return
    config = content.config_records[SPLIT]
    for key, value in begin_to_fields(begin).items():
        config[key] = value
    if begin.mask:
        put_frame(content, "mask", begin.mask)
    if begin.front is not None:
        content[ARRAYS] = as_record(begin.front)


def get_begin(content: RecordDict) -> Begin | None:
    """Read what a request says at the start of a round, or None."""
    config = _split(content)
    if "release" not in config:
        return None
    arrays = content.array_records.get(ARRAYS)
    return replace(
        begin_of_fields(dict(config)),
        front=None if arrays is None else RecordState(arrays),
        mask=get_frame(content, "mask") or b"",
    )


def _put_smashed(content: RecordDict, prefix: str, smashed: Smashed) -> None:
    content.config_records[SPLIT][prefix + "num-examples"] = smashed.num_examples
    if smashed.shape:
        content.config_records[SPLIT][prefix + "shape"] = list(smashed.shape)
    if order := smashed.memory_order:
        content.config_records[SPLIT][prefix + "memory-order"] = list(order)
    if smashed.order:
        content.config_records[SPLIT][prefix + "order"] = list(smashed.order)
    put_frame(content, prefix + "activations", smashed.activations)
    put_frame(content, prefix + "targets", smashed.targets)


def _get_smashed(content: RecordDict, prefix: str) -> Smashed | None:
    activations = get_frame(content, prefix + "activations")
    targets = get_frame(content, prefix + "targets")
    if activations is None or targets is None:
        return None
    config = _split(content)
    num_examples = int_in(config, prefix + "num-examples")
    shape = sizes_in(config, prefix + "shape")
    orders = (sizes_in(config, prefix + key) for key in ("memory-order", "order"))
    return Smashed(activations, targets, num_examples, shape, *orders)


def from_description(description: Description) -> RecordDict:
    """Return a device's description as records."""
    config = ConfigRecord(
        {
            "device": description.device,
            "profile": json.dumps(dict(description.profile)),
        }
    )
    if description.channels is not None:
        config["channels"] = channels_to_text(description.channels)
    return RecordDict({SPLIT: config})


def to_description(content: RecordDict) -> Description:
    """Read a device's description.

    Raises
    ------
    TrainingError
        If the profile cannot be read.
    DecodeError
        If the channels cannot be read.
    """
    config = _split(content)
    try:
        profile = json.loads(str(config.get("profile", "")))
    except ValueError as error:
        raise TrainingError(f"a device's profile cannot be read: {error}") from error
    if not isinstance(profile, dict):
        raise TrainingError(f"a device's profile is {profile!r}, not names and values")
    text = config.get("channels")
    channels = None if text is None else channels_of_text(str(text))
    return Description(int_in(config, "device"), profile, channels)


def _get_cost(config: ConfigRecord) -> StepCost | None:
    text = config.get("cost")
    if text is None:
        return None
    try:
        return StepCost(**{k: int(v) for k, v in json.loads(str(text)).items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise TrainingError(f"a device's costs cannot be read: {error}") from error


def _split(content: RecordDict) -> ConfigRecord:
    record = content.config_records.get(SPLIT)
    if record is None:
        raise TrainingError(
            "a message holds no 'split' record; is the app on the other side built "
            "with flwr_slfac.client_app and SplitFed?"
        )
    return record
