"""One round: the lock-step loop over devices, written once for every transport."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from flwr_slfac.errors import DeviceError, DivergedError
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.blame import Answer, step_or_blame, step_without_faults
from flwr_slfac.split.codec_pool import CodecPool
from flwr_slfac.split.crossing import Batch, ServerEnd, ServerSide
from flwr_slfac.split.inbox import Inbox
from flwr_slfac.split.lasting import recalled
from flwr_slfac.split.link import Link
from flwr_slfac.split.outbox import coded_gradients
from flwr_slfac.split.periods import Meeting
from flwr_slfac.split.place import Place
from flwr_slfac.split.protocol import (
    Begin,
    Lost,
    Smashed,
    TrainAnswer,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.split.results import RoundResult, log_lost
from flwr_slfac.split.scheme import require_no_proximal
from flwr_slfac.split.server_run import ServerRun
from flwr_slfac.split.stream import Stream

Progress = Callable[[int, int], None]


class Round:
    """One round of training.

    Parameters
    ----------
    run : ServerRun
        The server's side of the run.
    link : Link
        To the devices.
    begin : Begin
        What all devices are told at the start.
    progress : callable or None
        Told (steps done, steps of the device with most) after each step.
    pool : CodecPool
        Where frames are decoded and encoded.
    """

    def __init__(
        self,
        run: ServerRun,
        link: Link,
        begin: Begin,
        progress: Progress | None,
        pool: CodecPool,
    ) -> None:
        self._run, self._link, self._begin = run, link, begin
        self._progress, self._pool = progress, pool
        self._server, self._fronts = run.server, run.fronts
        self._accounts = Accounts(run.traffic, begin.server_round, "train")
        self._relay = run.server.scheme == "sequential"
        self._asks_first = self._relay or run.needs_devices(begin)
        self._streams: dict[int, Stream] = {}
        self._sides: dict[int, ServerSide] = {}
        self._inbox = Inbox(run.side, pool, run.samples, run.choices)
        self._meeting = Meeting(run.fronts, self._accounts, self._inbox)
        self._result = RoundResult()

    def train(self, keys: list[int]) -> RoundResult:
        """Train on the devices with these keys, see `Rounds.train`.

        Raises
        ------
        AllDevicesLostError, DeviceError, DivergedError, SettingError
            As there.
        """
        start = time.perf_counter()
        begin, result, fronts = self._begin, self._result, self._fronts
        result.handed_on = self._relay and fronts.hands_on
        if result.handed_on and len(keys) > 1:
            require_no_proximal(begin.proximal_mu)
        self._server.begin_round(begin.server_round, begin.seed)
        if self._asks_first:
            keys = self._reach(keys)
        result.aggregates = fronts.aggregates(begin.server_round)
        front = begin.front
        for group in [[key] for key in keys] if self._relay else [keys]:
            self._lockstep(group, replace(begin, front=front))
            if result.handed_on and group[0] in result.finished:
                front = result.finished[group[0]].front
        result.require_finished(begin.server_round)
        self._aggregate()
        result.wall_s = time.perf_counter() - start
        return result

    def _reach(self, keys: list[int]) -> list[int]:
        """Return the devices that answer, by partition id; the others are lost."""
        devices = self._link.devices(keys)
        for key in keys:
            if key not in devices:
                self._lose(key, 0, "did not answer")
        server_round = self._begin.server_round
        self._fronts.prepare(self._link, devices, self._accounts, server_round)
        return sorted(devices, key=lambda k: devices[k])

    def _lockstep(self, keys: list[int], begin: Begin) -> None:
        """Step devices together until each has done its own number of steps."""
        requests: Iterable[tuple[int, TrainRequest]] = self._first(keys, begin).items()
        step = 0
        while answers := self._exchange(requests):
            if step == 0:
                answers = {**answers, **self._send_missing(answers, begin)}
            arrived = self._take(answers, step)
            if means := self._meeting.requests(step):
                arrived |= self._take(self._exchange(means.items()), step)
            gradients = self._learn(step, arrived)
            requests = self._coded(step, gradients)
            step += 1
            if self._progress and gradients:
                most = max(self._streams[key].num_steps for key in gradients)
                self._progress(step, most)
        self._result.num_steps += step - 1

    def _take(
        self, answers: Mapping[int, TrainAnswer], step: int
    ) -> dict[int, Smashed]:
        """Take note of answers; return the smashed data in them."""
        arrived = {}
        for key in sorted(answers):
            try:
                if smashed := self._receive(key, answers[key], step):
                    arrived[key] = smashed
            except DeviceError as error:
                self._drop(self._name(key, answers[key]), error, step)
        return arrived

    def _first(self, keys: list[int], begin: Begin) -> dict[int, TrainRequest]:
        asks = self._asks_first
        devices = self._link.devices(keys) if asks else dict.fromkeys(keys, -1)
        requests = {}
        for key, device in devices.items():
            own = self._fronts.begin(device, begin)
            own, self._sides[key] = self._run.coding(device, own)
            own = self._inbox.begin(key, device, own)
            self._accounts.begun(device, own)
            requests[key] = TrainRequest(0, begin=own)
        return requests

    def _exchange(
        self, requests: Iterable[tuple[int, TrainRequest]]
    ) -> dict[int, TrainAnswer]:
        """Send requests as they come; begin to decode each answer as it arrives."""
        answers: dict[int, TrainAnswer] = {}
        for key, answer in self._link.train_each(requests):
            answers[key] = answer
            if isinstance(answer, TrainReply) and answer.smashed is not None:
                self._inbox.put(key, answer.smashed)
        for key in sorted(answers):
            answer = answers[key]
            if isinstance(answer, TrainReply):
                self._accounts.carried(answer.device, answer.carried)
        return answers

    def _send_missing(
        self, answers: Mapping[int, TrainAnswer], begin: Begin
    ) -> dict[int, TrainAnswer]:
        """Begin again with devices that lost the front which was to stay on them."""
        again = {
            key: answer.device
            for key, answer in answers.items()
            if isinstance(answer, TrainReply) and answer.wants_front
        }
        if not again:
            return {}
        for device in again.values():
            self._fronts.forget(device)
        return self._exchange(self._first(list(again), begin).items())

    def _receive(self, key: int, answer: TrainAnswer, step: int) -> Smashed | None:
        """Take note of an answer; return the smashed data in it.

        Raises
        ------
        DeviceError
            If the device is at fault.
        """
        if isinstance(answer, Lost):
            device = self._name(key, answer)
            if answer.at_fault:
                raise DeviceError(f"device {device} {answer.reason}")
            self._lose(device, step, answer.reason)
            return None
        stream = self._streams.get(key) or self._open(key, answer)
        stream.require_in_turn(answer, step)
        self._accounts.device_codec(stream.device, answer.codec_s)
        self._result.compute_s += answer.compute_s
        if answer.done:
            self._finish(stream, answer)
        elif answer.smashed is None:
            self._meeting.join(stream, answer, step)
        return answer.smashed

    def _name(self, key: int, answer: TrainAnswer) -> int:
        """Return the partition id of a device, or its key where it never told."""
        if key in self._streams:
            return self._streams[key].device
        return key if answer.device is None else answer.device

    def _open(self, key: int, reply: TrainReply) -> Stream:
        """Open the server's end of a device's stream."""
        device = reply.device
        self._run.side.size.limits.require_steps("steps", reply.num_steps)
        if any(stream.device == device for stream in self._streams.values()):
            raise DeviceError(
                f"partition id {device} is claimed by two devices; give each its "
                "own partition-id in the node config"
            )
        run, begin = self._run, self._begin
        channels = self._fronts.at_cut(device)
        end = ServerEnd(
            self._sides[key],
            Place(begin.seed, begin.server_round, device),
            channels,
            self._accounts,
            recalled(run.lasting.pop(device, {}), channels),
        )
        period = self._fronts.period_steps
        self._streams[key] = Stream(key, device, end, reply.num_steps, period)
        return self._streams[key]

    def _finish(self, stream: Stream, reply: TrainReply) -> None:
        """Take a device's last reply."""
        self._run.remember(stream.device, stream.end.down, reply)
        self._inbox.end(stream.key, stream.device)
        front = self._fronts.receive(stream.device, reply)
        self._accounts.finished(stream.device, reply, front)
        self._result.finished[stream.key] = stream.result(reply, front)

    def _learn(self, step: int, arrived: Mapping[int, Smashed]) -> dict[int, Tensor]:
        """Learn from a step's smashed data; return everyone's gradient by key."""
        streams = {self._streams[key].device: self._streams[key] for key in arrived}
        batches: dict[int, Batch] = {}
        for device in sorted(streams):
            stream = streams[device]
            decoded = self._inbox.take(stream.key)
            try:
                batch = stream.end.receive(arrived[stream.key], decoded, step)
                batches[device] = self._fronts.lift(device, batch, step)
            except (DeviceError, DivergedError) as error:
                self._drop(device, error, step)
        gradients = {}
        for device, (gradient, loss) in self._step(step, batches).items():
            stream = streams[device]
            stream.learned(loss, batches[device].num_examples)
            gradients[stream.key] = own = self._fronts.lower(device, gradient)
            self._run.side.size.learn(own)
        return gradients

    def _coded(
        self, step: int, gradients: Mapping[int, Tensor]
    ) -> Iterator[tuple[int, TrainRequest]]:
        """Code gradients; give each request as soon as its frame is there."""
        by_stream = [(self._streams[key], g) for key, g in gradients.items()]
        drop = partial(self._drop, step=step)
        yield from coded_gradients(self._pool, step, by_stream, drop)
        self._run.side.end_step()

    def _step(self, step: int, batches: dict[int, Batch]) -> dict[int, Answer]:
        if self._run.on_device_error == "drop":
            drop = partial(self._drop, step=step)
            return step_without_faults(self._server, step, batches, drop)
        return step_or_blame(self._server, step, batches)

    def _aggregate(self) -> None:
        """Average what the scheme averages; make every front whole."""
        results = self._result.finished.values()
        num_examples = {r.device: r.num_examples for r in results}
        self._server.end_round(num_examples)
        if self._result.aggregates:
            parts = {r.device: r.front for r in results if r.front is not None}
            whole = self._fronts.complete(parts, num_examples)
            for result in results:
                result.front = whole[result.device]

    def _drop(self, device: int, error: Exception, step: int) -> None:
        """Lose a device at fault for the rest of the round, or raise its error."""
        if self._run.on_device_error == "raise":
            raise error
        self._fronts.forget(device)
        self._run.side.forget(device)
        self._lose(device, step, f"at fault: {error}")

    def _lose(self, device: int, step: int, reason: str) -> None:
        self._result.lost[device] = reason
        log_lost(f"round {self._begin.server_round}, step {step}", device, reason)
