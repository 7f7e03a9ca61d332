"""One round: the lock-step loop over devices, written once for every transport."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from flwr_slfac.codec import Codec, Memory, decode, encode, restart
from flwr_slfac.codec.wire import raw_num_bytes
from flwr_slfac.errors import (
    AllDevicesLostError,
    DecodeError,
    DeviceError,
    DivergedError,
    EncodeError,
    SettingError,
    TrainingError,
)
from flwr_slfac.lightweight.centre import Centres
from flwr_slfac.lightweight.cost import StepCost
from flwr_slfac.split.absent import Absent, drop_mask
from flwr_slfac.split.fronts import Fronts
from flwr_slfac.split.noise import seed_for
from flwr_slfac.split.protocol import (
    Begin,
    EvaluateReply,
    EvaluateRequest,
    Link,
    Lost,
    Smashed,
    TrainAnswer,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.split.server_half import Batch, ServerHalf
from flwr_slfac.states import State
from flwr_slfac.traffic import Phase, Traffic

logger = logging.getLogger("flwr")

Progress = Callable[[int, int], None]


@dataclass
class DeviceResult:
    """What a device's work in a round came to.

    Parameters
    ----------
    device : int
        Partition id.
    front : mapping of str to Tensor or None
        The trained device-side model, in full; None if it stays on the device.
    num_examples : int
        Examples that it trained on, counted in each epoch.
    loss : float
        Mean training loss over those examples.
    """

    device: int
    front: State | None
    num_examples: int
    loss: float


@dataclass
class RoundResult:
    """What a round came to.

    Parameters
    ----------
    finished : dict of int to DeviceResult
        By key of the link.
    lost : dict of int to str
        Reasons by partition id, or by key for a device that never told its own.
    num_steps : int
        Most steps that any device took.
    compute_s, wall_s : float
        What devices spent on computing, summed, and how long the round took.
    aggregates : bool
        Whether the fronts came back.
    handed_on : bool
        Whether each device went on with the front of the one before.
    costs : dict of int to StepCost
        Of lightweight training: what a step cost each device, by partition id.
    """

    finished: dict[int, DeviceResult] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    num_steps: int = 0
    compute_s: float = 0.0
    wall_s: float = 0.0
    aggregates: bool = True
    handed_on: bool = False
    costs: dict[int, StepCost] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Mean training loss over all examples; NaN if no device finished."""
        total = sum(r.num_examples for r in self.finished.values())
        if not total:
            return float("nan")
        weighted = (r.loss * r.num_examples for r in self.finished.values())
        return sum(weighted) / total


@dataclass
class _Worker:
    """The server's notes on one device within a round."""

    key: int
    device: int = -1
    num_steps: int = 0
    num_examples: int = 0
    loss_sum: float = 0.0
    up: Memory = field(default_factory=dict)
    down: Memory = field(default_factory=dict)
    absent: Absent = field(default_factory=Absent)


