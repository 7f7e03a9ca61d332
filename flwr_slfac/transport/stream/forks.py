"""A warning where a process forks while gRPC runs in it, as a DataLoader's workers do.

gRPC's own handlers for forks end such children with an abort ("DataLoader worker is
killed by signal"). They are switched off by the environment of the process, before
Flower has imported gRPC: neither can be done from here.
"""

import logging
import os

logger = logging.getLogger("flwr")

_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"
_OFF = ("0", "false")

# Names of what runs gRPC in this process now.
_running: list[str] = []
_is_watched = False


def runs(what: str) -> None:
    """Take note that something runs gRPC in this process."""
    global _is_watched
    _running.append(what)
    if not _is_watched:
        _is_watched = True
        os.register_at_fork(before=_warn)


def ended(what: str) -> None:
    """Take note that it does no more."""
    _running.remove(what)


def _warn() -> None:
    if not _running or os.environ.get(_VARIABLE, "").lower() in _OFF:
        return
    logger.warning(
        "this process forks while it holds %s, and gRPC ends children of a fork: set "
        "%s=0 in the environment of the SuperLink and the SuperNodes, or give your "
        "DataLoader num_workers=0 or multiprocessing_context='spawn'",
        _running[-1],
        _VARIABLE,
    )
