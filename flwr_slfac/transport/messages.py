"""Steps over Flower messages: one fused message per device and step.

Works wherever Flower works. At most one message per node is in flight, because Flower's
simulation would run several of them at once and lose state.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from flwr_slfac.errors import AllDevicesLostError, SettingError, SlfacError
from flwr_slfac.split import (
    Description,
    EvaluateReply,
    EvaluateRequest,
    Lost,
    Piece,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.traffic import Direction, raw_bytes_of
from flwr_slfac.transport.carrier import Seen
from flwr_slfac.transport.delivery import PARTITION, Delivery
from flwr_slfac.transport.records import (
    ARRAYS,
    FRAMES,
    MEAN,
    SPLIT,
    from_evaluate_request,
    from_train_request,
    to_description,
    to_evaluate_reply,
    to_train_reply,
)

TRAIN_STEP, EVALUATE_STEP = "train.step", "evaluate.step"
DESCRIBE = "query.describe"

# What protobuf takes for a number at most, its tag left out.
_NUMBER_BYTES = 8

Request = TypeVar("Request", TrainRequest, EvaluateRequest)
Reply = TypeVar("Reply", TrainReply, EvaluateReply)


class MessageLink:
    """Carries requests as Flower messages; keys are node ids.

    Parameters
    ----------
    grid : Grid
        Flower's access to the nodes.
    timeout_s : float
        A node that does not answer for this long is lost.

    Raises
    ------
    SettingError
        If the timeout is not above 0.
    """

    def __init__(self, grid: Grid, timeout_s: float) -> None:
        if not timeout_s > 0:
            raise SettingError(f"the step timeout is {timeout_s} s; it must be above 0")
        self._delivery = Delivery(grid, timeout_s)
        self._partitions: dict[int, int] = {}

    def finish_by(self, deadline: float) -> None:
        """Wait for no answer after a deadline, as `time.monotonic` counts."""
        self._delivery.deadline = deadline

    def hold(self, keys: Iterable[int]) -> None:
        """Do nothing: between two messages no device is held."""

    def look(self) -> dict[int, Seen]:
        """Return what is seen of nodes that were asked for something."""
        asked = self._delivery.waiting
        return {
            key: Seen(device, True, asked.get(key))
            for key, device in list(self._partitions.items())
        }

    def close(self) -> None:
        """Do nothing, for the same reason."""

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Ask nodes for their partition ids, each node once.

        Raises
        ------
        AllDevicesLostError
            If nodes were asked and no node has ever answered.
        """
        unknown = (
            (k, RecordDict({SPLIT: ConfigRecord({"ask": "partition"})}))
            for k in keys
            if k not in self._partitions
        )
        reason = ""
        for key, answer in self._delivery.exchange(unknown, PARTITION):
            if isinstance(answer, Lost):
                reason = reason or f"node {key}: {answer.reason}"
            else:
                record = answer.config_records.get(SPLIT, ConfigRecord())
                partition = record.get("device")
                if isinstance(partition, int):
                    self._partitions[key] = partition
        if reason and not self._partitions:
            raise AllDevicesLostError(
                f"no node tells its partition id ({reason}); does the ClientApp start "
                "there?"
            )
        return {k: self._partitions[k] for k in keys if k in self._partitions}

    def describe(
        self, keys: list[int], *, channels: bool
    ) -> dict[int, Description | Lost]:
        """Ask nodes for what their devices say of themselves."""
        asked = ConfigRecord({"channels": channels})
        contents = ((k, RecordDict({SPLIT: asked})) for k in keys)
        answers: dict[int, Description | Lost] = {}
        for key, answer in self._delivery.exchange(contents, DESCRIBE):
            if isinstance(answer, Lost):
                answers[key] = answer
                continue
            try:
                described = to_description(answer)
            except SlfacError as error:
                answers[key] = _unreadable(error, self._partitions.get(key, key))
                continue
            carried = pieces_of(answer, "model-up")
            answers[key] = replace(described, carried=carried)
        return answers

    def train_each(
        self, requests: Iterable[tuple[int, TrainRequest]]
    ) -> Iterator[tuple[int, TrainReply | Lost]]:
        """Send one ``train.step`` message to each node and read the replies."""
        return self._carry(requests, TRAIN_STEP, from_train_request, to_train_reply)

    def evaluate_each(
        self, requests: Iterable[tuple[int, EvaluateRequest]]
    ) -> Iterator[tuple[int, EvaluateReply | Lost]]:
        """Send one ``evaluate.step`` message to each node and read the replies."""
        return self._carry(
            requests,
            EVALUATE_STEP,
            from_evaluate_request,
            to_evaluate_reply,
        )

    def _carry(
        self,
        requests: Iterable[tuple[int, Request]],
        message_type: str,
        write: Callable[[Request], RecordDict],
        read: Callable[[RecordDict], Reply],
    ) -> Iterator[tuple[int, Reply | Lost]]:
        contents: dict[int, RecordDict] = {}

        def written() -> Iterator[tuple[int, RecordDict]]:
            for key, request in requests:
                contents[key] = write(request)
                yield key, contents[key]

        for key, answer in self._delivery.exchange(written(), message_type):
            if isinstance(answer, Lost):
                known = self._partitions.get(key, key)
                yield key, replace(answer, device=known)
            else:
                yield key, self._read(key, contents[key], answer, read)

    def _read(
        self,
        key: int,
        request: RecordDict,
        answer: RecordDict,
        read: Callable[[RecordDict], Reply],
    ) -> Reply | Lost:
        known = self._partitions.get(key, key)
        try:
            reply = read(answer)
        except SlfacError as error:
            return _unreadable(error, known)
        if self._partitions.setdefault(key, reply.device) != reply.device:
            reason = f"claims partition id {reply.device} now"
            return Lost(reason, known, at_fault=True)
        return replace(reply, carried=_carried(request, answer))


def _unreadable(error: SlfacError, device: int) -> Lost:
    return Lost(f"sent what cannot be read: {error}", device, at_fault=True)


def _carried(request: RecordDict, reply: RecordDict) -> tuple[Piece, ...]:
    """Return the models and control values of both messages, frames left out."""
    return (*pieces_of(request, "model-down"), *pieces_of(reply, "model-up"))


def pieces_of(content: RecordDict, direction: Direction) -> tuple[Piece, ...]:
    """Return those of one message; its models go in a direction."""
    pieces = []
    for name in (ARRAYS, MEAN):
        arrays = content.array_records.get(name)
        if arrays is not None:
            raw_bytes = raw_bytes_of(array.shape for array in arrays.values())
            pieces.append(Piece(direction, arrays.count_bytes(), raw_bytes))
    frames = content.array_records.get(FRAMES)
    control = sum(len(name) for name in frames) if frames is not None else 0
    for name, value in content.config_records[SPLIT].items():
        control += len(name)
        if isinstance(value, str):
            control += len(value.encode())
        elif not isinstance(value, bytes):
            control += _NUMBER_BYTES * (len(value) if isinstance(value, list) else 1)
    return (*pieces, Piece("control", control))
