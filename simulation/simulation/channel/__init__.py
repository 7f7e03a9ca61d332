"""How fast bytes cross between devices and server.

::

    positions ─ path loss ─ shadowing ─ fading ─► SNR ─ Shannon or CQI ─► Cell (shared)
    total rate ──────────────────────────────────────────────────────────► Pipe (shared)
    plain or recorded rates ─────────────────────────────► PlainLinks, TraceLinks (own)

A `Channel` has one of these up and one down, and `Packets` for latency, jitter and
loss. Every draw is a function of seed, device and round, whoever asks first.
"""

from simulation.channel.cell import Cell, CellSettings, Direction
from simulation.channel.channel import (
    Channel,
    OwnLinks,
    SharedBand,
    cell_channel,
    typical_bit_per_s,
)
from simulation.channel.links import (
    Pipe,
    PlainLinks,
    Preset,
    TraceLinks,
    read_presets,
    spread_rates,
)
from simulation.channel.packets import Packets
from simulation.channel.trace import Trace, read_trace

__all__ = [
    "Cell",
    "CellSettings",
    "Channel",
    "Direction",
    "OwnLinks",
    "Packets",
    "Pipe",
    "PlainLinks",
    "Preset",
    "SharedBand",
    "Trace",
    "TraceLinks",
    "cell_channel",
    "read_presets",
    "read_trace",
    "spread_rates",
    "typical_bit_per_s",
]
