"""What a round came to."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr_slfac.errors import AllDevicesLostError
from flwr_slfac.lightweight import StepCost
from flwr_slfac.states import State

logger = logging.getLogger("flwr")


@dataclass
class DeviceResult:
    """What a device's work in a round came to.

    Parameters
    ----------
    device : int
        Partition id.
    front : mapping of str to Tensor or None
        The trained device-side model, in full; None if it stays on the device.
    num_examples : int
        Examples that it trained on, counted in each epoch.
    loss : float
        Mean training loss over those examples; batches whose targets are all ignored
        have none, and if all are such it is NaN.
    cost : StepCost or None
        What a step cost the device, if it told.
    metrics : mapping
        What the device added to the metrics of the round.
    """

    device: int
    front: State | None
    num_examples: int
    loss: float
    cost: StepCost | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class RoundResult:
    """What a round came to.

    Parameters
    ----------
    finished : dict of int to DeviceResult
        By key of the link.
    lost : dict of int to str
        Reasons by partition id, or by key for a device that never told its own.
    num_steps : int
        Most steps that any device took.
    compute_s, wall_s : float
        What devices spent on computing, summed, and how long the round took.
    aggregates : bool
        Whether the fronts came back.
    handed_on : bool
        Whether each device went on with the front of the one before.
    """

    finished: dict[int, DeviceResult] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    num_steps: int = 0
    compute_s: float = 0.0
    wall_s: float = 0.0
    aggregates: bool = True
    handed_on: bool = False

    def require_finished(self, server_round: int) -> None:
        """Raise AllDevicesLostError if no device finished the round."""
        if not self.finished:
            reasons = "; ".join(f"device {k}: {v}" for k, v in self.lost.items())
            raise AllDevicesLostError(
                f"round {server_round}: every device was lost ({reasons}); the models "
                "of the last completed round are kept"
            )

    @property
    def loss(self) -> float:
        """Mean training loss over all examples; NaN if no device has one."""
        judged = [r for r in self.finished.values() if not math.isnan(r.loss)]
        total = sum(r.num_examples for r in judged)
        if not total:
            return float("nan")
        return sum(r.loss * r.num_examples for r in judged) / total

    @property
    def costs(self) -> dict[int, StepCost]:
        """What a step cost each device that told, by partition id."""
        results = self.finished.values()
        return {r.device: r.cost for r in results if r.cost is not None}


def log_lost(where: str, device: int, reason: str) -> None:
    """Log that a device is lost, where ("round 2, step 0", ...), and why."""
    logger.warning("%s: lost device %d: %s", where, device, reason)
