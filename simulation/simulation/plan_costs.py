"""What a round costs every device at every cut: closed forms, no events."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_slfac import CutPoint, SettingError
from simulation.channel import Channel, typical_bit_per_s
from simulation.clock import Server
from simulation.numbers import require_positive
from simulation.profiles import Profile

Floats = NDArray[np.float64]
# Of the forward's operations: a backward takes as many again for the gradient of the
# input and for that of the weights.
BACKWARD_FLOPS = 2.0
_FLOAT_BYTES = 4
# Weight, gradient and one state of the optimizer for each parameter.
_COPIES = 3


@dataclass(frozen=True)
class Question:
    """What is asked of a plan.

    Parameters
    ----------
    batch_size, num_steps : int
        Examples a step, steps a round.
    budget_s : float
        What a round may take on one device, infinity for any.
    compression_ratios : tuple of float
        Candidates, at least 1, float32 bytes over bytes that cross, both ways; at 1
        nothing is coded and no codec takes time.
    pruned_shares : tuple of float
        Candidates in [0, 1): share rho of channels that the front does without, those
        at the cut too.

    Raises
    ------
    SettingError
        If a candidate is out of range or there is none.
    """

    batch_size: int = 32
    num_steps: int = 10
    budget_s: float = math.inf
    compression_ratios: tuple[float, ...] = (1.0, 4.0, 8.0, 16.0)
    pruned_shares: tuple[float, ...] = (0.0, 0.3, 0.5)

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_steps", "budget_s"):
            require_positive(name, getattr(self, name))
        ratios, shares = self.compression_ratios, self.pruned_shares
        if not ratios or not all(1 <= ratio < math.inf for ratio in ratios):
            raise SettingError(f"compression_ratios is {ratios}; give numbers >= 1")
        if not shares or not all(0 <= share < 1 for share in shares):
            raise SettingError(f"pruned_shares is {shares}; give numbers in [0, 1)")


@dataclass(frozen=True)
class Fleet:
    """Devices as arrays of shape (N, 1), to be set against cuts.

    Parameters
    ----------
    forward, backward, encode, decode, memory, compute_w, transmit_w, receive_w
        Of the profiles.
    up, down : ndarray
        Bytes a second while all send.
    hop_s : float
        Mean delay of a message.
    """

    forward: Floats
    backward: Floats
    encode: Floats
    decode: Floats
    memory: Floats
    compute_w: Floats
    transmit_w: Floats
    receive_w: Floats
    up: Floats
    down: Floats
    hop_s: float

    @classmethod
    def of(cls, profiles: Sequence[Profile], channel: Channel) -> "Fleet":
        """Gather profiles, and the channel's rates while all send at once."""

        def column(name: str) -> Floats:
            return np.array([[getattr(p, name)] for p in profiles], dtype=np.float64)

        packets, count = channel.packets, len(profiles)
        useful = (1 - packets.loss) / 8
        return cls(
            column("forward_flop_per_s"),
            column("backward_flop_per_s"),
            column("encode_byte_per_s"),
            column("decode_byte_per_s"),
            column("memory_bytes"),
            column("compute_w"),
            column("transmit_w"),
            column("receive_w"),
            typical_bit_per_s(channel.up, count)[:, None] * useful,
            typical_bit_per_s(channel.down, count)[:, None] * useful,
            packets.latency_s + packets.jitter_s,
        )


@dataclass(frozen=True)
class Costs:
    """What every device spends on every cut; arrays of shape (N, C).

    Parameters
    ----------
    round_s, round_j, round_bytes : ndarray
        As in `Plan`.
    memory_bytes : ndarray, shape (1, C)
        The least that a front needs.
    """

    round_s: Floats
    round_j: Floats
    round_bytes: Floats
    memory_bytes: Floats


def least_memory_bytes(cut: CutPoint, batch_size: int) -> float:
    """Return the least that a device needs for a cut: as `round_costs` has it.

    Parameters
    ----------
    cut : CutPoint
        The cut.
    batch_size : int
        Examples a step.
    """
    raw = _FLOAT_BYTES * math.prod(cut.shape) / cut.shape[0] * batch_size
    return _COPIES * _FLOAT_BYTES * cut.front_params + 2 * raw


def round_costs(
    fleet: Fleet,
    cuts: Sequence[CutPoint],
    server: Server,
    question: Question,
    ratio: float,
    share: float,
) -> Costs:
    """Return what a round costs each device at each cut, for one ratio and share.

    ``steps * (forward + encode + up + server + down + decode + backward) + model``: the
    time of a device that waits for nobody, the server's work on its own batch included.
    A pruned share rho leaves (1 - rho)^2 of operations and parameters, as convolutions
    lose inputs and outputs (the first layer loses less), and 1 - rho of smashed data.
    Memory is that of parameters, gradients, one optimizer state and smashed data both
    ways: activations inside the front, which are not known here, come on top.

    Parameters
    ----------
    fleet : Fleet
        N devices.
    cuts : sequence of CutPoint
        C cuts, as `flwr_slfac.legal_cuts` lists them.
    server : Server
        How fast the server is.
    question : Question
        Batch size and steps.
    ratio, share : float
        Compression ratio and pruned share.
    """
    batch, kept = question.batch_size, 1 - share
    per_example = np.array([1 / cut.shape[0] for cut in cuts])
    values = np.array([math.prod(cut.shape) for cut in cuts]) * per_example
    flops = np.array([cut.front_flops for cut in cuts]) * per_example * batch * kept**2
    back = np.array([cut.back_flops for cut in cuts]) * per_example * batch
    model = np.array([cut.front_params for cut in cuts]) * _FLOAT_BYTES * kept**2
    raw = _FLOAT_BYTES * values * batch * kept
    crossing, coded = raw / ratio, raw if ratio > 1 else 0 * raw
    steps = question.num_steps
    compute_s = flops / fleet.forward + BACKWARD_FLOPS * flops / fleet.backward
    compute_s = steps * (compute_s + coded / fleet.encode + coded / fleet.decode)
    up_s = (steps * crossing + model) / fleet.up
    down_s = (steps * crossing + model) / fleet.down
    server_s = (1 + BACKWARD_FLOPS) * back / server.flop_per_s
    server_s = server_s + coded / server.decode_byte_per_s
    server_s = steps * (server_s + coded / server.encode_byte_per_s)
    hops_s = 2 * (steps + 1) * fleet.hop_s
    joules = fleet.compute_w * compute_s
    joules = joules + fleet.transmit_w * up_s + fleet.receive_w * down_s
    return Costs(
        compute_s + up_s + down_s + server_s + hops_s,
        joules,
        np.broadcast_to(2 * (steps * crossing + model), joules.shape),
        (_COPIES * model + 2 * raw)[None, :],
    )
