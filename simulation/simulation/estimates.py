"""What a round would take each device, before one was run."""

from collections.abc import Sequence

import numpy as np

from simulation.channel import Channel, typical_bit_per_s
from simulation.profiles import Profile
from simulation.scenario import Scenario
from simulation.work import DeviceWork


def estimated_round_s(
    scenario: Scenario, profiles: Sequence[Profile], channel: Channel, work: DeviceWork
) -> list[float]:
    """Return seconds of computing and sending, uncompressed, while all send at once.

    Parameters
    ----------
    scenario : Scenario
        Steps and batch size.
    profiles : sequence of Profile
        N devices.
    channel : Channel
        What carries their bytes.
    work : DeviceWork
        Counts operations and smashed data.

    Returns
    -------
    list of float
        N numbers.
    """
    training = scenario.training
    up, down = (
        np.maximum(typical_bit_per_s(medium, len(profiles)), 1e-9)
        for medium in (channel.up, channel.down)
    )
    seconds = []
    for device, profile in enumerate(profiles):
        own = work.of(device)
        forward, backward, _ = own.flops(training.batch_size)
        crossing = 8.0 * own.smashed_bytes(training.batch_size)
        seconds.append(
            training.num_steps
            * (
                forward / profile.forward_flop_per_s
                + backward / profile.backward_flop_per_s
                + crossing / float(up[device])
                + crossing / float(down[device])
            )
        )
    return seconds
