"""How much a server takes from one device before it calls that a fault."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import torch

from flwr_slfac.codec.wire import DEFAULT_MAX_ELEMENTS
from flwr_slfac.counts import require_count
from flwr_slfac.errors import DeviceError, SettingError
from flwr_slfac.folders import require_folder

OnDeviceError = Literal["drop", "raise"]


@dataclass(frozen=True)
class Limits:
    """Bounds on what one device may send or ask for.

    Parameters
    ----------
    max_elements : int (default: 2**28)
        Values in one frame.
    max_frame_bytes : int (default: 2**30)
        Bytes of one frame: 2**28 values in float32.
    max_steps : int (default: 1_000_000)
        Steps of a device in a round, and test batches in an evaluation; our choice, far
        above an epoch of small batches.
    max_growth : int (default: 16)
        How many times as large as the largest before it an example's smashed data may
        be; before the first, as that of the example given to `cut`. Our choice: four
        times as high and wide, which padded text and images of several sizes are not.
    sample_folder : str or Path, optional
        A folder on a disk, for what a codec remembers of devices' samples; by default
        it is in memory, up to the codec's `max_bytes` for each device.

    Raises
    ------
    SettingError
        If a bound is below 1, or the folder is none.
    """

    max_elements: int = DEFAULT_MAX_ELEMENTS
    max_frame_bytes: int = 2**30
    max_steps: int = 1_000_000
    max_growth: int = 16
    sample_folder: str | Path | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "sample_folder":
                require_count(field.name, getattr(self, field.name))
        require_folder("sample_folder", self.sample_folder)

    def require_frame(self, frame: bytes) -> None:
        """Raise DeviceError if a frame is too long."""
        if len(frame) > self.max_frame_bytes:
            raise DeviceError(
                f"a frame has {len(frame)} bytes; max_frame_bytes is "
                f"{self.max_frame_bytes}"
            )

    def require_steps(self, what: str, number: int) -> None:
        """Raise DeviceError unless a device's number of steps is in bounds."""
        if not 1 <= number <= self.max_steps:
            raise DeviceError(
                f"its number of {what} is {number}; it must be from 1 to "
                f"max_steps={self.max_steps}"
            )


class CutSize:
    """How large smashed data may be, from what was seen of it in the run.

    Parameters
    ----------
    limits : Limits
        Bounds whatever was seen.
    *shapes : sequence of int, or None
        Of the smashed data of an example batch at each cut; where one is not known, the
        first batch of a device is bounded by `Limits.max_elements` alone.

    Attributes
    ----------
    elements_per_example : int
        The most that was seen; 0 before anything was.

    Examples
    --------
    >>> size = CutSize(Limits(max_elements=10_000))
    >>> size.limit(num_examples=4)
    10000
    >>> size.learn(torch.zeros(2, 5))
    >>> size.limit(num_examples=4)
    320
    """

    def __init__(self, limits: Limits, *shapes: Sequence[int] | None) -> None:
        self.limits = limits
        sizes = [math.prod(shape[1:]) if shape else 0 for shape in shapes]
        self.elements_per_example = max(sizes, default=0) if all(sizes) else 0

    def limit(self, num_examples: int) -> int:
        """Return how many values the smashed data of so many examples may have."""
        if not self.elements_per_example:
            return self.limits.max_elements
        most = self.limits.max_growth * self.elements_per_example
        most *= max(num_examples, 1)
        return min(most, self.limits.max_elements)

    def expected(self, num_examples: int) -> int:
        """Return about how many values the smashed data of so many examples have."""
        return self.elements_per_example * num_examples or self.limits.max_elements

    def learn(self, activations: torch.Tensor) -> None:
        """Take note of smashed data that was trained on."""
        if len(activations):
            size = activations.numel() // len(activations)
            self.elements_per_example = max(self.elements_per_example, size)


def require_on_device_error(value: str) -> None:
    """Raise SettingError unless the value is known."""
    if value not in get_args(OnDeviceError):
        raise SettingError(f"on_device_error is {value!r}; use 'drop' or 'raise'")
