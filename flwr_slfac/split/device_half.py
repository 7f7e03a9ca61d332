"""The device's side of a step. State that survives without the live graph.

Between two requests the graph of the last forward may be lost (another process
answers). What is kept is the state before that forward: the forward is then run again
from the same weights, buffers, batch and noise, and gives the same graph.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from flwr_slfac._release import require_release
from flwr_slfac.errors import TrainingError
from flwr_slfac.split.batches import fetch, require_batches
from flwr_slfac.split.crossing import DeviceEnd
from flwr_slfac.split.device import Device, has_batch_norm
from flwr_slfac.split.device_front import DeviceFront
from flwr_slfac.split.lasting import recalled, remembered, what_is_kept
from flwr_slfac.split.place import Place, seeded
from flwr_slfac.split.protocol import (
    Begin,
    Description,
    EvaluateReply,
    EvaluateRequest,
    Smashed,
    Snapshot,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.split.reading import BatchReader, first_input

_FIRST_FORWARD = -1  # "no forward has run yet in this round"


@dataclass(frozen=True)
class _Round:
    """What a device works on: a round's training, or its evaluation (no batches)."""

    begin: Begin
    place: Place
    end: DeviceEnd
    batches: BatchReader | None = None


class DeviceHalf:
    """Answers the server's requests for one device.

    Parameters
    ----------
    device : Device
        Model, data and settings.
    partition : int
        Partition id: the device's name in seeds, reports and order of summation.

    Attributes
    ----------
    kept : dict or None
        What the device keeps from round to round; None for nothing.
    """

    def __init__(self, device: Device, partition: int) -> None:
        self.device = device
        self.partition = partition
        self.kept: dict[str, Any] | None = None
        self._where = torch.device(device.device)
        example = partial(first_input, device.train_set, self._where)
        self._front = DeviceFront(device, example)
        self._round: _Round | None = None
        self._step = _FIRST_FORWARD
        self._graph: torch.Tensor | None = None
        self._buffers_before: dict[str, torch.Tensor] = {}

    @property
    def front(self) -> torch.nn.Module:
        """The network that runs: the front, without the channels that are pruned."""
        return self._front.network

    def describe(self, *, channels: bool) -> Description:
        """Return the device's profile, and the channels of its front where asked.

        Raises
        ------
        SettingError
            If the front's channels cannot be pruned.
        """
        found = self._front.channels if channels else None
        return Description(self.partition, dict(self.device.profile), found)

    def train(self, request: TrainRequest) -> TrainReply:
        """Carry out one fused step; a repeated request gives the same reply.

        Raises
        ------
        SettingError
            If the device's settings or data cannot be trained with.
        TrainingError
            If the request does not follow the one before.
        """
        start = time.perf_counter()
        if request.begin is not None and not self._begin_round(request.begin):
            return TrainReply(self.partition, 0, wants_front=True)
        if self._round is None or self._round.batches is None:
            raise TrainingError(
                f"{self._who} was asked for step {request.step} of a round that it did "
                "not begin"
            )
        now, batches = self._round, self._round.batches
        now.end.seconds = 0.0
        self._backward(now, batches, request)
        smashed, results = None, {}
        if request.step < batches.order.num_steps:
            smashed = self._forward(now, batches, request.step)
        else:
            results = self._finish(now, batches)
        codec_s = now.end.seconds
        return TrainReply(
            device=self.partition,
            num_steps=batches.order.num_steps,
            smashed=smashed,
            done=smashed is None,
            **results,
            compute_s=time.perf_counter() - start - codec_s,
            codec_s=codec_s,
        )

    def evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        """Run the front over test batches, as many as fit the request's limit.

        Raises
        ------
        TrainingError
            If the device does not have the front that it is to test.
        """
        start = time.perf_counter()
        if request.begin is not None:
            self._begin_evaluation(request.begin)
        if self._round is None:
            raise TrainingError(f"{self._who} was not given a front to test")
        now = self._round
        now.end.seconds = 0.0
        sizes = self.device.test_batch_sizes()
        batches, num_bytes = list[Smashed](), 0
        self.front.eval()
        for index in range(request.first, len(sizes)):
            smashed = self._test_batch(now, index, sizes)
            num_bytes += len(smashed.activations) + len(smashed.targets)
            batches.append(smashed)
            if num_bytes >= request.max_bytes:
                break
        if request.first + len(batches) >= len(sizes):
            self._round = None
        codec_s = now.end.seconds
        return EvaluateReply(
            device=self.partition,
            num_batches=len(sizes),
            batches=batches,
            compute_s=time.perf_counter() - start - codec_s,
            codec_s=codec_s,
        )

    def snapshot(self) -> Snapshot | None:
        """Return the state of the round in progress, or None between rounds.

        Its tensors are the device's own: copy or write them before the next request.
        """
        if self._round is None:
            return None
        front = {**self._front.state(), "buffers": self._buffers_before}
        now, begin = self._round, replace(self._round.begin, front=None)
        mark = None if now.batches is None else now.batches.mark
        return Snapshot(begin, mark, self._step, front, now.end.state())

    def restore(self, snapshot: Snapshot | None) -> None:
        """Take up the round that `snapshot` describes; the graph is lost."""
        self._graph = None
        if snapshot is None:
            self._forget_round()
            return
        self._front.restore(snapshot.begin, snapshot.front)
        self._buffers_before = self._front.buffers()
        mark = snapshot.batch
        batches = None if mark is None else self._batches(snapshot.begin, mark)
        self._round = self._open(snapshot.begin, batches)
        self._round.end.load(snapshot.memory)
        self._step = snapshot.step

    @property
    def _who(self) -> str:
        return f"device {self.partition}"

    def _open(self, begin: Begin, batches: BatchReader | None) -> _Round:
        """Open this device's end of the stream for training or evaluation."""
        place = Place(begin.seed, begin.server_round, self.partition)
        trains = batches is not None
        memory = recalled(
            (self.kept or {}).get("memory", {}), self._front.channels_sent
        )
        features = [f for f in begin.cut_features if trains or f.in_evaluation]
        end = DeviceEnd(begin.up, features, place, memory)
        return _Round(begin, place, end, batches)

    def _begin_round(self, begin: Begin) -> bool:
        """Take up a round; return False if its front is not here."""
        require_release(begin.release, self._who)
        batches = self._batches(begin)
        kept = self.kept or {}
        if not self._front.take(begin, kept, self._who):
            return False
        smallest = max(begin.min_batch, 2 if has_batch_norm(self.front) else 1)
        require_batches(batches.order, smallest, self._who)
        self._graph, self._step = None, _FIRST_FORWARD
        self._round = self._open(begin, batches)
        self._front.start(begin, kept)
        self._buffers_before = self._front.buffers()
        return True

    def _begin_evaluation(self, begin: Begin) -> None:
        require_release(begin.release, self._who)
        if not self._front.take(begin, self.kept or {}, self._who):
            raise TrainingError(f"{self._who} lacks the front that it is to test")
        self._round = self._open(begin, None)
        self._buffers_before = self._front.buffers()

    def _forward(self, now: _Round, batches: BatchReader, step: int) -> Smashed:
        """Run the front over a batch and code what comes out."""
        if step == self._step + 1:
            self._buffers_before = self._front.buffers()
            now.end.mark()
            inputs, targets = batches.read(step)
        elif step == self._step:
            self._front.load_buffers(self._buffers_before)
            now.end.rewind()
            inputs, targets = batches.again(step)
        else:
            raise self._out_of_step(step)
        self._step = step
        out = self._front.forward(inputs, now.place.at(step))
        sent = now.end.apply(out, step)
        self._graph = self._front.handle(sent)
        return now.end.send(sent, targets, step, out)

    def _backward(
        self, now: _Round, batches: BatchReader, request: TrainRequest
    ) -> None:
        """Take the step that a gradient asks for, unless it was taken already."""
        step, frame = request.step - 1, request.gradient
        if frame is None or step == self._step - 1 >= 0:
            return
        if step != self._step:
            raise self._out_of_step(step)
        moment = now.place.at(step)
        if self._graph is None:
            self._front.load_buffers(self._buffers_before)
            out = self._front.forward(batches.again(step)[0], moment)
            self._graph = self._front.handle(now.end.apply(out, step))
        gradient = now.end.receive(frame, request.memory_order, self._graph, step)
        self._front.step(self._graph, gradient, moment)
        self._graph = None

    def _finish(self, now: _Round, batches: BatchReader) -> dict[str, Any]:
        """Return what the last reply holds, and keep what outlives the round."""
        begin, moment = now.begin, now.place.at(self._step)
        sent, keeps = self._front.finish(begin, moment, self.kept or {})
        sent["cost"] = self._front.cost(begin, lambda: batches.example(0)[0])
        if memory := now.end.lasting:
            keeps["memory"] = remembered(memory, self._front.channels_sent)
        self.kept = keeps or None
        sent["kept"] = what_is_kept(keeps, self.device.scheduler_per)
        self._forget_round()
        return sent

    def _forget_round(self) -> None:
        self._round = self._graph = None
        self._step = _FIRST_FORWARD
        self._buffers_before = {}
        self._front.forget_round()

    def _test_batch(self, now: _Round, index: int, sizes: list[int]) -> Smashed:
        if self.device.test_set is None:
            raise self._out_of_step(index)
        indices = torch.arange(sizes[index]) + sum(sizes[:index])
        with seeded(now.place.at(index).seed_of("test"), self._where):
            inputs, targets = fetch(self.device.test_set, indices)
            out = self._front.test(inputs)
        return now.end.send_test(out, targets, index)

    def _batches(self, begin: Begin, mark: str = "") -> BatchReader:
        device = self.device
        place = Place(begin.seed, begin.server_round, self.partition)
        order = device.batches(place.seed, place.server_round, place.device)
        return BatchReader(device.train_set, order, place, self._where, mark)

    def _out_of_step(self, step: int) -> TrainingError:
        return TrainingError(
            f"{self._who} was asked for step {step}; its last forward was of step "
            f"{self._step}"
        )
