"""Steps over one stream per device, to a service inside the ServerApp.

::

    server   StreamLink ─requests─► Packed ─service─► gRPC ─► device_end ─► DeviceHalf
             StreamLink ◄──replies─ Packed ◄─service─ gRPC ◄─ device_end ◄─ DeviceHalf

What is guarded: TLS 1.2 or 1.3 with a certificate that devices are told in a Flower
message and trust alone; a token of 32 random bytes per node, void once the next one has
arrived; no more than a Hello is read, for 10 s, of at most 256 streams without one;
after it, sizes by `Limits`. What is not: TLS 1.3 alone, for which gRPC's Python has no
setting; how many TCP connections a stranger opens; failed handshakes, which gRPC writes
to standard error and not to the log. SECURITY.md beside this file says more.
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
