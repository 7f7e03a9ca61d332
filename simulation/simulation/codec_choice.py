"""Bits for each device: codecs so coarse that devices finish together in each round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import CrossEntropyLoss

from flwr_slfac import DeviceCodecs, cut
from flwr_slfac.codec import Codec, encode, format_codec
from flwr_slfac.codec.base import Role
from flwr_slfac.default_codecs import codecs_of
from simulation.adaptation import find_choice
from simulation.channel import Channel, typical_bit_per_s
from simulation.data import device_data
from simulation.profiles import Profile
from simulation.scenario import Scenario
from simulation.share_choice import choose_batches
from simulation.work import DeviceWork
from simulation.world import build_model, make_channel

Floats = NDArray[np.float64]
# Our choice: so many codecs from that of all to the coarsest, of a relative error with
# which a third of the energy still arrives.
_RUNGS, _COARSEST = 4, 0.8


@dataclass(frozen=True)
class Rung:
    """A pair of codecs, and what it makes of one batch at one cut.

    Parameters
    ----------
    up, down : Codec
        Of activations and gradients.
    up_bytes, down_bytes : float
        Of their frames.
    """

    up: Codec
    down: Codec
    up_bytes: float
    down_bytes: float


class CodecChoice:
    """Chooses codecs of devices' own: a function of scenario, round and device.

    A device's step is predicted from its profile, its rates in that round while all
    send, and the size of frames of one batch of the untrained model.

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
    batches : mapping of int to int
        Batch sizes of devices' own.

    Raises
    ------
    ScenarioError
        If a codec aims at no relative error, so that there is no coarser one.
    """

    def __init__(
        self,
        scenario: Scenario,
        profiles: Sequence[Profile],
        work: DeviceWork,
        at: Mapping[int, str],
        batches: Mapping[int, int],
    ) -> None:
        own = scenario.training
        self._choose = find_choice("device_codecs", own.device_codecs)
        self._profiles, self._work = profiles, work
        self._batches, self._batch_size = batches, own.batch_size
        self._channel: Channel = make_channel(scenario, profiles)
        names = [at.get(device, own.cut) for device in range(len(profiles))]
        by_cut = {name: rungs(scenario, name, len(profiles)) for name in {*names}}
        self._rungs = [by_cut[name] for name in names]
        self._seconds: tuple[int, Floats] = (0, np.empty(0))

    def __call__(
        self, server_round: int, device: int
    ) -> tuple[Codec | None, Codec | None]:
        """Return a device's codecs in a round."""
        if self._seconds[0] != server_round:
            self._seconds = server_round, self._step_s(server_round)
        seconds = self._seconds[1]
        place = self._choose(seconds[device].tolist(), float(np.median(seconds[:, 0])))
        chosen = self._rungs[device][place]
        return chosen.up, chosen.down

    def _step_s(self, server_round: int) -> Floats:
        """Return what a step takes each device with each of its rungs."""
        count = len(self._profiles)
        up, down = (
            np.maximum(typical_bit_per_s(medium, count, server_round), 1e-9)
            for medium in (self._channel.up, self._channel.down)
        )
        rows = []
        for device, profile in enumerate(self._profiles):
            work = self._work.of(device)
            batch_size = self._batches.get(device, self._batch_size)
            forward, backward, _ = work.flops(batch_size)
            raw = work.smashed_bytes(batch_size)
            compute_s = forward / profile.forward_flop_per_s
            compute_s += backward / profile.backward_flop_per_s
            compute_s += raw / profile.encode_byte_per_s
            compute_s += raw / profile.decode_byte_per_s
            bits = 8 * batch_size / self._batch_size
            up_s, down_s = bits / float(up[device]), bits / float(down[device])
            rows.append(
                [
                    compute_s + own.up_bytes * up_s + own.down_bytes * down_s
                    for own in self._rungs[device]
                ]
            )
        return np.array(rows)


def choose_codecs(
    scenario: Scenario,
    profiles: Sequence[Profile],
    work: DeviceWork,
    at: Mapping[int, str],
) -> DeviceCodecs | None:
    """Return the codecs of devices' own; None where all code alike."""
    if scenario.training.device_codecs == "none":
        return None
    batches = choose_batches(scenario, profiles, at)
    return DeviceCodecs(CodecChoice(scenario, profiles, work, at, batches))


def rungs(scenario: Scenario, at: str, num_devices: int) -> list[Rung]:
    """Return the run's codecs and coarser ones, their errors at equal ratios.

    Parameters
    ----------
    scenario : Scenario
        What is trained, with which codecs.
    at : str
        The cut at which frames are measured.
    num_devices : int
        How many there are; the batch is of device 0.

    Raises
    ------
    ScenarioError
        If a codec aims at no relative error.
    """
    own = scenario.training
    halves = cut(build_model(scenario), at=at)
    examples = device_data(scenario, 0, num_devices)
    count = min(len(examples), own.batch_size)
    inputs, targets = (tensor[:count] for tensor in examples.tensors)
    smashed = halves.front(inputs).detach().requires_grad_()
    CrossEntropyLoss()(halves.back(smashed), targets).backward()
    gradient = smashed.grad
    assert gradient is not None
    up, down = codecs_of(own.codec_up or None, own.codec_down or None)
    ups = _coded(scenario, "codec_up", up, smashed.detach())
    downs = _coded(scenario, "codec_down", down, gradient)
    return [
        Rung(up, down, up_bytes, down_bytes)
        for (up, up_bytes), (down, down_bytes) in zip(ups, downs, strict=True)
    ]


def _coded(
    scenario: Scenario, key: str, codec: Codec, tensor: torch.Tensor
) -> list[tuple[Codec, int]]:
    """Return a codec and coarser ones, each with the bytes of its frame of a tensor."""
    finest = codec.relative_error
    if finest is None:
        raise scenario.error(
            f"training.{key}",
            f"is {format_codec(codec)}, which aims at no relative error, so that "
            "device_codecs knows none coarser; take waterfill(nrmse=...), or "
            'device_codecs = "none"',
        )
    coarsest, coded = max(finest, _COARSEST), []
    for place in range(_RUNGS):
        share = place / (_RUNGS - 1)
        own = codec.aiming_at(round(finest ** (1 - share) * coarsest**share, 4))
        role: Role = "activation" if key == "codec_up" else "gradient"
        coded.append((own, len(encode(tensor, own, role=role, seed=scenario.seed))))
    return coded
