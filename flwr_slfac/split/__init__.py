"""The two halves and the step between them. Knows codecs, not Flower.

::

    device                                           server
    DeviceFront -> DeviceEnd.apply, send    ====>    ServerEnd.receive
                                                     ServerHalf.step
    DeviceFront.step <- DeviceEnd.receive   <====    ServerEnd.send

`Rounds` runs that step in lock-step over devices behind any `Link`, and hands fronts
out and takes them back as its `ServerFronts` say. `train_locally` does so in one
process.
"""

from flwr_slfac.split.crossing import Batch, require_places
from flwr_slfac.split.device import Device, OptimizerFactory, SchedulerFactory
from flwr_slfac.split.device_codecs import DeviceCodecs
from flwr_slfac.split.device_cuts import DeviceCuts
from flwr_slfac.split.device_half import DeviceHalf
from flwr_slfac.split.features import (
    CutFeature,
    Dropout,
    Passage,
    ServerMemory,
    feature_fields,
    feature_of,
    register_feature,
)
from flwr_slfac.split.forwards import require_pipeline_depth
from flwr_slfac.split.lasting import KEPT
from flwr_slfac.split.limits import Limits, OnDeviceError
from flwr_slfac.split.link import Link
from flwr_slfac.split.local import LocalLink, train_locally
from flwr_slfac.split.local_run import LocalResult
from flwr_slfac.split.masked_fronts import Fronts
from flwr_slfac.split.metrics import accuracy
from flwr_slfac.split.own_losses import Loss
from flwr_slfac.split.place import Moment, Place, seed_for
from flwr_slfac.split.protocol import (
    Begin,
    Description,
    EvaluateReply,
    EvaluateRequest,
    Lost,
    Piece,
    Smashed,
    Snapshot,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.split.results import DeviceResult, RoundResult
from flwr_slfac.split.rounds import Rounds
from flwr_slfac.split.run_fronts import fronts_for
from flwr_slfac.split.scheme import SCHEMES, Scheme
from flwr_slfac.split.server_fronts import ServerFronts
from flwr_slfac.split.server_half import Metric, ServerHalf
from flwr_slfac.split.whole_fronts import WholeFronts

__all__ = [
    "KEPT",
    "SCHEMES",
    "Batch",
    "Begin",
    "CutFeature",
    "Description",
    "Device",
    "DeviceCodecs",
    "DeviceCuts",
    "DeviceHalf",
    "DeviceResult",
    "Dropout",
    "EvaluateReply",
    "EvaluateRequest",
    "Fronts",
    "Limits",
    "Link",
    "LocalLink",
    "LocalResult",
    "Loss",
    "Lost",
    "Metric",
    "Moment",
    "OnDeviceError",
    "OptimizerFactory",
    "Passage",
    "Piece",
    "Place",
    "RoundResult",
    "Rounds",
    "SchedulerFactory",
    "Scheme",
    "ServerFronts",
    "ServerHalf",
    "ServerMemory",
    "Smashed",
    "Snapshot",
    "TrainReply",
    "TrainRequest",
    "WholeFronts",
    "accuracy",
    "feature_fields",
    "feature_of",
    "fronts_for",
    "register_feature",
    "require_pipeline_depth",
    "require_places",
    "seed_for",
    "train_locally",
]
