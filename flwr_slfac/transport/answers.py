"""What a device answers to the server's messages, records in and out."""

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from flwr_slfac.errors import SlfacError
from flwr_slfac.split import Begin, DeviceHalf
from flwr_slfac.transport.delivery import REFUSED
from flwr_slfac.transport.record_state import require_recordable
from flwr_slfac.transport.records import (
    ARRAYS,
    SPLIT,
    from_description,
    from_evaluate_reply,
    from_train_reply,
    get_begin,
    to_evaluate_request,
    to_train_request,
)
from flwr_slfac.transport.told import metrics_to_text


def begin_of(content: RecordDict) -> Begin | None:
    """Return what a request tells a device at the start of its work, or None."""
    return get_begin(content)


def change_front(
    content: RecordDict,
    change: Callable[[ArrayRecord], tuple[ArrayRecord, Mapping[str, Any]]],
) -> None:
    """Change the front in a reply to ``train.step``, and add metrics; if there is one.

    Parameters
    ----------
    content : RecordDict
        The reply.
    change : callable
        From the front to what is sent instead, and metrics.
    """
    front = content.array_records.get(ARRAYS)
    if front is None:
        return
    content[ARRAYS], metrics = change(front)
    if metrics:
        content.config_records[SPLIT]["metrics"] = metrics_to_text(metrics)


def answer_train(half: DeviceHalf, content: RecordDict) -> RecordDict:
    """Answer ``train.step``.

    Raises
    ------
    SettingError
        Before training, if Flower could not carry the front back.
    """
    request = to_train_request(content)
    if request.begin is not None:
        require_recordable(half.front.state_dict())
    return from_train_reply(half.train(request))


def answer_evaluate(half: DeviceHalf, content: RecordDict) -> RecordDict:
    """Answer ``evaluate.step``."""
    return from_evaluate_reply(half.evaluate(to_evaluate_request(content)))


def answer_describe(half: DeviceHalf, content: RecordDict) -> RecordDict:
    """Answer ``query.describe``."""
    channels = bool(content.config_records[SPLIT]["channels"])
    return from_description(half.describe(channels=channels))


def answer_partition(partition: int) -> RecordDict:
    """Answer ``query.partition``, which runs none of the device's code."""
    return RecordDict({SPLIT: ConfigRecord({"device": partition})})


def refusal(error: SlfacError, partition: int) -> RecordDict:
    """Return what tells the server that a device refuses, and why."""
    reason = f"{type(error).__name__}: {error}"
    return RecordDict({SPLIT: ConfigRecord({REFUSED: reason, "device": partition})})
