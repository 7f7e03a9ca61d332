"""Steps over Flower messages: one fused message per device and step.

Works wherever Flower works. At most one message per node is in flight, because Flower's
simulation would run several of them at once and lose state.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from flwr_slfac.errors import AllDevicesLostError, SettingError
from flwr_slfac.split import (
    Description,
    EvaluateReply,
    EvaluateRequest,
    Lost,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.traffic import Phase, Traffic
from flwr_slfac.transport.delivery import PARTITION, Delivery
from flwr_slfac.transport.records import (
    ARRAYS,
    FRAMES,
    SPLIT,
    from_evaluate_request,
    from_train_request,
    to_description,
    to_evaluate_reply,
    to_train_reply,
)

TRAIN_STEP, EVALUATE_STEP = "train.step", "evaluate.step"
DESCRIBE = "query.describe"

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
        self._delivery = Delivery(grid, timeout_s)
        self._traffic = traffic
        self._partitions: dict[int, int] = {}
        self.server_round = 0

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Ask nodes for their partition ids, each node once.

        Raises
        ------
        AllDevicesLostError
            If nodes were asked and no node has ever answered.
        """
        unknown = {
            k: RecordDict({SPLIT: ConfigRecord({"ask": "partition"})})
            for k in keys
            if k not in self._partitions
        }
        reason = ""
        for key, answer in self._delivery.exchange(unknown, PARTITION).items():
            if isinstance(answer, Lost):
                reason = reason or f"node {key}: {answer.reason}"
            else:
                partition = answer.config_records[SPLIT]["device"]
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
        contents = {k: RecordDict({SPLIT: asked}) for k in keys}
        answers: dict[int, Description | Lost] = {}
        for key, answer in self._delivery.exchange(contents, DESCRIBE).items():
            if isinstance(answer, Lost):
                answers[key] = answer
                continue
            answers[key] = description = to_description(answer)
            self._count(answer, description.device, "train", "model-up")
        return answers

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
        for key, answer in self._delivery.exchange(contents, message_type).items():
            if isinstance(answer, Lost):
                answers[key] = Lost(answer.reason, self._partitions.get(key, key))
                continue
            reply = read(answer)
            self._partitions[key] = reply.device
            self._count(contents[key], reply.device, phase, "model-down")
            self._count(answer, reply.device, phase, "model-up")
            answers[key] = reply
        return answers

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
