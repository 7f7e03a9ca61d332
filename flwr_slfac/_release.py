"""Which release this is, and which releases understand each other."""

from importlib.metadata import PackageNotFoundError, version

from flwr_slfac.errors import VersionError

try:
    RELEASE = version("flwr-slfac")
except PackageNotFoundError:  # run from a source tree that was not installed
    RELEASE = "0.1.0"


def compatible(ours: str, theirs: str) -> bool:
    """Say whether two releases speak the same protocol: same major and minor number.

    Examples
    --------
    >>> compatible("0.1.0", "0.1.7"), compatible("0.1.0", "0.2.0")
    (True, False)
    """
    return ours.split(".")[:2] == theirs.split(".")[:2]


def require_release(server: str, who: str) -> None:
    """Raise VersionError unless this device understands the server's release."""
    if not compatible(server, RELEASE):
        raise VersionError(
            f"{who} runs flwr-slfac {RELEASE}, the server {server}; install the same "
            "release on both"
        )
