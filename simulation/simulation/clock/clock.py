"""The virtual clock: feeds records of rounds to a discrete-event simulation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import simpy

from flwr_slfac import SettingError
from flwr_slfac.errors import TrainingError
from simulation.channel import Channel
from simulation.clock.air import air_for
from simulation.clock.device_run import DeviceRun, Surroundings
from simulation.clock.record import RoundRecord
from simulation.clock.round_run import RoundRun, Waits
from simulation.clock.settings import AlwaysOn, Availability, Deadline, Server
from simulation.clock.timeline import Timeline
from simulation.numbers import require_at_least
from simulation.profiles import Profile


class StalledError(TrainingError):
    """A device can never send, and nothing else would end the round."""


@dataclass(frozen=True)
class RoundTimes:
    """When a round was.

    Parameters
    ----------
    server_round : int
        The round.
    start_s, end_s : float
        Virtual time.
    finished : tuple of int
        Devices whose update arrived.
    lost : dict of int to str
        Reasons by device: ``late: ...`` by a deadline, ``gone: ...`` by itself.
    """

    server_round: int
    start_s: float
    end_s: float
    finished: tuple[int, ...]
    lost: dict[int, str]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s

    @property
    def late(self) -> tuple[int, ...]:
        """Devices that a deadline cut off."""
        return tuple(
            d for d, why in sorted(self.lost.items()) if why.startswith("late")
        )


class Clock:
    """Tells when everything in a training happens on given devices.

    Parameters
    ----------
    profiles : sequence of Profile
        By device.
    channel : Channel
        What carries their bytes.
    server : Server, optional
        How fast the server is; none takes no time.
    seed : int
        Of the scenario: of jitter and loss.
    deadline : Deadline, optional
        How long the server waits; for ever by default.
    availability : Availability, optional
        Who is on; all by default.
    waits : {"lockstep", "arrival"} (default: "lockstep")
        ``lockstep``: at every step the server waits for all, as `flwr_slfac.split`
        does. ``arrival``: under sflv1 and sflv2 a device goes on as soon as the server
        has served it, the fastest that these schemes allow.
    notice_s : float (default: 0)
        How long the server takes to know that a device is gone.
    start_s : float (default: 0)
        Virtual time of the first round.

    Raises
    ------
    SettingError
        If a setting is not known or out of range.

    Examples
    --------
    >>> from simulation.channel import PlainLinks
    >>> from simulation.clock import DeviceRound, DeviceStep
    >>> from simulation.tiers import shipped_tiers
    >>> pi = shipped_tiers()["raspberry-pi-5"].median()
    >>> links = PlainLinks((8e6,))
    >>> clock = Clock([pi], Channel(links, links))
    >>> step = DeviceStep(1e6, 1e6, 3.14e10, 3.14e10, 0)
    >>> clock.advance(RoundRecord(1, "parallel", [DeviceRound(0, [step])])).seconds
    4.0
    """

    def __init__(
        self,
        profiles: Sequence[Profile],
        channel: Channel,
        server: Server | None = None,
        *,
        seed: int = 0,
        deadline: Deadline | None = None,
        availability: Availability | None = None,
        waits: Waits = "lockstep",
        notice_s: float = 0.0,
        start_s: float = 0.0,
    ) -> None:
        if waits not in ("lockstep", "arrival"):
            raise SettingError(f"waits is {waits!r}; use 'lockstep' or 'arrival'")
        require_at_least("notice_s", notice_s, 0)
        require_at_least("start_s", start_s, 0)
        self.timeline = Timeline(profiles)
        self.now_s = start_s
        self._channel, self._seed, self._notice_s = channel, seed, notice_s
        self._server = server or Server()
        self._deadline = deadline or Deadline()
        self._availability = availability or AlwaysOn()
        self._waits: Waits = waits

    def run(self, records: Iterable[RoundRecord]) -> list[RoundTimes]:
        """Advance by several rounds."""
        return [self.advance(record) for record in records]

    def advance(self, record: RoundRecord) -> RoundTimes:
        """Let a round happen from now on; enter it into the timeline.

        Raises
        ------
        SettingError
            If a device has no profile.
        StalledError
            If a device can never send and no deadline ends the round.
        """
        env = simpy.Environment(initial_time=self.now_s)
        round_run = self._begin(env, record, self.timeline)
        self._play(env, round_run)
        start_s, self.now_s = self.now_s, float(env.now)
        runs = round_run.runs
        return RoundTimes(
            record.server_round,
            start_s,
            self.now_s,
            tuple(sorted(device for device, run in runs.items() if run.finished)),
            {device: run.lost for device, run in runs.items() if run.lost is not None},
        )

    def foresee(self, record: RoundRecord, device: int, step: int) -> dict[int, str]:
        """Return who is lost, and why, by the barrier of a step; enter nothing.

        What comes after that barrier is not looked at, so the record may end there:
        `advance` with the whole round loses the same devices by then.

        Parameters
        ----------
        record : RoundRecord
            The round, up to this step.
        device, step : int
            Whose answer the barrier waits for, and to which step; that of the device's
            update is the number of its steps.

        Raises
        ------
        SettingError
            If a device has no profile, or devices do not wait for each other at every
            step.
        StalledError
            If a device can never send and no deadline ends the round.
        """
        if self._waits != "lockstep":
            raise SettingError(
                f"waits is {self._waits!r}; what is lost by a step is known before the "
                "next one only in lock-step"
            )
        timeline = Timeline(self.timeline.profiles)
        for own in record.devices:
            timeline.energy[own.device] = replace(self.timeline.energy[own.device])
        env = simpy.Environment(initial_time=self.now_s)
        round_run = self._begin(env, record, timeline)
        round_run.until = device, step
        self._play(env, round_run)
        runs = round_run.runs
        return {d: run.lost for d, run in runs.items() if run.lost is not None}

    def _begin(
        self, env: simpy.Environment, record: RoundRecord, timeline: Timeline
    ) -> RoundRun:
        num_profiles = len(timeline.profiles)
        for own in record.devices:
            if own.device >= num_profiles:
                raise SettingError(
                    f"device {own.device} has no profile: there are {num_profiles}"
                )
        members = [own.device for own in record.devices]
        channel, server_round = self._channel, record.server_round
        around = Surroundings(
            env,
            air_for(env, channel.up, server_round, members),
            air_for(env, channel.down, server_round, members),
            channel.packets,
            self._seed,
            server_round,
            self._notice_s,
            timeline,
        )
        profiles = timeline.profiles
        runs = {
            own.device: DeviceRun(own, profiles[own.device], around)
            for own in record.devices
        }
        return RoundRun(
            env,
            record,
            runs,
            self._server,
            self._deadline,
            self._availability,
            self._waits,
            timeline,
        )

    def _play(self, env: simpy.Environment, round_run: RoundRun) -> None:
        process = env.process(round_run.run())
        while process.is_alive and not round_run.reached:
            if env.peek() == float("inf"):
                busy = [d for d, run in round_run.runs.items() if run.busy]
                number = round_run.record.server_round
                raise StalledError(
                    f"round {number}: devices {busy} cannot send at any rate, so the "
                    "round would never end; give a deadline, or a better channel"
                )
            env.step()
