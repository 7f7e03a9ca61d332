"""What a device is told to open its stream with."""

from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from flwr_slfac.errors import TrainingError
from flwr_slfac.transport.records import SPLIT

TRAIN_STREAM = "train.stream"
UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Opening:
    """What a device is told to open its stream with.

    Parameters
    ----------
    node : int
        Node id of the device.
    addresses : tuple of str
        ``host:port`` of the service, in the order in which to try them.
    token : bytes
        Opens the session, once.
    certificate : bytes
        The service's, in PEM: the only one to trust.
    name : str
        The name in it.
    patience_s : float
        How long to try again once the stream is broken.
    """

    node: int
    addresses: tuple[str, ...]
    token: bytes
    certificate: bytes
    name: str
    patience_s: float


def to_content(opening: Opening) -> RecordDict:
    """Return an opening as a Flower message's content."""
    config = ConfigRecord(
        {
            "node": opening.node,
            "addresses": ",".join(opening.addresses),
            "token": opening.token.hex(),
            "certificate": opening.certificate.decode(),
            "name": opening.name,
            "patience-s": opening.patience_s,
        }
    )
    return RecordDict({SPLIT: config})


def of_content(content: RecordDict) -> Opening:
    """Read an opening.

    Raises
    ------
    TrainingError
        If it is none.
    """
    try:
        config = content.config_records[SPLIT]
        return Opening(
            node=int(str(config["node"])),
            addresses=tuple(str(config["addresses"]).split(",")),
            token=bytes.fromhex(str(config["token"])),
            certificate=str(config["certificate"]).encode(),
            name=str(config["name"]),
            patience_s=float(str(config["patience-s"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"what opens a stream cannot be read: {error!r}") from error
