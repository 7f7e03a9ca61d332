"""The server's side of a run, which outlives its rounds."""

from dataclasses import dataclass, field

from flwr_slfac.codec import Memory
from flwr_slfac.split.crossing import ServerSide
from flwr_slfac.split.limits import OnDeviceError
from flwr_slfac.split.server_fronts import ServerFronts
from flwr_slfac.split.server_half import ServerHalf
from flwr_slfac.traffic import Traffic


@dataclass(frozen=True)
class ServerRun:
    """The server's side of a run, which outlives its rounds.

    Parameters
    ----------
    server : ServerHalf
        The back and how it learns.
    fronts : ServerFronts
        Who is given which front.
    traffic : Traffic
        Where what crosses is entered.
    side : ServerSide
        What the ends of all devices share.
    on_device_error : {"drop", "raise"}
        What becomes of a device at fault.
    lasting : dict of int to dict
        Of gradient codecs, by device: what outlives a round, a residual for example.
    """

    server: ServerHalf
    fronts: ServerFronts
    traffic: Traffic
    side: ServerSide
    on_device_error: OnDeviceError = "raise"
    lasting: dict[int, Memory] = field(default_factory=dict)
