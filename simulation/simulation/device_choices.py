"""What each device does of the work of all: its batches, channels and bits.

Batches are chosen once; pruned shares and codecs in every round, by its fading, one
after the other: what a smaller share of channels leaves too slow codes more coarsely.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flwr_slfac import DeviceCodecs, cut
from flwr_slfac.codec import Codec
from simulation.adaptation import find_choice
from simulation.channel import typical_bit_per_s
from simulation.profiles import Profile
from simulation.rungs import NUM_RUNGS, rungs
from simulation.scenario import Scenario
from simulation.work import DeviceWork
from simulation.world import build_model, make_channel

Floats = NDArray[np.float64]
# Our choice: what the paper's tables and ours have.
_SHARES = (0.0, 0.1, 0.3, 0.5, 0.7)
# Batch norm needs two examples.
_SMALLEST_BATCH, _HALVINGS = 2, 3
# Our choice: nobody waits for the slowest tenth, of which one deep fade may take most
# of a run's time, and nine of ten devices do what all do.
_IN_TIME = 0.9
# Our choice: what averaging fronts within a round may add to it, and after how many
# steps that may be.
_PERIOD_COST, _PERIODS = 0.25, (1, 2, 5, 10, 20, 50)
_FLOAT_BYTES = 4
_SETTINGS = ("device_batches", "device_pruning", "device_codecs", "period")


@dataclass(frozen=True)
class Doing:
    """What a device does in a round.

    Parameters
    ----------
    batch_size : int
        Examples a step.
    share : float
        Of channels that are pruned.
    rung : int
        Place of its codecs among `rungs`.
    """

    batch_size: int
    share: float = 0.0
    rung: int = 0


class DeviceChoices:
    """Chooses for each device: a function of scenario, round and device.

    A round is predicted from a device's profile, its rates in that round while all
    send, counted operations, and the size of frames of one batch of the untrained
    model. The server's part and waiting are the same for all and left out.

    Parameters
    ----------
    scenario : Scenario
        The devices, their network, and what is trained.
    profiles : sequence of Profile
        Its devices.
    work : DeviceWork
        Counts the operations of each device's steps.
    at : mapping of int to str
        Cuts of devices' own.

    Attributes
    ----------
    batches : dict of int to int
        Batch sizes of devices that have not the scenario's.

    Raises
    ------
    ScenarioError
        If a codec aims at no relative error, so that there is no coarser one.
    SettingError
        If a choice cannot be found, or is none of its options.
    """

    def __init__(
        self,
        scenario: Scenario,
        profiles: Sequence[Profile],
        work: DeviceWork,
        at: Mapping[int, str],
    ) -> None:
        own = scenario.training
        self._scenario, self._profiles, self._work = scenario, profiles, work
        self._channel = make_channel(scenario, profiles)
        named = {setting: getattr(own, setting) for setting in _SETTINGS}
        self._choices = {
            setting: find_choice(setting, name)
            for setting, name in named.items()
            if name != "none"
        }
        self._cuts = [at.get(device, own.cut) for device in range(len(profiles))]
        # What costs are made of is measured only if somebody chooses by them.
        self._rungs = {
            name: rungs(scenario, name, len(profiles))
            for name in ({*self._cuts} if self._choices else ())
        }
        self._model_bytes = {
            name: _FLOAT_BYTES * sum(p.numel() for p in front.parameters())
            for name in self._rungs
            for front in [cut(build_model(scenario), at=name).front]
        }
        self._round, self._doing = 0, self._choose_batches()
        self.batches = {
            device: doing.batch_size
            for device, doing in enumerate(self._doing)
            if doing.batch_size != own.batch_size
        }

    def codecs(self, server_round: int, device: int) -> tuple[Codec, Codec]:
        """Return a device's codecs in a round."""
        doing = self._in_round(server_round)[device]
        chosen = self._rungs[self._cuts[device]][doing.rung]
        return chosen.up, chosen.down

    def share(self, server_round: int, device: int) -> float:
        """Return which share of channels a device does without in a round."""
        return self._in_round(server_round)[device].share

    def period(self) -> int | None:
        """Return the steps between two means of fronts; None for one at a round's end.

        Periods are options from the shortest on, by what a round with them takes all
        but the slowest tenth; a choice is given 1.25 times what a round without means
        takes them. As in AdaptSFL, the period is one for all devices.
        """
        own = self._scenario.training
        if "period" not in self._choices:
            return None
        periods = [steps for steps in _PERIODS if steps < own.num_steps]
        up, down = self._rates(server_round=1)
        rows = []
        for device, doing in enumerate(self._doing):
            round_s = self._round_s(device, doing, up[device], down[device])
            model = self._model_bytes[self._cuts[device]]
            mean_s = model / up[device] + model / down[device]
            means = [(own.num_steps - 1) // steps for steps in periods]
            rows.append([*(round_s + count * mean_s for count in means), round_s])
        seconds = np.quantile(np.array(rows), _IN_TIME, axis=0)
        in_time_s = (1 + _PERIOD_COST) * float(seconds[-1])
        place = self._choices["period"](seconds.tolist(), in_time_s)
        return [*periods, None][place]

    def _rates(self, server_round: int) -> list[Floats]:
        """Return bytes a second of all devices, up and down, while all send."""
        ways, count = (self._channel.up, self._channel.down), len(self._profiles)
        return [
            np.maximum(typical_bit_per_s(way, count, server_round), 1e-9) / 8
            for way in ways
        ]

    def _in_round(self, server_round: int) -> list[Doing]:
        """Return what devices do in a round."""
        if server_round != self._round:
            doing = [Doing(d.batch_size) for d in self._doing]
            if "device_pruning" in self._choices:
                options = [[replace(d, share=s) for s in _SHARES] for d in doing]
                doing = self._chosen("device_pruning", options, server_round)
            if "device_codecs" in self._choices:
                options = [
                    [replace(d, rung=k) for k in range(NUM_RUNGS)] for d in doing
                ]
                doing = self._chosen("device_codecs", options, server_round)
            self._round, self._doing = server_round, doing
        return self._doing

    def _choose_batches(self) -> list[Doing]:
        own = self._scenario.training
        if "device_batches" not in self._choices:
            return [Doing(own.batch_size) for _ in self._profiles]
        sizes = [own.batch_size >> k for k in range(_HALVINGS + 1)]
        sizes = [size for size in sizes if size >= _SMALLEST_BATCH] or sizes[:1]
        options = [[Doing(size) for size in sizes] for _ in self._profiles]
        return self._chosen("device_batches", options, server_round=1)

    def _chosen(
        self, setting: str, options: Sequence[Sequence[Doing]], server_round: int
    ) -> list[Doing]:
        """Return each device's choice among its options."""
        choose = self._choices[setting]
        rates = self._rates(server_round)
        seconds = [
            [
                self._round_s(device, one, rates[0][device], rates[1][device])
                for one in own
            ]
            for device, own in enumerate(options)
        ]
        in_time_s = float(np.quantile([own[0] for own in seconds], _IN_TIME))
        return [
            own[choose(took, in_time_s)]
            for own, took in zip(options, seconds, strict=True)
        ]

    def _round_s(self, device: int, doing: Doing, up: float, down: float) -> float:
        """Return what a round takes a device at rates in bytes a second."""
        own, profile = self._scenario.training, self._profiles[device]
        work, name = self._work.of(device), self._cuts[device]
        forward, backward, _ = work.flops(doing.batch_size)
        raw, rung = work.smashed_bytes(doing.batch_size), self._rungs[name][doing.rung]
        # Convolutions lose inputs and outputs; smashed data loses channels.
        kept = 1 - doing.share
        smashed = kept * doing.batch_size / own.batch_size
        step_s = kept**2 * forward / profile.forward_flop_per_s
        step_s += kept**2 * backward / profile.backward_flop_per_s
        step_s += kept * raw / profile.encode_byte_per_s
        step_s += kept * raw / profile.decode_byte_per_s
        step_s += smashed * (rung.up_bytes / up + rung.down_bytes / down)
        model = kept**2 * self._model_bytes[name]
        return own.num_steps * step_s + model / up + model / down


def device_codecs(scenario: Scenario, choices: DeviceChoices) -> DeviceCodecs | None:
    """Return the codecs of devices' own; None where all code alike."""
    if scenario.training.device_codecs == "none":
        return None
    return DeviceCodecs(choices.codecs)
