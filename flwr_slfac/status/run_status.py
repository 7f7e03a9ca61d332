"""What a run tells of itself, kept where other threads may look at it."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from flwr_slfac.report import RoundReport
from flwr_slfac.status.status import DeviceStatus, Phase, Status, summed
from flwr_slfac.traffic import Traffic
from flwr_slfac.transport import Carrier

_BETWEEN: Phase = "between"


class RunStatus:
    """How a run stands; told by the thread that runs it, asked by others.

    What is told replaces whole objects, and what is looked at is copied, so that no
    lock is needed.

    Parameters
    ----------
    traffic : Traffic
        Where what crosses is entered.
    reports : sequence of RoundReport
        One a finished round.
    """

    def __init__(self, traffic: Traffic, reports: Sequence[RoundReport]) -> None:
        self.num_rounds = 0
        self._traffic, self._reports = traffic, reports
        self._carrier: Carrier | None = None
        self._nodes: frozenset[int] = frozenset()
        self._round, self._phase = 0, _BETWEEN
        self._steps = 0, 0
        # Of the rounds before this one, since the start of this process.
        self._bytes_before: dict[str, int] = {}
        # When the first round began and which it was; when this one did.
        self._first: tuple[float, int] | None = None
        self._round_began = 0.0

    @contextmanager
    def during(
        self, phase: Phase, server_round: int, carrier: Carrier, nodes: Iterable[int]
    ) -> Iterator[None]:
        """Take note that nodes train, or evaluate, while the context lasts."""
        now = time.monotonic()
        if server_round != self._round:
            last = self._bytes_by_device().values()
            self._bytes_before = summed([self._bytes_before, *last])
            self._first = self._first or (now, server_round)
            self._round_began, self._round = now, server_round
        self._carrier, self._nodes = carrier, frozenset(nodes)
        self._phase = phase
        if phase == "train":
            self._steps = 0, 0
        try:
            yield
        finally:
            self._phase, self._nodes = _BETWEEN, frozenset()

    def stepped(self, step: int, num_steps: int) -> None:
        """Take note of steps done, of those of the device with most."""
        self._steps = step, num_steps

    def now(self) -> Status:
        """Return how the run stands."""
        by_device = self._bytes_by_device()
        reports = self._reports
        return Status(
            self._round,
            self.num_rounds,
            self._phase,
            *self._steps,
            devices=self._devices(by_device),
            num_bytes=summed(by_device.values()),
            total_bytes=summed([self._bytes_before, *by_device.values()]),
            left_s=self._left(),
            metrics=reports[-1].scalars() if reports else {},
        )

    def _devices(
        self, by_device: dict[int, dict[str, int]]
    ) -> tuple[DeviceStatus, ...]:
        carrier, nodes, now = self._carrier, self._nodes, time.monotonic()
        if carrier is None:
            return ()
        found = []
        for node, seen in carrier.look().items():
            if node not in nodes:
                continue
            device = node if seen.device is None else seen.device
            waiting_s = None if seen.asked_at is None else now - seen.asked_at
            num_bytes = by_device.get(device, {})
            found.append(DeviceStatus(device, seen.connected, waiting_s, num_bytes))
        return tuple(sorted(found, key=lambda d: d.device))

    def _bytes_by_device(self) -> dict[int, dict[str, int]]:
        """Return what crossed in this round by device and direction."""
        sums: dict[int, dict[str, int]] = {}
        for row in self._traffic.rows(server_round=self._round):
            own = sums.setdefault(row.device, {})
            own[row.direction] = own.get(row.direction, 0) + row.num_bytes
        return sums

    def _left(self) -> float | None:
        """Return the seconds to the end, if the rounds go on as they did.

        In the first round its steps are all there is to go by.
        """
        if self._first is None:
            return None
        began, first = self._first
        now, done = time.monotonic(), self._round - first
        step, num_steps = self._steps
        if done:
            per_round = (self._round_began - began) / done
        elif step and num_steps:
            per_round = (now - began) / step * num_steps
        else:
            return None
        rest = per_round * (self.num_rounds - self._round + 1)
        return max(0.0, rest - (now - self._round_began))
