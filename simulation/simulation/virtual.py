"""A callback of `SplitFed` that tells a run in virtual time, and who is lost in it.

The training knows nothing of it: it is given each round's link, hands it on observed,
and lets the clock run over what was seen once a round is over.
"""

import logging
import math
import threading
from collections.abc import Sequence
from typing import Any

from flwr_slfac import RoundReport, SettingError
from flwr_slfac.report import readable_bytes
from flwr_slfac.split import Link
from simulation.clock import Clock, RoundTimes
from simulation.draws import generator
from simulation.estimates import estimated_round_s
from simulation.observed import Observed
from simulation.profiles import Profile
from simulation.results import DeviceRow, RoundRow, device_rows
from simulation.sampling import Candidate, find_policy
from simulation.scenario import Scenario
from simulation.work import DeviceWork
from simulation.world import make_availability, make_channel, make_clock

logger = logging.getLogger("flwr")

LINE_EVERY_S = 10.0
# Our choice: how far virtual time jumps while nobody is on, and how often at most.
_IDLE_S, _MOST_IDLE = 60.0, 10_000


class VirtualTime:
    """The clock of a scenario beside a run.

    Parameters
    ----------
    scenario : Scenario
        The devices, their network, and what is trained.
    profiles : sequence of Profile
        Its devices.
    work : DeviceWork
        Counts the operations of each device's steps.
    estimated_s : sequence of float
        By device, what a round may take it; for sampling before it had one.

    Attributes
    ----------
    clock : Clock
        Virtual time, and the timeline of all that happened.
    rounds : list of RoundRow
        What each round came to.
    times : list of RoundTimes
        When each was, and who was lost.
    candidates : dict of int to Candidate
        What is known of each device, for sampling.

    Raises
    ------
    SettingError
        If devices are not to wait for each other at every step.
    """

    def __init__(
        self,
        scenario: Scenario,
        profiles: Sequence[Profile],
        work: DeviceWork,
        estimated_s: Sequence[float],
    ) -> None:
        require_lockstep(scenario)
        self.scenario, self.profiles = scenario, profiles
        self.channel = make_channel(scenario, profiles)
        self.clock: Clock = make_clock(scenario, profiles)
        self.rounds: list[RoundRow] = []
        self.times: list[RoundTimes] = []
        self._available = make_availability(scenario, profiles)
        self._policy = find_policy(scenario.training.sampling)
        self._work, self._shares = work, dict[int, float]()
        self._round: Observed | None = None
        self.candidates = {
            device: Candidate(device, seconds)
            for device, seconds in enumerate(estimated_s)
        }
        self._over = threading.Event()

    @classmethod
    def of(
        cls, scenario: Scenario, profiles: Sequence[Profile], work: DeviceWork
    ) -> "VirtualTime":
        """Return one that estimates rounds before it has seen any."""
        channel = make_channel(scenario, profiles)
        seconds = estimated_round_s(scenario, profiles, channel, work)
        return cls(scenario, profiles, work, seconds)

    @property
    def can_lose(self) -> bool:
        """Whether a deadline, a device that goes off or a battery may end its round."""
        own = self.scenario
        return (
            min(own.deadline.step_s, own.deadline.round_s) < math.inf
            or own.churn.on_s < math.inf
            or bool(own.churn.file)
            or any(profile.battery_j < math.inf for profile in self.profiles)
        )

    def choose(self, server_round: int, num_devices: int) -> list[int]:
        """Return the devices of a round, of those that are on, by the policy.

        If none is on, virtual time goes on until one is.

        Raises
        ------
        SettingError
            If none ever is, or the policy names others.
        """
        training = self.scenario.training
        here = [
            Candidate(**{**vars(self.candidates[d]), "server_round": server_round})
            for d in self._on(min(num_devices, len(self.profiles)))
        ]
        wanted = training.devices_per_round or len(here)
        draws = generator(self.scenario.seed, "sampling", server_round)
        named = list(self._policy(here, min(wanted, len(here)), draws))
        chosen = sorted(set(named))
        if not chosen or not set(chosen) <= {c.device for c in here}:
            raise SettingError(
                f"sampling {training.sampling!r} names {named}; it was given "
                f"{[c.device for c in here]} and is to name some of these"
            )
        return chosen

    def _on(self, num_devices: int) -> list[int]:
        start_s = self.clock.now_s
        for _ in range(_MOST_IDLE):
            now_s = self.clock.now_s
            found = [
                device
                for device in range(num_devices)
                if self._available.is_on(device, now_s)
                and self.clock.timeline.battery_left_j(device)
            ]
            if found:
                return found
            self.clock.now_s += _IDLE_S
        raise SettingError(
            f"from {start_s:g} s on no device was on with a battery that is not empty, "
            f"for {_MOST_IDLE * _IDLE_S:g} s; see [churn], availability and battery_j"
        )

    def learn(self, device: int, loss: float, num_examples: int) -> None:
        """Take note of what a device tells of its training in this round."""
        # Strategies are tried before the first round, with losses that are made up.
        if self._round is not None:
            self._update(device, loss=loss, num_examples=num_examples)

    def _update(self, device: int, **changes: Any) -> None:
        self.candidates[device] = Candidate(
            **{**vars(self.candidates[device]), **changes}
        )

    def on_start(self, strategy: Any) -> None:
        """Begin to log how virtual time stands."""
        threading.Thread(target=self._tell, name="virtual-time", daemon=True).start()

    def on_link(self, link: Link, server_round: int) -> Link:
        """Observe a round's link."""
        self._round = Observed(
            link,
            server_round,
            self.scenario.training.scheme,
            self._work,
            self._shares,
            self.clock.foresee if self.can_lose else None,
        )
        return self._round

    def on_round(self, report: RoundReport) -> None:
        """Let the clock run over a round, and log what it came to."""
        seen, self._round = self._round, None
        record = None if seen is None else seen.record()
        if seen is None or record is None:
            return
        first_span = len(self.clock.timeline.spans)
        times = self.clock.advance(record)
        self.times.append(times)
        spent_s: dict[int, float] = {}
        for span in self.clock.timeline.spans[first_span:]:
            spent_s[span.device] = spent_s.get(span.device, 0.0) + span.seconds
        for own in record.devices:
            self._update(
                own.device,
                round_s=spent_s.get(own.device, 0.0),
                last_round=report.server_round,
            )
        energy = self.clock.timeline.energy
        self.rounds.append(
            RoundRow.of(
                report,
                times,
                seen.notes,
                math.fsum(own.total_j for own in energy.values()),
                self.rounds[-1] if self.rounds else None,
            )
        )
        logger.info("%s", self.line())

    def on_end(self) -> None:
        """Log no more."""
        self._over.set()

    def line(self) -> str:
        """Return how virtual time stands, as a line."""
        if not self.rounds:
            return "virtual 0 s, no round is over yet"
        last = self.rounds[-1]
        accuracy = next(
            (r.accuracy for r in reversed(self.rounds) if not math.isnan(r.accuracy)),
            math.nan,
        )
        return (
            f"virtual {last.end_s:.1f} s after round {last.server_round}, accuracy "
            f"{accuracy:.4f}, {readable_bytes(last.total_bytes)} crossed, "
            f"{last.total_j:.1f} J on devices"
            + (f", lost {last.num_lost}" if last.num_lost else "")
        )

    def devices(self) -> list[DeviceRow]:
        """Return what the run came to by device."""
        return device_rows(self.profiles, self.channel, self.clock.timeline)

    def _tell(self) -> None:
        while not self._over.wait(LINE_EVERY_S):
            logger.info("%s", self.line())


def require_lockstep(scenario: Scenario) -> None:
    """Refuse a scenario whose devices do not wait for each other at every step.

    Raises
    ------
    ScenarioError
        If it is one.
    """
    if scenario.training.waits != "lockstep":
        raise scenario.error(
            "training.waits",
            f"is {scenario.training.waits!r}; what is trained for real runs in "
            "lock-step: leave it out, or ask `python -m simulation plan`",
        )
