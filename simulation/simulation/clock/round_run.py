"""One round in virtual time: what waits for what, by scheme.

::

    sequential                 devices one after another, each a lock-step of its own
    sflv1, sflv2, parallel     a lock-step of all
        all devices:  [model-down] forward encode up ─┐ barrier: the last one, or the
        server:       decode each, learn, encode each ◄┘ deadline, ends it
        all devices:  down decode backward, then forward encode up, or model-up
    sflv1, sflv2 by arrival    lock-steps of one, side by side, that share the server

As `flwr_slfac.split.round`: the barrier holds the answers of all devices in every
lock-step scheme, updates of those that have finished too, and gradients leave together.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import simpy

from simulation.clock.device_run import GONE, DeviceRun
from simulation.clock.record import RoundRecord
from simulation.clock.settings import Availability, Deadline, Server
from simulation.clock.timeline import SERVER, Span, Timeline, Wait

Work = Generator[simpy.Event, Any, None]
Waits = Literal["lockstep", "arrival"]


@dataclass
class RoundRun:
    """One round.

    Parameters
    ----------
    env : simpy.Environment
        Virtual time.
    record : RoundRecord
        What happens.
    runs : mapping of int to DeviceRun
        By device.
    server : Server
        How fast the server is.
    deadline : Deadline
        How long it waits.
    availability : Availability
        Who is on.
    waits : {"lockstep", "arrival"}
        Whether a device waits for all others at every step, or only where its scheme
        makes it.
    timeline : Timeline
        Where spans and waits are entered.
    until : (int, int), optional
        A device and a step: once its answer is there, or it is lost, `reached` is set
        and nothing more happens.
    """

    env: simpy.Environment
    record: RoundRecord
    runs: Mapping[int, DeviceRun]
    server: Server
    deadline: Deadline
    availability: Availability
    waits: Waits
    timeline: Timeline
    until: tuple[int, int] = (-1, -1)
    over: bool = False
    reached: bool = False
    _processor: simpy.Resource = field(init=False, repr=False)
    _own: list[simpy.Process] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self._processor = simpy.Resource(self.env)

    def run(self) -> Work:
        """Run the round to its end; `over` tells that it came."""
        work = self._spawn(self._all())
        if self.deadline.round_s < math.inf:
            yield work | self.env.timeout(self.deadline.round_s)
            reason = f"late: after {self.deadline.round_s} s the round was over"
            for run in self.runs.values():
                run.give_up(reason)
            for process in self._own:
                if process.is_alive:
                    process.interrupt(reason)
        yield work
        yield from self._aggregate()
        self.over = True

    def _spawn(self, work: Work) -> simpy.Process:
        process = self.env.process(self._until_broken_off(work))
        self._own.append(process)
        return process

    def _until_broken_off(self, work: Work) -> Work:
        try:
            yield from work
        except simpy.Interrupt:
            return

    def _all(self) -> Work:
        devices = [own.device for own in self.record.devices]
        for device in devices:
            self._watch(device)
        scheme = self.record.scheme
        if scheme == "sequential":
            for device in devices:
                yield from self._lockstep([device])
        elif self.waits == "arrival" and scheme != "parallel":
            groups = [self._spawn(self._lockstep([device])) for device in devices]
            yield self.env.all_of(groups)
        else:
            yield from self._lockstep(devices)

    def _watch(self, device: int) -> None:
        """Lose a device that is off, or goes off."""
        now, run = self.env.now, self.runs[device]
        if not self.availability.is_on(device, now):
            run.give_up(f"{GONE} it was off at the start")
            return
        off_s = self.availability.next_off_s(device, now)
        if off_s < math.inf:
            self.env.process(self._switch_off(run, off_s))

    def _switch_off(self, run: DeviceRun, off_s: float) -> Work:
        yield self.env.timeout(off_s - self.env.now)
        run.give_up(f"{GONE} it went off")

    def _lockstep(self, devices: Sequence[int]) -> Work:
        """Step devices together until each has done its own steps, or is lost."""
        active = [d for d in devices if self.runs[d].lost is None]
        step = 0
        while active:
            yield from self._answers(active, step)
            if step == self.until[1] and self.until[0] in active:
                self.reached = True
                yield self.env.event()
            here = [self.runs[d] for d in active]
            active = [
                run.own.device for run in here if run.lost is None and not run.finished
            ]
            if active:
                yield from self._learn(active, step)
            step += 1

    def _answers(self, devices: Sequence[int], step: int) -> Work:
        """Wait for the answers of all, or until the deadline."""
        runs = [self.runs[device] for device in devices]
        everyone = self.env.all_of([run.start(step) for run in runs])
        if self.deadline.step_s < math.inf:
            yield everyone | self.env.timeout(self.deadline.step_s)
            for run in runs:
                if run.busy:
                    late = f"late: no answer in {self.deadline.step_s} s at step {step}"
                    run.give_up(late)
                    run.answered_s = self.env.now
        else:
            yield everyone
        last = max(runs, key=lambda run: (run.answered_s, run.lost is not None))
        for run in runs:
            goes_on = run.lost is None and not run.finished
            if goes_on and run.answered_s < last.answered_s:
                self._wait(run, last.own.device, run.answered_s, step)

    def _learn(self, devices: Sequence[int], step: int) -> Work:
        """Let the server learn from the smashed data of a step."""
        start_s = self.env.now
        steps = [self.runs[device].own.steps[step] for device in devices]
        server, place = self.server, (self.record.server_round, step)
        with self._processor.request() as turn:
            yield turn
            for own in steps:
                seconds = own.up_raw_bytes / server.decode_byte_per_s
                yield from self._serve("server-decode", seconds, *place)
            flops = [own.server_flops for own in steps]
            for amount in [sum(flops)] if self.record.scheme == "parallel" else flops:
                yield from self._serve("server", amount / server.flop_per_s, *place)
            for own in steps:
                seconds = own.down_raw_bytes / server.encode_byte_per_s
                yield from self._serve("server-encode", seconds, *place)
        if self.env.now > start_s:
            for device in devices:
                self._wait(self.runs[device], SERVER, start_s, step)

    def _aggregate(self) -> Work:
        seconds = self.record.aggregate_flops / self.server.flop_per_s
        if any(run.finished for run in self.runs.values()):
            yield from self._serve("aggregate", seconds, self.record.server_round, -1)

    def _serve(self, kind: str, seconds: float, server_round: int, step: int) -> Work:
        if not seconds:
            return
        start_s, place = self.env.now, (0.0, server_round, step)
        try:
            yield self.env.timeout(seconds)
        except simpy.Interrupt:
            broken = Span(SERVER, kind, start_s, self.env.now, *place, complete=False)
            self.timeline.add(broken)
            raise
        self.timeline.add(Span(SERVER, kind, start_s, self.env.now, *place))

    def _wait(self, run: DeviceRun, awaited: int, start_s: float, step: int) -> None:
        place = self.record.server_round, step
        wait = Wait(run.own.device, awaited, start_s, self.env.now, *place)
        self.timeline.waits.append(wait)
