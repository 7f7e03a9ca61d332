"""The four ways in which one server-side model learns from many devices.

========== ============================================================ ===========
scheme     server-side model                                            devices
========== ============================================================ ===========
sequential one, updated device after device                             in relay
sflv1      one copy per device, averaged after the round by examples    in lock-step
sflv2      one, updated device after device within each step            in lock-step
parallel   one, one update per step on all devices' smashed data        in lock-step
========== ============================================================ ===========

SFLV1 and SFLV2: Thapa et al., SplitFed (AAAI 2022). Their SFLV2 runs one device's whole
epoch after another; lock-step interleaves the devices, which is our reading.
"""

from typing import Literal, get_args

from flwr_slfac.errors import SettingError

Scheme = Literal["sequential", "sflv1", "sflv2", "parallel"]
SCHEMES: tuple[str, ...] = get_args(Scheme)


def require_scheme(scheme: str) -> None:
    """Raise SettingError unless the scheme is known."""
    if scheme not in SCHEMES:
        raise SettingError(
            f"scheme {scheme!r} is not known; use one of {', '.join(SCHEMES)}"
        )


def require_no_proximal(proximal_mu: float) -> None:
    """Refuse FedProx in a relay of several devices.

    Raises
    ------
    SettingError
        If its weight is not 0.
    """
    if proximal_mu:
        raise SettingError(
            f"proximal-mu is {proximal_mu} and scheme 'sequential' hands the front "
            "from device to device, so a device does not have the global front that "
            "FedProx pulls to; use another scheme, or another strategy"
        )
