"""What crosses the cut: both ends of one device's stream of smashed data.

::

    DeviceEnd                                          ServerEnd
    activations -> apply -> send   ==== up ====>   receive -> whole activations -> back
    gradient of what was sent <- receive <== down ==== send <- whole gradient <- back

Between `apply` and the codec lie the features of what crosses (`features.base`). A
pruned front computes fewer channels: the server puts zeros in place of the others.
"""

from flwr_slfac.split.crossing.device_end import DeviceEnd
from flwr_slfac.split.crossing.server_end import (
    Batch,
    ServerEnd,
    ServerSide,
    require_places,
)

__all__ = ["Batch", "DeviceEnd", "ServerEnd", "ServerSide", "require_places"]
