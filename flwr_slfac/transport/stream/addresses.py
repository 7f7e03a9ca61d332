"""Under which addresses devices may reach this host."""

import socket

from flwr_slfac.transport.stream.setting import StreamTransport

# Of documentation (RFC 5737, RFC 3849): the route to them is the one to everywhere, and
# connecting a UDP socket sends nothing.
_ELSEWHERE = (
    (socket.AF_INET, ("192.0.2.1", 9)),
    (socket.AF_INET6, ("2001:db8::1", 9)),
)
_ANY = ("0.0.0.0", "[::]")


def addresses_of(setting: StreamTransport, port: int) -> tuple[str, ...]:
    """Return the addresses to hand to devices, in the order in which to try them.

    Parameters
    ----------
    setting : StreamTransport
        What the user says of it.
    port : int
        Where the service listens.
    """
    if setting.addresses:
        return setting.addresses
    if setting.host not in _ANY:
        return (f"{setting.host}:{port}",)
    hosts = [host for host in map(_own_host, *zip(*_ELSEWHERE, strict=True)) if host]
    hosts += _named_hosts()
    if setting.host == "0.0.0.0":
        hosts = [host for host in hosts if "[" not in host]
    # A device on another host finds nothing of ours on its own loopback: it comes last.
    return tuple(f"{host}:{port}" for host in dict.fromkeys([*hosts, "127.0.0.1"]))


def _own_host(family: socket.AddressFamily, elsewhere: tuple[str, int]) -> str | None:
    """Return the address that packets to elsewhere come from, or None."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(elsewhere)
            host = str(probe.getsockname()[0])
    except OSError:
        return None
    return f"[{host}]" if ":" in host else host


def _named_hosts() -> list[str]:
    """Return the IPv4 addresses behind this host's name."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    except OSError:
        return []
    hosts = [str(each[4][0]) for each in found]
    return [host for host in hosts if not host.startswith("127.")]
