"""What a device must know of a run's setting, as it travels to it."""

from dataclasses import dataclass

from flwr_slfac.counts import require_count
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.quantization.qsgd import (
    DEFAULT_BUCKET,
    MAX_BITS,
    require_qsgd,
)

# Bits of float32, in which PyTorch trains by default: "not quantized".
FULL_BITS = 32


@dataclass(frozen=True)
class DeviceConfig:
    """What a device must know of the setting; travels at the start of a round.

    The defaults are the null form: plain training.

    Parameters
    ----------
    structured : bool
        Whether masks are of channels.
    gradient_bits, update_bits, bucket, error_feedback, saved_bits
        As in `Lightweight`.
    reports_cost : bool
        Whether the device tells what a step costs it, at the end of a round.
    period_steps : int
        Steps between two averages of fronts within a round; 0 for none there.
    control_variates : bool
        As in `Lightweight`.

    Raises
    ------
    SettingError
        If a setting is out of range.
    """

    structured: bool = True
    gradient_bits: int = FULL_BITS
    update_bits: int = FULL_BITS
    bucket: int = DEFAULT_BUCKET
    error_feedback: bool = False
    saved_bits: int = FULL_BITS
    reports_cost: bool = False
    period_steps: int = 0
    control_variates: bool = False

    def __post_init__(self) -> None:
        for name in ("gradient_bits", "update_bits"):
            _require_bits(name, getattr(self, name), self.bucket)
        if self.saved_bits not in (8, FULL_BITS):
            raise SettingError(f"saved_bits is {self.saved_bits!r}; give 8 or 32")
        if self.period_steps:
            require_count("period_steps", self.period_steps)


def _require_bits(name: str, bits: int, bucket: int) -> None:
    if bits == FULL_BITS and not isinstance(bits, bool):
        require_qsgd(MAX_BITS, bucket)
        return
    try:
        require_qsgd(bits, bucket)
    except SettingError as error:
        raise SettingError(f"{name}: {error}; or 32 for none") from error
