"""Which fronts a run has: whole, those of lightweight training, or cut unlike."""

from flwr_slfac.codec import Codec
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight import Lightweight
from flwr_slfac.split.cut_fronts import CutFronts
from flwr_slfac.split.device_cuts import DeviceCuts
from flwr_slfac.split.masked_fronts import Fronts
from flwr_slfac.split.server_fronts import ServerFronts
from flwr_slfac.split.server_half import ServerHalf
from flwr_slfac.split.whole_fronts import WholeFronts


def fronts_for(
    lightweight: Lightweight | None,
    server: ServerHalf,
    *codecs: Codec,
    cuts: DeviceCuts | None = None,
) -> ServerFronts:
    """Return the fronts of a run.

    Parameters
    ----------
    lightweight : Lightweight or None
        What makes training lighter; None for plain training.
    server : ServerHalf
        The back: its scheme, and where it runs.
    *codecs : Codec
        Of activations and gradients; what the setting leaves open follows them.
    cuts : DeviceCuts or None
        Who is cut where; None for one cut for all.

    Raises
    ------
    SettingError
        If a relay is asked for means of fronts within a round, or lightweight training
        for cuts of devices' own, or these are cuts of another model, or masks are to be
        renewed within a round under a codec that remembers samples.
    """
    relay = server.scheme == "sequential"
    if cuts is not None and lightweight is not None:
        raise SettingError(
            "lightweight= prunes, quantizes and averages one front, and with cuts= "
            "devices hold unlike parts of it that the server trains on; set one of them"
        )
    if cuts is not None:
        cuts.require_fit(server.back)
        return CutFronts(cuts, server.where)
    if lightweight is None:
        return WholeFronts()
    if lightweight.period_steps and relay:
        raise SettingError(
            "Lightweight(period='step') averages the fronts of devices that step "
            "together, and in the relay of scheme='sequential' one device trains at a "
            "time; set period='round', or use scheme='parallel', 'sflv1' or 'sflv2'"
        )
    if lightweight.renew_every and any(codec.needs_samples for codec in codecs):
        raise SettingError(
            "Lightweight(renew_every=) changes channels within a round, and the codec "
            "'temporal' predicts a sample's values from those of its last round; use "
            "one of them"
        )
    return Fronts(lightweight.fit(*codecs), relay=relay)
