"""Steps over one stream per device, to a service inside the ServerApp.

::

    server   StreamLink ─requests─► Packed ─service─► gRPC ─► device_end ─► DeviceHalf
             StreamLink ◄──replies─ Packed ◄─service─ gRPC ◄─ device_end ◄─ DeviceHalf
"""

from flwr_slfac.transport.stream.device_end import (
    Answer,
    DeviceEnd,
    StreamLostError,
    UnreachableError,
)
from flwr_slfac.transport.stream.fallback import FallbackLink
from flwr_slfac.transport.stream.link import Opener, StreamLink
from flwr_slfac.transport.stream.opener import FlowerOpener
from flwr_slfac.transport.stream.opening import (
    UNREACHABLE,
    Opening,
    of_content,
)
from flwr_slfac.transport.stream.service import StreamService
from flwr_slfac.transport.stream.setting import StreamTransport

__all__ = [
    "UNREACHABLE",
    "Answer",
    "DeviceEnd",
    "FallbackLink",
    "FlowerOpener",
    "Opener",
    "Opening",
    "StreamLink",
    "StreamLostError",
    "StreamService",
    "StreamTransport",
    "UnreachableError",
    "of_content",
]