class Rounds:
    """Runs rounds of training and evaluation over a link.

    Parameters
    ----------
    server : ServerHalf
        The back and how it learns.
    down : Codec
        How cut-layer gradients are coded.
    traffic : Traffic
        Where what crosses is entered.
    max_elements : int
        Largest activation tensor accepted from a device.
    fronts : Fronts, optional
        Hands out fronts and takes them back, for lightweight training.
    """

    def __init__(
        self,
        server: ServerHalf,
        down: Codec,
        traffic: Traffic,
        max_elements: int,
        fronts: Fronts | None = None,
    ) -> None:
        self._server = server
        self._down = down
        self._traffic = traffic
        self._max_elements = max_elements
        self._fronts = fronts
        # Of gradient codecs, by device: what outlives a round, a residual for example.
        self._kept_down: dict[int, Memory] = {}
        self._centres = Centres()

    def train(
        self,
        link: Link,
        keys: Iterable[int],
        begin: Begin,
        progress: Progress | None = None,
    ) -> RoundResult:
        """Train one round on the devices with these keys.

        Returns
        -------
        RoundResult
            With at least one finished device.

        Raises
        ------
        AllDevicesLostError
            If no device finishes.
        """
        start = time.perf_counter()
        result, keys = RoundResult(), list(keys)
        self._server.begin_round(begin.server_round, begin.seed)
        relay = self._server.scheme == "sequential"
        if relay or self._fronts is not None:
            devices = self._reach(link, keys, begin, result)
            keys = sorted(devices, key=lambda k: devices[k])
        if self._fronts is not None:
            self._fronts.meet(link, devices)
            self._fronts.choose_masks(begin.server_round)
            result.aggregates = self._fronts.aggregates(begin.server_round)
        if relay:
            self._relay(link, keys, begin, result, progress)
        else:
            self._lockstep(link, keys, begin, result, progress)
        if not result.finished:
            reasons = "; ".join(f"device {k}: {v}" for k, v in result.lost.items())
            raise AllDevicesLostError(
                f"round {begin.server_round}: every device was lost ({reasons}); the "
                "models of the last completed round are kept"
            )
        num_examples = {r.device: r.num_examples for r in result.finished.values()}
        self._server.end_round(num_examples)
        if self._fronts is not None and result.aggregates:
            parts = {r.device: r.front for r in result.finished.values() if r.front}
            fronts = self._fronts.complete(parts, num_examples)
            for device_result in result.finished.values():
                device_result.front = fronts[device_result.device]
        result.wall_s = time.perf_counter() - start
        return result

    def _reach(
        self, link: Link, keys: list[int], begin: Begin, result: RoundResult
    ) -> dict[int, int]:
        """Return the partition ids of devices that answer; the others are lost."""
        devices = link.devices(keys)
        for key in keys:
            if key not in devices:
                self._lose(result, key, begin.server_round, 0, "did not answer")
        return devices

    def _relay(
        self,
        link: Link,
        keys: list[int],
        begin: Begin,
        result: RoundResult,
        progress: Progress | None,
    ) -> None:
        """Hand the front from device to device, in the order of the keys."""
        result.handed_on = self._fronts is None or self._fronts.relay
        front = begin.front
        for key in keys:
            handed = replace(begin, front=front)
            self._lockstep(link, [key], handed, result, progress)
            if result.handed_on and key in result.finished:
                front = result.finished[key].front

    def _lockstep(
        self,
        link: Link,
        keys: list[int],
        begin: Begin,
        result: RoundResult,
        progress: Progress | None,
    ) -> None:
        """Step all devices together until each has done its own number of steps."""
        workers = {key: _Worker(key) for key in keys}
        requests = self._first_requests(link, keys, begin)
        step = 0
        while requests:
            answers = link.train(requests)
            if step == 0:
                answers = {**answers, **self._send_missing(link, answers, begin)}
            arrived: dict[int, Smashed] = {}
            for key in sorted(requests):
                answer = answers[key]
                worker = workers[key]
                if isinstance(answer, Lost):
                    name = answer.device if worker.device < 0 else worker.device
                    name = key if name is None else name
                    self._lose(result, name, begin.server_round, step, answer.reason)
                    continue
                if worker.device < 0:
                    worker.down = self._kept_down.pop(answer.device, {})
                worker.device, worker.num_steps = answer.device, answer.num_steps
                self._note_seconds(begin.server_round, worker, answer)
                result.compute_s += answer.compute_s
                if answer.done:
                    if kept := restart(worker.down):
                        self._kept_down[worker.device] = kept
                    result.finished[key] = DeviceResult(
                        worker.device,
                        self._take_front(worker, answer, begin, result),
                        worker.num_examples,
                        worker.loss_sum / max(worker.num_examples, 1),
                    )
                elif answer.smashed is not None:
                    arrived[key] = answer.smashed
            self._require_distinct(workers, arrived)
            requests = self._answer(step, arrived, workers, begin)
            step += 1
            if progress and requests:
                progress(step, max(workers[k].num_steps for k in requests))
        result.num_steps += step - 1

    def _first_requests(
        self, link: Link, keys: list[int], begin: Begin
    ) -> dict[int, TrainRequest]:
        if self._fronts is None:
            return {key: TrainRequest(0, begin=begin) for key in keys}
        requests = {}
        for key, device in link.devices(keys).items():
            own = self._fronts.begin(device, begin)
            if own.mask:
                place = (begin.server_round, device)
                self._traffic.add(
                    *place, "train", "model-down", num_bytes=len(own.mask)
                )
            requests[key] = TrainRequest(0, begin=own)
        return requests

    def _send_missing(
        self, link: Link, answers: Mapping[int, TrainAnswer], begin: Begin
    ) -> dict[int, TrainAnswer]:
        """Begin again with devices that lost the front which was to live on them."""
        again = {
            key: answer.device
            for key, answer in answers.items()
            if isinstance(answer, TrainReply) and answer.wants_front
        }
        if self._fronts is None or not again:
            return {}
        for device in again.values():
            self._fronts.forget(device)
        return link.train(self._first_requests(link, list(again), begin))

    def _take_front(
        self, worker: _Worker, reply: TrainReply, begin: Begin, result: RoundResult
    ) -> State | None:
        """Return what came of a device's front, and enter what crossed."""
        if self._fronts is None:
            if reply.front is None:
                raise DeviceError(f"device {worker.device} did not send its front")
            return reply.front
        front = self._fronts.receive(worker.device, reply)
        if reply.update is not None and front is not None:
            self._traffic.add(
                begin.server_round,
                worker.device,
                "train",
                "model-up",
                num_bytes=len(reply.update),
                raw_bytes=sum(4 * t.numel() for t in front.values()),
            )
        if reply.cost:
            result.costs[worker.device] = StepCost.from_text(reply.cost)
        return front

    def _answer(
        self,
        step: int,
        arrived: dict[int, Smashed],
        workers: dict[int, _Worker],
        begin: Begin,
    ) -> dict[int, TrainRequest]:
        """Learn from a step's smashed data and code everyone's gradient."""
        by_device = {workers[key].device: key for key in arrived}
        batches = {
            device: self._decode(arrived[key], workers[key], begin, step, "train")
            for device, key in sorted(by_device.items())
        }
        self._centres.end_step()
        if not batches:
            return {}
        requests = {}
        for device, (gradient, loss) in self._server.step(step, batches).items():
            worker = workers[by_device[device]]
            worker.num_examples += batches[device].num_examples
            worker.loss_sum += loss * batches[device].num_examples
            frame = self._encode_gradient(gradient, worker, begin, step)
            requests[worker.key] = TrainRequest(step + 1, gradient=frame)
        return requests

    def _decode(
        self,
        smashed: Smashed,
        worker: _Worker,
        begin: Begin,
        step: int,
        phase: Phase,
    ) -> Batch:
        """Decode a device's smashed data and enter its traffic."""
        server_round = begin.server_round
        start = time.perf_counter()
        memory = worker.up if phase == "train" else {}
        try:
            activations = decode(
                smashed.activations,
                max_elements=self._max_elements,
                memory=memory,
                device=self._server.where,
            )
            targets = decode(
                smashed.targets,
                max_elements=self._max_elements,
                device=self._server.where,
            )
            worker.absent = self._absent(smashed, worker.device, begin, step, phase)
            activations = worker.absent.restore(activations, self._centres)
        except (DecodeError, SettingError, TrainingError) as error:
            raise DeviceError(
                f"device {worker.device}, round {server_round}, step {step} sent "
                f"smashed data that cannot be decoded: {error}"
            ) from error
        if not len(activations) == len(targets) == smashed.num_examples:
            raise DeviceError(
                f"device {worker.device}, round {server_round}, step {step} sent "
                f"{len(activations)} activations and {len(targets)} targets for "
                f"{smashed.num_examples} examples"
            )
        place = (server_round, worker.device, phase)
        self._traffic.add(
            *place,
            "up",
            num_bytes=len(smashed.activations),
            raw_bytes=raw_num_bytes(activations),
            seconds=time.perf_counter() - start,
        )
        self._traffic.add(
            *place,
            "targets",
            num_bytes=len(smashed.targets),
            raw_bytes=raw_num_bytes(targets),
        )
        return Batch(activations, targets, smashed.num_examples)

    def _absent(
        self, smashed: Smashed, device: int, begin: Begin, step: int, phase: Phase
    ) -> Absent:
        """Return what this smashed data lacks by pruning and dropout."""
        if self._fronts is None:
            return Absent()
        orders, dropped = self._fronts.orders, None
        if orders.dropout and phase == "train":
            if math.prod(smashed.shape) > self._max_elements:
                raise DecodeError(
                    f"activations of shape {smashed.shape} are above the limit of "
                    f"{self._max_elements} elements"
                )
            place = (begin.seed, begin.server_round, device, step)
            dropped = drop_mask(orders, smashed.shape, *place)
        return Absent(self._fronts.at_cut(device), dropped)

    def _encode_gradient(
        self, gradient: torch.Tensor, worker: _Worker, begin: Begin, step: int
    ) -> bytes:
        start = time.perf_counter()
        place = (begin.server_round, worker.device, step)
        try:
            frame = encode(
                worker.absent.select(gradient),
                self._down,
                role="gradient",
                seed=seed_for(begin.seed, *place, "down"),
                memory=worker.down,
            )
        except EncodeError as error:
            raise DivergedError(
                f"the cut-layer gradient of device {worker.device}, round "
                f"{begin.server_round}, step {step} cannot be coded: {error}"
            ) from error
        self._traffic.add(
            begin.server_round,
            worker.device,
            "train",
            "down",
            num_bytes=len(frame),
            raw_bytes=raw_num_bytes(gradient),
            seconds=time.perf_counter() - start,
        )
        return frame

    def evaluate(
        self, link: Link, keys: Iterable[int], begin: Begin, max_bytes: int
    ) -> dict[int, dict[str, float]]:
        """Evaluate through the split; return each device's metrics by key.

        Each holds ``num-examples``, ``loss`` and the server's metrics, means over that
        device's test set. Devices without a test set are left out, lost ones too.
        """
        keys = list(keys)
        workers = {key: _Worker(key) for key in keys}
        sums: dict[int, dict[str, float]] = {}
        begins = dict.fromkeys(keys, begin)
        if self._fronts is not None:
            devices = link.devices(keys)
            self._fronts.meet(link, devices)
            begins = {
                key: self._fronts.begin_evaluation(device, begin)
                for key, device in devices.items()
            }
        requests = {k: EvaluateRequest(0, max_bytes, b) for k, b in begins.items()}
        lost = RoundResult()
        while requests:
            answers = link.evaluate(requests)
            following = {}
            for key in sorted(requests):
                answer = answers[key]
                if isinstance(answer, Lost):
                    sums.pop(key, None)
                    name = key if answer.device is None else answer.device
                    self._lose(lost, name, begin.server_round, 0, answer.reason)
                    continue
                worker = workers[key]
                worker.device = answer.device
                first = requests[key].first
                self._evaluate_batches(answer, worker, first, begin, sums)
                done = first + len(answer.batches)
                if done < answer.num_batches:
                    following[key] = EvaluateRequest(done, max_bytes)
            requests = following
        return {
            key: {
                name: value if name == "num-examples" else value / total["num-examples"]
                for name, value in total.items()
            }
            for key, total in sorted(sums.items(), key=lambda kv: workers[kv[0]].device)
        }

    def _evaluate_batches(
        self,
        answer: EvaluateReply,
        worker: _Worker,
        first: int,
        begin: Begin,
        sums: dict[int, dict[str, float]],
    ) -> None:
        for index, smashed in enumerate(answer.batches, start=first):
            batch = self._decode(smashed, worker, begin, index, "evaluate")
            total = sums.setdefault(worker.key, {"num-examples": 0})
            total["num-examples"] += batch.num_examples
            for name, value in self._server.evaluate(batch).items():
                total[name] = total.get(name, 0.0) + value * batch.num_examples
        self._traffic.add_seconds(
            begin.server_round, worker.device, "evaluate", "up", answer.codec_s
        )

    def _note_seconds(
        self, server_round: int, worker: _Worker, answer: TrainReply
    ) -> None:
        self._traffic.add_seconds(
            server_round, worker.device, "train", "up", answer.codec_s
        )

    @staticmethod
    def _lose(
        result: RoundResult, device: int, server_round: int, step: int, why: str
    ) -> None:
        result.lost[device] = why
        logger.warning(
            "round %d, step %d: lost device %d: %s", server_round, step, device, why
        )

    @staticmethod
    def _require_distinct(
        workers: dict[int, _Worker], arrived: dict[int, Smashed]
    ) -> None:
        devices = [workers[key].device for key in arrived]
        twice = {d for d in devices if devices.count(d) > 1}
        if twice:
            raise DeviceError(
                f"partition id {min(twice)} is claimed by two devices; give each its "
                "own partition-id in the node config"
            )
