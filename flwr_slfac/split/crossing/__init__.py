"""What crosses the cut: both ends of one device's stream of smashed data.

::

    DeviceEnd                              Decoder     ServerEnd
    activations -> apply -> send ==up==> decode -> receive -> whole activations -> back
    gradient of what was sent <- receive <==down== encode <- part_of gradient <- back

Only `Decoder.decode` and `ServerEnd.encode` run on threads of a `CodecPool`. Between
`apply` and the codec lie the features of what crosses (`features.base`). A
pruned front computes fewer channels: the server puts zeros in place of the others.
"""

from flwr_slfac.split.crossing.decoder import Decoded, Decoder
from flwr_slfac.split.crossing.device_end import DeviceEnd
from flwr_slfac.split.crossing.server_end import (
    Batch,
    Encoded,
    ServerEnd,
    require_places,
)
from flwr_slfac.split.crossing.server_side import ServerSide

__all__ = [
    "Batch",
    "Decoded",
    "Decoder",
    "DeviceEnd",
    "Encoded",
    "ServerEnd",
    "ServerSide",
    "require_places",
]
