"""Virtual time: when everything happens, who waits for whom, what it costs.

::

    RoundRecord ─► RoundRun (barriers, server) ─► DeviceRun (work) ─► Air (bytes)
                        └── spans, waits, joules ──► Timeline ──► Perfetto
"""

from simulation.clock.clock import Clock, RoundTimes, StalledError
from simulation.clock.perfetto import trace_events, write_trace
from simulation.clock.record import DeviceRound, DeviceStep, RoundRecord
from simulation.clock.round_run import Waits
from simulation.clock.settings import (
    AlwaysOn,
    Availability,
    Deadline,
    DrawnOnOff,
    OnOff,
    Server,
    read_on_off,
)
from simulation.clock.timeline import SERVER, Energy, Span, Timeline, Wait

__all__ = [
    "SERVER",
    "AlwaysOn",
    "Availability",
    "Clock",
    "Deadline",
    "DeviceRound",
    "DeviceStep",
    "DrawnOnOff",
    "Energy",
    "OnOff",
    "RoundRecord",
    "RoundTimes",
    "Server",
    "Span",
    "StalledError",
    "Timeline",
    "Wait",
    "Waits",
    "read_on_off",
    "trace_events",
    "write_trace",
]
