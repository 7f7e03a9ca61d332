"""The device's side of a run: rounds, tests, and state without any live object."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flwr_slfac._release import require_release
from flwr_slfac.errors import TrainingError
from flwr_slfac.split.batches import fetch, require_batches
from flwr_slfac.split.crossing import DeviceEnd
from flwr_slfac.split.device import Device, has_batch_norm
from flwr_slfac.split.device_front import DeviceFront
from flwr_slfac.split.device_steps import BEFORE_FIRST, DeviceSteps
from flwr_slfac.split.forwards import require_pipeline_depth
from flwr_slfac.split.known_samples import known_order
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
from flwr_slfac.split.recalled_samples import recalled_samples


@dataclass(frozen=True)
class _Round:
    """What a device works on: a round's training, or its evaluation (no steps)."""

    begin: Begin
    place: Place
    end: DeviceEnd
    steps: DeviceSteps | None = None


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
        # Seconds of work and of the codec that no reply has told yet.
        self._untold = (0.0, 0.0)

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
        now = self._round
        if now is None or now.steps is None:
            raise TrainingError(
                f"{self._who} was asked for step {request.step} of a round that it did "
                "not begin"
            )
        steps, now.end.seconds = now.steps, 0.0
        told, smashed = steps.is_ahead, steps.take(request)
        results = {} if smashed is not None else self._results(now, steps)
        seconds = self._seconds(now, start, told=told)
        return self._reply(steps, smashed, seconds, **results)

    def run_ahead(self) -> TrainReply | None:
        """Run the next forward before it is asked for, where the round is pipelined.

        None if it is to wait. `train` returns the same reply for its step, but for the
        seconds. For links that deliver each request once: no `snapshot` holds it.
        """
        start, now = time.perf_counter(), self._round
        if now is None or now.steps is None:
            return None
        now.end.seconds = 0.0
        smashed = now.steps.run_ahead()
        if smashed is None:
            return None
        return self._reply(now.steps, smashed, self._seconds(now, start))

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

        Raises
        ------
        TrainingError
            If the device is ahead of what it was asked for.
        """
        now = self._round
        if now is None:
            return None
        step, mark, paused, before = BEFORE_FIRST, None, False, self._front.buffers()
        if (steps := now.steps) is not None:
            if steps.is_ahead:
                raise TrainingError(f"{self._who} is ahead, which no snapshot holds")
            step, mark, paused = steps.last, steps.batches.mark, steps.paused
            before = before if paused else steps.buffers_before
        front = {**self._front.state(step), "buffers": before}
        begin = self._front.held_of(now.begin)
        return Snapshot(begin, mark, step, front, now.end.state(), paused)

    def restore(self, snapshot: Snapshot | None) -> None:
        """Take up the round that `snapshot` describes; the graph is lost."""
        self._untold = (0.0, 0.0)
        if snapshot is None:
            self._forget_round()
            return
        self._front.restore(snapshot.begin, snapshot.front, snapshot.step)
        mark = snapshot.batch
        batches = None if mark is None else self._batches(snapshot.begin, mark)
        self._round = self._open(snapshot.begin, batches, snapshot)
        self._round.end.load(snapshot.memory)

    @property
    def _who(self) -> str:
        return f"device {self.partition}"

    def _reply(
        self,
        steps: DeviceSteps,
        smashed: Smashed | None,
        seconds: tuple[float, float],
        **results: Any,
    ) -> TrainReply:
        return TrainReply(
            device=self.partition,
            num_steps=steps.batches.order.num_steps,
            smashed=smashed,
            done=smashed is None and not steps.paused,
            **results,
            compute_s=seconds[0],
            codec_s=seconds[1],
        )

    def _seconds(
        self, now: _Round, start: float, *, told: bool = False
    ) -> tuple[float, float]:
        """Return the seconds of work and codec since `start`, and those untold before.

        Of a reply that was told already they are for the next one.
        """
        codec_s = now.end.seconds
        compute_s = time.perf_counter() - start - codec_s
        seconds = self._untold[0] + compute_s, self._untold[1] + codec_s
        self._untold = seconds if told else (0.0, 0.0)
        return seconds

    def _open(
        self, begin: Begin, batches: BatchReader | None, was: Snapshot | None = None
    ) -> _Round:
        """Open this device's end of the stream for training or evaluation."""
        place = Place(begin.seed, begin.server_round, self.partition)
        kept = (self.kept or {}).get("memory", {})
        memory = recalled_samples(recalled(kept, self._front.channels_sent), begin)
        features = [f for f in begin.cut_features if batches or f.in_evaluation]
        if batches is None:
            return _Round(begin, place, DeviceEnd(begin.up, features, place, memory))
        own = known_order(begin, batches.order), self.device.sample_folder
        end = DeviceEnd(begin.up, features, place, memory, *own)
        how = begin.pipeline_depth, begin.config.period_steps
        at = (was.step, was.paused) if was else (BEFORE_FIRST, False)
        steps = DeviceSteps(self._front, place, end, batches, *how, *at)
        return _Round(begin, place, end, steps)

    def _begin_round(self, begin: Begin) -> bool:
        """Take up a round; return False if its front is not here."""
        require_release(begin.release, self._who)
        require_pipeline_depth(begin.pipeline_depth, begin.config.period_steps)
        batches = self._batches(begin)
        kept = self.kept or {}
        if not self._front.take(begin, kept, self._who):
            return False
        smallest = max(begin.min_batch, 2 if has_batch_norm(self.front) else 1)
        require_batches(batches.order, smallest, self._who)
        self._untold = (0.0, 0.0)
        self._front.start(begin, kept)
        self._round = self._open(begin, batches)
        return True

    def _begin_evaluation(self, begin: Begin) -> None:
        require_release(begin.release, self._who)
        if not self._front.take(begin, self.kept or {}, self._who):
            raise TrainingError(f"{self._who} lacks the front that it is to test")
        self._round = self._open(begin, None)

    def _results(self, now: _Round, steps: DeviceSteps) -> dict[str, Any]:
        """Return what a reply without smashed data holds; keep what lasts."""
        begin, moment = now.begin, now.place.at(steps.last)
        if steps.paused:
            return self._front.send(moment)
        sent, keeps = self._front.finish(begin, moment)
        sent["cost"] = self._front.cost(begin, steps.batches.largest)
        if memory := now.end.lasting:
            keeps["memory"] = remembered(memory, self._front.channels_sent)
        self.kept = keeps or None
        sent["kept"] = what_is_kept(keeps, self.device.scheduler_per)
        self._forget_round()
        return sent

    def _forget_round(self) -> None:
        self._round = None
        self._front.forget_round()

    def _test_batch(self, now: _Round, index: int, sizes: list[int]) -> Smashed:
        if self.device.test_set is None:
            raise TrainingError(f"{self._who} has no test batch {index}")
        indices = torch.arange(sizes[index]) + sum(sizes[:index])
        with seeded(now.place.at(index).seed_of("test"), self._where):
            inputs, targets = fetch(self.device.test_set, indices)
            out = self._front.test(inputs)
        return now.end.send_test(out, targets, index)

    def _batches(self, begin: Begin, mark: str = "") -> BatchReader:
        place = Place(begin.seed, begin.server_round, self.partition)
        order = self.device.batches(begin.seed, begin.server_round, self.partition)
        return BatchReader(self.device.train_set, order, place, self._where, mark)
