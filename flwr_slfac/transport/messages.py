"""Steps over Flower messages: one fused message per device and step.

Works wherever Flower works. At most one message per node is in flight, because Flower's
simulation would run several of them at once and lose state.
"""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flwr_slfac.errors import DeviceError, SettingError
from flwr_slfac.split import (
    EvaluateReply,
    EvaluateRequest,
    Lost,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.traffic import Phase, Traffic
from flwr_slfac.transport.records import (
    ARRAYS,
    FRAMES,
    SPLIT,
    from_evaluate_request,
    from_train_request,
    to_evaluate_reply,
    to_train_reply,
)

TRAIN_STEP, EVALUATE_STEP, PARTITION = "train.step", "evaluate.step", "query.partition"
REFUSED = "refused"

# Flower's error codes for "unknown" and "the ClientApp raised". In simulation a dying
# process gives either, also to a healthy device whose message it took along.
_WORTH_A_RETRY = (0, 2)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.005, 0.25

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
    traffic : Traffic
        Where models and control records are entered.
    """

    def __init__(self, grid: Grid, timeout_s: float, traffic: Traffic) -> None:
        if not timeout_s > 0:
            raise SettingError(f"the step timeout is {timeout_s} s; it must be above 0")
        self._grid = grid
        self._timeout_s = timeout_s
        self._traffic = traffic
        self._partitions: dict[int, int] = {}
        self._unanswered: dict[int, str] = {}
        self.server_round = 0

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Ask nodes for their partition ids, each node once."""
        unknown = {
            k: RecordDict({SPLIT: ConfigRecord({"ask": "partition"})})
            for k in keys
            if k not in self._partitions
        }
        for key, answer in self._exchange(unknown, PARTITION).items():
            if isinstance(answer, RecordDict):
                partition = answer.config_records[SPLIT]["device"]
                if isinstance(partition, int):
                    self._partitions[key] = partition
        return {k: self._partitions[k] for k in keys if k in self._partitions}

    def train(
        self, requests: Mapping[int, TrainRequest]
    ) -> dict[int, TrainReply | Lost]:
        """Send one ``train.step`` message to each node and read the replies."""
        return self._carry(
            requests, TRAIN_STEP, from_train_request, to_train_reply, "train"
        )

    def evaluate(
        self, requests: Mapping[int, EvaluateRequest]
    ) -> dict[int, EvaluateReply | Lost]:
        """Send one ``evaluate.step`` message to each node and read the replies."""
        return self._carry(
            requests,
            EVALUATE_STEP,
            from_evaluate_request,
            to_evaluate_reply,
            "evaluate",
        )

    def _carry(
        self,
        requests: Mapping[int, Request],
        message_type: str,
        write: Callable[[Request], RecordDict],
        read: Callable[[RecordDict], Reply],
        phase: Phase,
    ) -> dict[int, Reply | Lost]:
        contents = {key: write(request) for key, request in requests.items()}
        answers: dict[int, Reply | Lost] = {}
        for key, answer in self._exchange(contents, message_type).items():
            if isinstance(answer, Lost):
                answers[key] = answer
                continue
            reply = read(answer)
            self._partitions[key] = reply.device
            self._count(contents[key], reply.device, phase, "model-down")
            self._count(answer, reply.device, phase, "model-up")
            answers[key] = reply
        return answers

    def _exchange(
        self, contents: Mapping[int, RecordDict], message_type: str
    ) -> dict[int, RecordDict | Lost]:
        """Deliver contents to nodes and collect what they answer."""
        answers, failed = self._deliver(contents, message_type)
        for key in sorted(failed):
            # One by one: a device that takes its process along harms nobody else.
            again, still_failed = self._deliver({key: contents[key]}, message_type)
            answers.update(again)
            answers.update({k: Lost(reason) for k, reason in still_failed.items()})
        return answers

    def _deliver(
        self, contents: Mapping[int, RecordDict], message_type: str
    ) -> tuple[dict[int, RecordDict | Lost], dict[int, str]]:
        """Send once; return final answers, and failures that deserve another try."""
        answers: dict[int, RecordDict | Lost] = {}
        failed: dict[int, str] = {}
        pending: dict[str, int] = {}
        for key, content in contents.items():
            if self._still_busy(key):
                answers[key] = Lost("still busy with an earlier message")
                continue
            message = Message(content, key, message_type)
            pushed = [i for i in self._grid.push_messages([message]) if i]
            if pushed:
                pending[pushed[0]] = key
            else:
                answers[key] = Lost("its message could not be delivered")
        deadline = time.monotonic() + self._timeout_s
        wait_s = _FIRST_WAIT_S
        while pending and time.monotonic() < deadline:
            replies = list(self._grid.pull_messages(list(pending)))
            for reply in replies:
                key = pending.pop(reply.metadata.reply_to_message_id)
                if not reply.has_error():
                    answers[key] = self._accept(key, reply.content)
                elif reply.error.code in _WORTH_A_RETRY:
                    failed[key] = _reason(reply)
                else:
                    answers[key] = Lost(_reason(reply))
            wait_s = _FIRST_WAIT_S if replies else min(1.5 * wait_s, _LONGEST_WAIT_S)
            if pending:
                time.sleep(min(wait_s, max(0.0, deadline - time.monotonic())))
        for message_id, key in pending.items():
            self._unanswered[key] = message_id
            answers[key] = Lost(f"no answer within {self._timeout_s:g} s")
        return answers, failed

    def _still_busy(self, key: int) -> bool:
        """Say whether a node has not yet answered a message of an earlier step."""
        message_id = self._unanswered.get(key)
        if message_id is None:
            return False
        if not list(self._grid.pull_messages([message_id])):
            return True
        del self._unanswered[key]
        return False

    def _accept(self, key: int, content: RecordDict) -> RecordDict:
        """Return a reply's content, or raise what the device refused with."""
        record = content.config_records.get(SPLIT, ConfigRecord())
        if REFUSED in record:
            raise DeviceError(f"a device refused (node {key}): {record[REFUSED]!s}")
        return content

    def _count(
        self, content: RecordDict, device: int, phase: Phase, direction: str
    ) -> None:
        """Enter the models and control values of a message that crossed."""
        place = (self.server_round, device, phase)
        arrays = content.array_records.get(ARRAYS)
        if arrays is not None:
            self._traffic.add(
                *place,
                "model-up" if direction == "model-up" else "model-down",
                num_bytes=arrays.count_bytes(),
                raw_bytes=sum(_num_elements(a.shape) * 4 for a in arrays.values()),
            )
        frames = content.array_records.get(FRAMES)
        control = sum(len(name) for name in frames) if frames is not None else 0
        for name, value in content.config_records[SPLIT].items():
            control += len(name)
            if isinstance(value, str):
                control += len(value.encode())
            elif not isinstance(value, bytes):
                control += 8
        self._traffic.add(*place, "control", num_bytes=control)


def _num_elements(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _reason(reply: Message) -> str:
    lines = (reply.error.reason or "no reason given").strip().splitlines()
    return f"{lines[-1] if lines else 'no reason given'} (code {reply.error.code})"
