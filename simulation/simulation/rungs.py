"""Codecs from that of all devices to coarser ones, and what each makes of a batch."""

from dataclasses import dataclass

import torch
from torch.nn import CrossEntropyLoss

from flwr_slfac import cut
from flwr_slfac.codec import Codec, encode, format_codec
from flwr_slfac.codec.base import Role
from flwr_slfac.default_codecs import codecs_of
from simulation.data import device_data
from simulation.scenario import Scenario
from simulation.world import build_model

# Our choice: so many codecs from that of all to the coarsest, of a relative error with
# which a third of the energy still arrives.
NUM_RUNGS, _COARSEST = 4, 0.8


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


def rungs(scenario: Scenario, at: str, num_devices: int) -> list[Rung]:
    """Return the run's codecs and, if devices choose, coarser ones at equal ratios.

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
        If a codec aims at no relative error, and devices are to choose.
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
    activations = smashed.detach()
    ups = _coded(scenario, "codec_up", up, activations)
    downs = _coded(scenario, "codec_down", down, gradient, activations)
    return [
        Rung(up, down, up_bytes, down_bytes)
        for (up, up_bytes), (down, down_bytes) in zip(ups, downs, strict=True)
    ]


def _coded(
    scenario: Scenario,
    key: str,
    codec: Codec,
    tensor: torch.Tensor,
    activations: torch.Tensor | None = None,
) -> list[tuple[Codec, int]]:
    """Return a codec and coarser ones, each with the bytes of its frame of a tensor."""
    role: Role = "activation" if key == "codec_up" else "gradient"

    def num_bytes(own: Codec) -> int:
        seed = scenario.seed
        return len(encode(tensor, own, role=role, seed=seed, activations=activations))

    if scenario.training.device_codecs == "none":
        return [(codec, num_bytes(codec))]
    finest = codec.relative_error
    if finest is None:
        raise scenario.error(
            f"training.{key}",
            f"is {format_codec(codec)}, which aims at no relative error, so that "
            "device_codecs knows none coarser; take waterfill(nrmse=...), or "
            'device_codecs = "none"',
        )
    coarsest, coded = max(finest, _COARSEST), []
    for place in range(NUM_RUNGS):
        share = place / (NUM_RUNGS - 1)
        own = codec.aiming_at(round(finest ** (1 - share) * coarsest**share, 4))
        coded.append((own, num_bytes(own)))
    return coded
