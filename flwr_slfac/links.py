"""Which link carries a run's steps."""

import logging
from typing import Literal, TypeAlias

from flwr.serverapp import Grid

from flwr_slfac.errors import SettingError
from flwr_slfac.flower_parts import is_deployed
from flwr_slfac.split import Limits
from flwr_slfac.transport import Carrier, MessageLink
from flwr_slfac.transport.stream import (
    FallbackLink,
    FlowerOpener,
    StreamLink,
    StreamService,
    StreamTransport,
)

logger = logging.getLogger("flwr")

Transport: TypeAlias = Literal["auto", "messages", "stream"] | StreamTransport


def require_transport(transport: Transport) -> None:
    """Raise SettingError unless a transport is known."""
    known = ("auto", "messages", "stream")
    if transport not in known and not isinstance(transport, StreamTransport):
        raise SettingError(
            f"transport {transport!r} is not known; use one of "
            f"{', '.join(map(repr, known))}, or a StreamTransport(...)"
        )


def link_for(
    grid: Grid, transport: Transport, timeout_s: float, limits: Limits
) -> Carrier:
    """Return what carries requests to a grid's nodes.

    Parameters
    ----------
    grid : Grid
        Flower's access to the nodes.
    transport : {"auto", "messages", "stream"} or StreamTransport
        "auto" takes the stream in a deployment, and messages in a simulation.
    timeout_s : float
        A node that does not answer for this long is lost.
    limits : Limits
        What is taken from one device.

    Raises
    ------
    SettingError
        If a stream is asked for in a simulation, or cannot be listened for.
    """
    deployed = is_deployed(grid)
    if transport == "messages" or (transport == "auto" and not deployed):
        return MessageLink(grid, timeout_s)
    if not deployed:
        raise SettingError(
            "transport='stream' holds a process of every device for as long as it "
            "takes part, and a simulation runs many devices in few processes; use "
            "transport='auto' or 'messages'"
        )
    setting = transport if isinstance(transport, StreamTransport) else StreamTransport()
    service, opener = StreamService(setting), FlowerOpener(grid)
    streams = StreamLink(service, opener, timeout_s, limits)
    logger.info("Streams: devices reach them at %s", ", ".join(service.addresses))
    if not setting.fallback:
        return streams
    return FallbackLink(streams, MessageLink(grid, timeout_s), opener.unreachable)
