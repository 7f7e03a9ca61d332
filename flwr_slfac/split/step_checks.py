"""What a step of the back must come to, before anything learns from it."""

import logging
import math

import torch

from flwr_slfac.errors import DivergedError
from flwr_slfac.split.joined import JoinedBatch
from flwr_slfac.split.own_losses import OwnLosses

logger = logging.getLogger("flwr")

_REMEDY = "lower the learning rate, clip gradients, or look at that device's data"


class StepChecks:
    """Checks of a run's steps; what is to be said once is said once."""

    def __init__(self) -> None:
        # Devices of which it was said that all of their targets are ignored.
        self._said: set[int] = set()

    def require_finite(self, own: OwnLosses, at: str) -> None:
        """Raise DivergedError if a device's loss is NaN or infinite.

        Parameters
        ----------
        own : OwnLosses
            The losses of the step.
        at : str
            Round and step.
        """
        if bad := own.not_finite:
            named = ", ".join(f"{v} on device {k}" for k, v in bad.items())
            raise DivergedError(f"the loss is {named}, {at}; {_REMEDY}")
        for device in sorted(own.undefined - self._said):
            self._said.add(device)
            logger.warning(
                "%s: all targets of device %d are ignored, its loss is NaN: its "
                "gradient is zero and its loss is left out of the mean, here and from "
                "now on",
                at,
                device,
            )

    @staticmethod
    def require_finite_gradient(
        joined: JoinedBatch, own: OwnLosses, at: str, gradient: torch.Tensor
    ) -> None:
        """Raise DivergedError if a device's cut-layer gradient is NaN or infinite."""
        if bool(torch.isfinite(gradient).all()):
            return
        for device, part in joined.by_device(gradient):
            if device not in own.undefined and not bool(part.isfinite().all()):
                raise DivergedError(
                    f"the cut-layer gradient of device {device}, {at} is NaN or "
                    f"infinite; {_REMEDY}"
                )

    @staticmethod
    def left_out(joined: JoinedBatch, at: str) -> dict[int, tuple[torch.Tensor, float]]:
        """Answer a step that nobody takes: its one example cannot be normalised."""
        for device in joined.sizes:
            logger.warning(
                "%s: device %d is alone with one example, which the BatchNorm of the "
                "back cannot normalise; the step is left out (set drop_last=True or "
                "another batch_size)",
                at,
                device,
            )
        gradient = torch.zeros_like(joined.inputs)
        return {k: (part, math.nan) for k, part in joined.by_device(gradient)}
