"""What happened in a round, as far as it takes time: bytes, operations, order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flwr_slfac import SettingError
from flwr_slfac.split import SCHEMES


@dataclass(frozen=True)
class DeviceStep:
    """One step of one device.

    Parameters
    ----------
    up_bytes, down_bytes : float
        Of activations with targets, and of gradients: what crossed.
    forward_flops, backward_flops : float
        Of the front on the batch.
    server_flops : float
        Of the back, forward and backward, on the batch.
    up_raw_bytes, down_raw_bytes : float
        The tensors behind them in float32, which the codecs go by; 0 where nothing is
        coded.
    encode_s, decode_s : float or None
        The device's time in its codec, where it was measured; else from the profile.

    Raises
    ------
    SettingError
        If a number is negative, infinite or NaN.
    """

    up_bytes: float
    down_bytes: float
    forward_flops: float
    backward_flops: float
    server_flops: float
    up_raw_bytes: float = 0.0
    down_raw_bytes: float = 0.0
    encode_s: float | None = None
    decode_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                _require_amount(name, value)


@dataclass(frozen=True)
class DeviceRound:
    """What one device did in a round.

    Parameters
    ----------
    device : int
        Its number: place of its profile, partition id of the training.
    steps : sequence of DeviceStep
        In order; one or more.
    model_down_bytes, model_up_bytes : float
        Of the front that it was sent at the start, and sent back at the end.

    Raises
    ------
    SettingError
        If there is no step, or a number is out of range.
    """

    device: int
    steps: Sequence[DeviceStep]
    model_down_bytes: float = 0.0
    model_up_bytes: float = 0.0

    def __post_init__(self) -> None:
        if self.device < 0:
            raise SettingError(f"device is {self.device}; give a number of at least 0")
        if not self.steps:
            raise SettingError(f"device {self.device} has no step; leave it out")
        _require_amount("model_down_bytes", self.model_down_bytes)
        _require_amount("model_up_bytes", self.model_up_bytes)


@dataclass(frozen=True)
class RoundRecord:
    """What happened in a round.

    Parameters
    ----------
    server_round : int
        From 1.
    scheme : {"sequential", "sflv1", "sflv2", "parallel"}
        As in `flwr_slfac.split`.
    devices : sequence of DeviceRound
        Each device once; in a relay, in the order of the relay.
    aggregate_flops : float
        Of averaging at the end of the round.

    Raises
    ------
    SettingError
        If the scheme is unknown, there is no device, or one is there twice.
    """

    server_round: int
    scheme: str
    devices: Sequence[DeviceRound]
    aggregate_flops: float = 0.0

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise SettingError(
                f"scheme {self.scheme!r} is not known; use one of {', '.join(SCHEMES)}"
            )
        numbers = [own.device for own in self.devices]
        if not numbers or len(set(numbers)) < len(numbers):
            raise SettingError(
                f"round {self.server_round} has devices {numbers}; give at least one, "
                "each once"
            )
        if self.server_round < 0:
            raise SettingError(f"round is {self.server_round}; give at least 0")
        _require_amount("aggregate_flops", self.aggregate_flops)


def _require_amount(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise SettingError(f"{name} is {value!r}; give a finite number of at least 0")
