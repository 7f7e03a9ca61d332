"""The two halves and the step between them. Knows the codec room, not Flower."""

from flwr_slfac.split.crossing import Batch, require_places
from flwr_slfac.split.device import Device
from flwr_slfac.split.device_half import DeviceHalf
from flwr_slfac.split.features import (
    CutFeature,
    Dropout,
    Passage,
    ServerMemory,
    register_feature,
)
from flwr_slfac.split.local import LocalLink, LocalResult, train_locally
from flwr_slfac.split.masked_fronts import Fronts, fronts_for
from flwr_slfac.split.metrics import accuracy
from flwr_slfac.split.protocol import (
    Begin,
    Description,
    EvaluateReply,
    EvaluateRequest,
    Link,
    Lost,
    Smashed,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.split.results import DeviceResult, RoundResult
from flwr_slfac.split.rounds import Rounds
from flwr_slfac.split.scheme import SCHEMES, Scheme
from flwr_slfac.split.server_fronts import ServerFronts, WholeFronts
from flwr_slfac.split.server_half import ServerHalf

__all__ = [
    "SCHEMES",
    "Batch",
    "Begin",
    "Description",
    "Device",
    "DeviceHalf",
    "DeviceResult",
    "EvaluateReply",
    "EvaluateRequest",
    "Fronts",
    "Link",
    "LocalLink",
    "LocalResult",
    "Lost",
    "RoundResult",
    "Rounds",
    "Scheme",
    "ServerHalf",
    "Smashed",
    "TrainReply",
    "TrainRequest",
    "accuracy",
    "train_locally",
]
