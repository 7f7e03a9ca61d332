"""Devices, links and rounds of round numbers, for timelines done by hand."""

import math
from collections.abc import Sequence

import pytest

# Collected for its examples too, where there may be no simpy.
pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.channel import Channel, Packets, PlainLinks
from simulation.clock import DeviceRound, DeviceStep, RoundRecord

from simulation.profiles import Profile


def profile(**changes: float) -> Profile:
    """Return a device of 8 FLOP/s forward, 4 backward, 2 W, 1 W to send and receive."""
    own = {
        "forward_flop_per_s": 8.0,
        "backward_flop_per_s": 4.0,
        "encode_byte_per_s": 16.0,
        "decode_byte_per_s": 16.0,
        "memory_bytes": math.inf,
        "transmit_dbm": 30.0,
        "receive_w": 1.0,
        "compute_w": 2.0,
        "battery_j": math.inf,
        "availability": 1.0,
    }
    return Profile("test", **{**own, **changes})


def links(
    num_devices: int, byte_per_s: float = 1.0, packets: Packets | None = None
) -> Channel:
    """Return a channel that carries so many bytes a second for each device."""
    plain = PlainLinks((8.0 * byte_per_s,) * num_devices)
    return Channel(plain, plain, packets or Packets())


def step(**changes: float) -> DeviceStep:
    """Return a step: 1 s forward, 2 s up, 1 s down, 2 s backward, 4 server FLOPs."""
    own: dict[str, float] = {
        "up_bytes": 2.0,
        "down_bytes": 1.0,
        "forward_flops": 8.0,
        "backward_flops": 8.0,
        "server_flops": 4.0,
    }
    return DeviceStep(**{**own, **changes})


def record(
    scheme: str,
    steps: Sequence[Sequence[DeviceStep]],
    model_bytes: float = 0.0,
    server_round: int = 1,
) -> RoundRecord:
    """Return a round of devices 0, 1, ... with these steps."""
    devices = [
        DeviceRound(device, own, model_bytes, model_bytes)
        for device, own in enumerate(steps)
    ]
    return RoundRecord(server_round, scheme, devices)
