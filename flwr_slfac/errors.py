"""Every exception that flwr-slfac raises on purpose.

::

    SlfacError
    ├── CutError          a model cannot be cut there        (also ValueError)
    ├── SettingError      a setting or an input is wrong      (also ValueError)
    │   └── VersionError  device and server run different releases
    ├── CodecError        smashed data cannot be coded
    │   ├── EncodeError   the tensor is refused                (also ValueError)
    │   └── DecodeError   the bytes are not a valid frame      (also ValueError)
    ├── CheckpointError   a run cannot be saved, or read again
    └── TrainingError     training cannot go on
        ├── DivergedError      the loss or the smashed data is NaN or infinite
        ├── DeviceError        a device refused a request, and said why
        └── AllDevicesLostError  no device is left in a round
"""


class SlfacError(Exception):
    """Base of every exception that flwr-slfac raises on purpose."""


class CutError(SlfacError, ValueError):
    """A model cannot be cut at the asked point."""


class SettingError(SlfacError, ValueError):
    """A setting, or the data it meets, is wrong; found before training begins."""


class VersionError(SettingError):
    """Device and server run releases that do not understand each other."""


class CodecError(SlfacError):
    """Smashed data cannot be coded."""


class EncodeError(CodecError, ValueError):
    """A tensor is refused by an encoder, for example because it holds NaN."""


class DecodeError(CodecError, ValueError):
    """Bytes are not a valid frame, or claim more than the caller's limit."""


class CheckpointError(SlfacError, RuntimeError):
    """A run cannot be saved, or what was saved cannot be read again."""


class TrainingError(SlfacError, RuntimeError):
    """Training cannot go on."""


class DivergedError(TrainingError):
    """A loss, an activation or a gradient is NaN or infinite."""


class DeviceError(TrainingError):
    """A device refused a request; the message names the device and its reason."""


class AllDevicesLostError(TrainingError):
    """No device is left in a round; the last completed round's state is kept."""
