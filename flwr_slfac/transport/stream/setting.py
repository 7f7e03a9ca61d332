"""The setting of the stream: where the service listens, and as whom."""

from dataclasses import dataclass
from pathlib import Path

from flwr_slfac.errors import SettingError


@dataclass(frozen=True)
class StreamTransport:
    """Steps over one stream per device, to a service inside the ServerApp.

    Parameters
    ----------
    listen : str (default: "0.0.0.0:0")
        ``"host:port"`` to listen on; port 0 takes a free one. Give a port where a
        firewall or a proxy has to let it through.
    advertise : str or None
        ``"host:port"`` under which devices reach the service, or several, separated by
        commas, tried in turn; by default the addresses of this host, the loopback last.
        A device may say another in its node config: ``slfac-server="host:port"``.
    certificate, key : path or None
        In PEM; by default both are made for the run. Devices trust this certificate
        and no other: it travels to them in a Flower message.
    fallback : bool (default: False)
        Whether a device that cannot reach the service goes on with Flower messages; if
        not it is lost, with a reason that names the addresses.

    Raises
    ------
    SettingError
        If an address is not ``host:port``, or only one of certificate and key is given.

    Examples
    --------
    >>> StreamTransport(listen="0.0.0.0:9500", advertise="server.example.org:9500").port
    9500
    """

    listen: str = "0.0.0.0:0"
    advertise: str | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    fallback: bool = False

    def __post_init__(self) -> None:
        split_address(self.listen, lowest=0)
        for address in self.addresses:
            split_address(address)
        if (self.certificate is None) != (self.key is None):
            raise SettingError("certificate and key belong together; give both or none")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses that the user says devices reach the service under."""
        parts = (self.advertise or "").split(",")
        return tuple(part.strip() for part in parts if part.strip())

    @property
    def host(self) -> str:
        """The host to listen on."""
        return split_address(self.listen, lowest=0)[0]

    @property
    def port(self) -> int:
        """The port to listen on, 0 for any."""
        return split_address(self.listen, lowest=0)[1]


def split_address(address: str, lowest: int = 1) -> tuple[str, int]:
    """Return host and port of an address; IPv6 hosts stand in brackets.

    Raises
    ------
    SettingError
        If it is not ``host:port``, or the port is not from `lowest` to 65535.

    Examples
    --------
    >>> split_address("[::1]:9500")
    ('[::1]', 9500)
    """
    host, _, port = address.rpartition(":")
    number = int(port) if port.isdecimal() and len(port) <= 5 else -1
    plain = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    if not plain or (":" in plain and plain == host) or not lowest <= number <= 65535:
        raise SettingError(
            f"{address!r} is not host:port with a port from {lowest} to 65535, an IPv6 "
            "host in brackets"
        )
    return host, number
