"""Which fronts a run has: whole ones, or those of lightweight training."""

from flwr_slfac.codec import Codec
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight import Lightweight
from flwr_slfac.split.masked_fronts import Fronts
from flwr_slfac.split.server_fronts import ServerFronts, WholeFronts


def fronts_for(
    lightweight: Lightweight | None, scheme: str, *codecs: Codec
) -> ServerFronts:
    """Return the fronts of a run.

    Parameters
    ----------
    lightweight : Lightweight or None
        What makes training lighter; None for plain training.
    scheme : str
        As in `flwr_slfac.split.scheme`.
    *codecs : Codec
        Of activations and gradients; what the setting leaves open follows them.

    Raises
    ------
    SettingError
        If a relay is asked for means of fronts within a round.
    """
    if lightweight is None:
        return WholeFronts()
    if lightweight.period_steps and scheme == "sequential":
        raise SettingError(
            "Lightweight(period='step') averages the fronts of devices that step "
            "together, and in the relay of scheme='sequential' one device trains at a "
            "time; set period='round', or use scheme='parallel', 'sflv1' or 'sflv2'"
        )
    return Fronts(lightweight.fit(*codecs), relay=scheme == "sequential")
