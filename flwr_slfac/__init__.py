"""Split learning for Flower that is small on the wire.

A model is cut in two; devices train the front, the server trains the back; only the
smashed data crosses the network, and it crosses small.
"""

from flwr_slfac._release import RELEASE
from flwr_slfac.callbacks import SaveBest, StopEarly
from flwr_slfac.checkpoint import Checkpoint, load_checkpoint
from flwr_slfac.client import client_app
from flwr_slfac.cutting import CutPoint, Halves, cut, legal_cuts
from flwr_slfac.errors import (
    AllDevicesLostError,
    CheckpointError,
    CodecError,
    CutError,
    DecodeError,
    DeviceError,
    DivergedError,
    EncodeError,
    SettingError,
    SlfacError,
    TrainingError,
    VersionError,
)
from flwr_slfac.lightweight import Lightweight
from flwr_slfac.report import DeviceCost, RoundReport, TensorBoard
from flwr_slfac.split import Device, DeviceCodecs, DeviceCuts
from flwr_slfac.split.metrics import accuracy
from flwr_slfac.status import StatusPage
from flwr_slfac.strategy import SplitFed
from flwr_slfac.traffic import Traffic
from flwr_slfac.transport.stream import StreamTransport

__version__ = RELEASE

__all__ = [
    "AllDevicesLostError",
    "Checkpoint",
    "CheckpointError",
    "CodecError",
    "CutError",
    "CutPoint",
    "DecodeError",
    "Device",
    "DeviceCodecs",
    "DeviceCost",
    "DeviceCuts",
    "DeviceError",
    "DivergedError",
    "EncodeError",
    "Halves",
    "Lightweight",
    "RoundReport",
    "SaveBest",
    "SettingError",
    "SlfacError",
    "SplitFed",
    "StatusPage",
    "StopEarly",
    "StreamTransport",
    "TensorBoard",
    "Traffic",
    "TrainingError",
    "VersionError",
    "__version__",
    "accuracy",
    "client_app",
    "cut",
    "legal_cuts",
    "load_checkpoint",
]
