"""One device in one round: its work, and how it can be lost."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from simulation.channel import Packets
from simulation.clock.air import Air
from simulation.clock.record import DeviceRound, DeviceStep
from simulation.clock.timeline import Span, Timeline
from simulation.profiles import Profile

Work = Generator[simpy.Event, Any, None]


@dataclass
class Surroundings:
    """What all devices of a round share.

    Parameters
    ----------
    env : simpy.Environment
        Virtual time.
    up, down : Air
        What carries their bytes.
    packets : Packets
        Latency, jitter and loss.
    seed, server_round : int
        What draws are a function of, beside the device.
    notice_s : float
        How long the server takes to know that a device is gone.
    timeline : Timeline
        Where spans are entered.
    """

    env: simpy.Environment
    up: Air
    down: Air
    packets: Packets
    seed: int
    server_round: int
    notice_s: float
    timeline: Timeline


@dataclass
class DeviceRun:
    """One device's work of one round.

    Parameters
    ----------
    own : DeviceRound
        What it does.
    profile : Profile
        How fast it is.
    around : Surroundings
        What it shares with others.
    """

    own: DeviceRound
    profile: Profile
    around: Surroundings
    lost: str | None = None
    finished: bool = False
    answered_s: float = 0.0
    _process: simpy.Process | None = field(default=None, repr=False)

    @property
    def busy(self) -> bool:
        """Whether the device works at the moment, or is on its way to be missed."""
        return self._process is not None and self._process.is_alive

    def start(self, step: int) -> simpy.Process:
        """Begin the work that ends in the answer of a step; 0 begins the round."""
        self._process = self.around.env.process(self._answer(step))
        return self._process

    def give_up(self, reason: str) -> None:
        """Lose the device now, whatever it does."""
        if self.lost is None and not self.finished:
            self.lost = reason
            if self._process is not None and self._process.is_alive:
                self._process.interrupt(reason)

    def _answer(self, step: int) -> Work:
        """Work until the answer has arrived, or the server misses the device."""
        try:
            if self.lost is None:
                yield from self._work(step)
        except simpy.Interrupt:
            yield from self._missed()
        self.answered_s = self.around.env.now

    def _missed(self) -> Work:
        if self.lost is not None and self.lost.startswith(GONE):
            try:
                yield self.around.env.timeout(self.around.notice_s)
            except simpy.Interrupt:
                return

    def _work(self, step: int) -> Work:
        own = self.own
        if step == 0:
            yield from self._receive("model-down", own.model_down_bytes, step)
        else:
            yield from self._go_back(own.steps[step - 1], step - 1)
        if step == len(own.steps):
            yield from self._send("model-up", own.model_up_bytes, step)
            self.finished = self.lost is None
        else:
            yield from self._go_forward(own.steps[step], step)

    def _go_forward(self, step: DeviceStep, number: int) -> Work:
        profile = self.profile
        forward_s = step.forward_flops / profile.forward_flop_per_s
        yield from self._take("forward", forward_s, number)
        encode_s = step.encode_s
        if encode_s is None:
            encode_s = step.up_raw_bytes / profile.encode_byte_per_s
        yield from self._take("encode", encode_s, number)
        yield from self._send("up", step.up_bytes, number)

    def _go_back(self, step: DeviceStep, number: int) -> Work:
        profile = self.profile
        yield from self._receive("down", step.down_bytes, number)
        decode_s = step.decode_s
        if decode_s is None:
            decode_s = step.down_raw_bytes / profile.decode_byte_per_s
        yield from self._take("decode", decode_s, number)
        backward_s = step.backward_flops / profile.backward_flop_per_s
        yield from self._take("backward", backward_s, number)

    def _send(self, kind: str, num_bytes: float, step: int) -> Work:
        yield from self._cross(self.around.up, kind, num_bytes, step)

    def _receive(self, kind: str, num_bytes: float, step: int) -> Work:
        yield from self._cross(self.around.down, kind, num_bytes, step)

    def _cross(self, air: Air, kind: str, num_bytes: float, step: int) -> Work:
        around, device = self.around, self.own.device
        place = device, around.server_round, step
        packets, seed = around.packets, around.seed
        on_air = packets.air_bytes(num_bytes, seed, kind, *place)
        yield from self._span(kind, air.send(device, on_air), num_bytes, step)
        yield from self._take("flight", packets.delay_s(seed, kind, *place), step)

    def _take(self, kind: str, seconds: float, step: int) -> Work:
        if seconds:
            yield from self._span(kind, self._pause(seconds), 0.0, step)

    def _pause(self, seconds: float) -> Work:
        yield self.around.env.timeout(seconds)

    def _span(self, kind: str, work: Work, num_bytes: float, step: int) -> Work:
        """Do work and enter how long it took, also if it is broken off."""
        env, timeline = self.around.env, self.around.timeline
        place = num_bytes, self.around.server_round, step
        start_s = env.now
        try:
            yield from work
        except simpy.Interrupt:
            timeline.add(
                Span(self.own.device, kind, start_s, env.now, *place, complete=False)
            )
            raise
        if env.now > start_s or num_bytes:
            timeline.add(Span(self.own.device, kind, start_s, env.now, *place))
        if not timeline.battery_left_j(self.own.device):
            self.lost = f"{GONE} its battery is empty"
            raise simpy.Interrupt(self.lost)


# How the reason of one begins that leaves without a word.
GONE = "gone:"
