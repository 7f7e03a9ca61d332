"""A channel: what carries bytes up, what carries them down, and what is lost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from simulation.channel.cell import Cell, CellSettings
from simulation.channel.packets import Packets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@runtime_checkable
class OwnLinks(Protocol):
    """Links on which a device does not wait for others."""

    def finish_s(self, device: int, start_s: float, num_bytes: float) -> float:
        """Return when bytes are sent that a device sends from `start_s` on."""
        ...

    def mean_bit_per_s(self, device: int) -> float:
        """Return a device's rate over a long time."""
        ...


@runtime_checkable
class SharedBand(Protocol):
    """A medium whose rates depend on who sends at the moment."""

    def rates_bit_per_s(
        self,
        server_round: int,
        active: Ints,
        load_bytes: Floats,
        members: Ints,
    ) -> Floats:
        """Return the rate of each active device, see `Cell.rates_bit_per_s`."""
        ...


@dataclass(frozen=True)
class Channel:
    """What carries bytes between devices and server; up and down do not disturb.

    Parameters
    ----------
    up, down : OwnLinks or SharedBand
        From the devices, and to them.
    packets : Packets
        Latency, jitter and loss of every message, in either direction.
    """

    up: OwnLinks | SharedBand
    down: OwnLinks | SharedBand
    packets: Packets = field(default_factory=Packets)


def cell_channel(
    settings: CellSettings,
    transmit_dbm: Sequence[float],
    seed: int,
    packets: Packets | None = None,
) -> Channel:
    """Return both directions of a cell.

    Parameters
    ----------
    settings : CellSettings
        The cell.
    transmit_dbm : sequence of float
        Power of each device.
    seed : int
        Of the scenario.
    packets : Packets, optional
        None loses and delays nothing.
    """
    up = Cell(settings, "up", transmit_dbm, seed)
    down = Cell(settings, "down", transmit_dbm, seed)
    return Channel(up, down, packets or Packets())


def typical_bit_per_s(
    medium: OwnLinks | SharedBand, num_devices: int, server_round: int = 1
) -> Floats:
    """Return each device's rate while all send at once, for closed forms.

    Parameters
    ----------
    medium : OwnLinks or SharedBand
        One direction of a channel.
    num_devices : int
        Devices 0 to N - 1 send.
    server_round : int (default: 1)
        Whose fading a cell has.

    Returns
    -------
    ndarray, shape (N,)
        In bit/s; long-run means of recorded rates.
    """
    everyone = np.arange(num_devices)
    if isinstance(medium, SharedBand):
        loads = np.ones(num_devices)
        return medium.rates_bit_per_s(server_round, everyone, loads, everyone)
    return np.array([medium.mean_bit_per_s(device) for device in range(num_devices)])
