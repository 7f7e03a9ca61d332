"""What the server asks of a device, as messages of slfac.proto and back."""

from dataclasses import replace
from typing import Any

from flwr_slfac.errors import DecodeError
from flwr_slfac.split import Begin, EvaluateRequest, TrainRequest
from flwr_slfac.transport.answers import DescribeRequest, Request
from flwr_slfac.transport.begins import begin_of_fields, begin_to_fields
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream.blobs import BlobReader, BlobWriter, StateCache
from flwr_slfac.transport.stream.wire import Packed

# Fields of a Begin: their names in slfac.proto by the keys of `begins`.
_FIELDS = {
    "round": "round",
    "seed": "seed",
    "release": "release",
    "min-batch": "min_batch",
    "proximal-mu": "proximal_mu",
    "version": "version",
    "aggregate": "aggregate",
    "up": "up",
    "config": "config",
    "features": "features",
    "pipeline-depth": "pipeline_depth",
}


def pack_request(request: Request, states: StateCache) -> Packed:
    """Return a request as a message.

    Parameters
    ----------
    request : TrainRequest, EvaluateRequest or DescribeRequest
        What is asked.
    states : StateCache
        Holds the bytes of a front that goes to many devices.

    Raises
    ------
    SettingError
        If the front cannot be carried.
    """
    head, writer = pb.Request(), BlobWriter()
    if isinstance(request, TrainRequest):
        head.train.step = request.step
        head.train.gradient_blob = writer.put(request.gradient)
        head.train.memory_order.extend(request.memory_order)
        head.train.update_blob = writer.put(request.update)
        head.train.mask_blob = writer.put(request.mask or None)
        if request.front is not None:
            writer.put_state(states.bytes_of(request.front), head.train.front)
        if request.begin is not None:
            _put_begin(request.begin, head.train.begin, writer, states)
    elif isinstance(request, EvaluateRequest):
        head.evaluate.first = request.first
        head.evaluate.max_bytes = request.max_bytes
        if request.begin is not None:
            _put_begin(request.begin, head.evaluate.begin, writer, states)
    else:
        head.describe.channels = request.channels
    return Packed(head, tuple(writer.blobs))


def unpack_request(packed: Packed) -> Request:
    """Read a request.

    Raises
    ------
    DecodeError
        If it is not one, or a part is missing.
    SettingError
        If the codec, the configuration or a feature is not known here.
    """
    head, reader = packed.head, BlobReader(packed.blobs)
    kind = head.WhichOneof("kind")
    if kind == "train":
        asked = head.train
        begin = _get_begin(asked.begin, reader) if asked.HasField("begin") else None
        front = reader.state(asked.front) if asked.HasField("front") else None
        return TrainRequest(
            asked.step,
            begin,
            reader.get(asked.gradient_blob),
            tuple(asked.memory_order),
            front,
            reader.get(asked.update_blob),
            reader.get(asked.mask_blob) or b"",
        )
    if kind == "evaluate":
        test = head.evaluate
        begin = _get_begin(test.begin, reader) if test.HasField("begin") else None
        return EvaluateRequest(test.first, test.max_bytes, begin)
    if kind == "describe":
        return DescribeRequest(head.describe.channels)
    raise DecodeError("a request asks for nothing that is known here")


def model_of(head: pb.Request) -> pb.State | None:
    """Return where the front is in a request, or None."""
    if head.train.HasField("front"):
        return head.train.front
    begin = head.evaluate.begin if head.HasField("evaluate") else head.train.begin
    return begin.front if begin.HasField("front") else None


def _put_begin(
    begin: Begin, into: pb.Begin, writer: BlobWriter, states: StateCache
) -> None:
    fields = begin_to_fields(begin)
    into.told_blob = writer.put_text(fields.pop("told", ""))
    for key, value in fields.items():
        setattr(into, _FIELDS[key], value)
    into.mask_blob = writer.put(begin.mask or None)
    if begin.front is not None:
        writer.put_state(states.bytes_of(begin.front), into.front)


def _get_begin(begin: pb.Begin, reader: BlobReader) -> Begin:
    fields: dict[str, Any] = {key: getattr(begin, n) for key, n in _FIELDS.items()}
    if told := reader.text(begin.told_blob):
        fields["told"] = told
    present = {k: v for k, v in fields.items() if v or k not in ("config", "features")}
    front = reader.state(begin.front) if begin.HasField("front") else None
    mask = reader.get(begin.mask_blob) or b""
    return replace(begin_of_fields(present), front=front, mask=mask)
