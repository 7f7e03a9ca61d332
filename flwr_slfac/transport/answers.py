"""What a device answers, whatever carries it, and the Flower messages that may."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from flwr_slfac.errors import SlfacError, TrainingError
from flwr_slfac.split import (
    Description,
    DeviceHalf,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.transport.delivery import REFUSED
from flwr_slfac.transport.record_state import (
    RecordState,
    as_record,
    require_recordable,
)
from flwr_slfac.transport.records import (
    SPLIT,
    from_description,
    from_evaluate_reply,
    from_evaluate_request,
    from_train_reply,
    from_train_request,
    to_description,
    to_evaluate_reply,
    to_evaluate_request,
    to_train_reply,
    to_train_request,
)


@dataclass(frozen=True)
class DescribeRequest:
    """The question for a device's description, with channels where wanted."""

    channels: bool

    @property
    def begin(self) -> None:
        """Nothing: a description begins no work."""
        return


Request: TypeAlias = TrainRequest | EvaluateRequest | DescribeRequest
Reply: TypeAlias = TrainReply | EvaluateReply | Description


@dataclass(frozen=True)
class Exchange:
    """How one kind of request and its reply are records.

    Parameters
    ----------
    message_type : str
        Of the Flower message.
    read_request, write_request, read_reply, write_reply : callable
        From and to records.
    """

    message_type: str
    read_request: Callable[[RecordDict], Request]
    write_request: Callable[[Any], RecordDict]
    read_reply: Callable[[RecordDict], Reply]
    write_reply: Callable[[Any], RecordDict]


def _to_describe_request(content: RecordDict) -> DescribeRequest:
    record = content.config_records.get(SPLIT, ConfigRecord())
    if "channels" not in record:
        raise TrainingError("a question for a description lacks 'channels'")
    return DescribeRequest(bool(record["channels"]))


def _from_describe_request(request: DescribeRequest) -> RecordDict:
    return RecordDict({SPLIT: ConfigRecord({"channels": request.channels})})


TRAIN = Exchange(
    "train.step",
    to_train_request,
    from_train_request,
    to_train_reply,
    from_train_reply,
)
EVALUATE = Exchange(
    "evaluate.step",
    to_evaluate_request,
    from_evaluate_request,
    to_evaluate_reply,
    from_evaluate_reply,
)
DESCRIBE = Exchange(
    "query.describe",
    _to_describe_request,
    _from_describe_request,
    to_description,
    from_description,
)


def exchange_of(request: Request) -> Exchange:
    """Return how a request would cross as a Flower message."""
    if isinstance(request, TrainRequest):
        return TRAIN
    return EVALUATE if isinstance(request, EvaluateRequest) else DESCRIBE


def answer(half: DeviceHalf, request: Request) -> Reply:
    """Have a device carry out a request.

    Raises
    ------
    SettingError
        Before training, if Flower could not carry the front back.
    """
    if isinstance(request, TrainRequest):
        if request.begin is not None:
            require_recordable(half.front.state_dict())
        return half.train(request)
    if isinstance(request, EvaluateRequest):
        return half.evaluate(request)
    return half.describe(channels=request.channels)


def with_front(
    reply: Reply,
    change: Callable[[ArrayRecord], tuple[ArrayRecord, Mapping[str, Any]]],
) -> Reply:
    """Change the front in a reply, and add metrics; if there is one.

    Parameters
    ----------
    reply : TrainReply, EvaluateReply or Description
        The reply.
    change : callable
        From the front to what is sent instead, and metrics.
    """
    if not isinstance(reply, TrainReply) or reply.front is None:
        return reply
    front, metrics = change(as_record(reply.front))
    return replace(reply, front=RecordState(front), metrics=metrics or reply.metrics)


def answer_partition(partition: int) -> RecordDict:
    """Answer ``query.partition``, which runs none of the device's code."""
    return RecordDict({SPLIT: ConfigRecord({"device": partition})})


def refusal(error: SlfacError, partition: int) -> RecordDict:
    """Return what tells the server that a device refuses, and why."""
    reason = f"{type(error).__name__}: {error}"
    return RecordDict({SPLIT: ConfigRecord({REFUSED: reason, "device": partition})})
