"""Each device's own loss of a joint step, and what it is handed the gradient of.

The joint step of the back goes down the user's loss of the joined batch. A device is
handed the gradient of its own loss: that of its own outputs and targets. Where the
joint loss is the mean of the own losses, weighted by examples, one backward gives both.
Other losses (weights of classes, ignored targets, sums) weigh examples unlike::

    outputs ──► joint loss ─────────────────────► gradients of the back's weights
       └──► own losses ──► mean by examples ────► gradients at the cut

Which of the two a loss is, is asked of its gradient at the outputs, in every step; of
a few losses of PyTorch it is known.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flwr_slfac.split.joined import JoinedBatch
from flwr_slfac.split.outputs import are_finite, tensors_of

Loss = Callable[[Any, torch.Tensor], torch.Tensor]

# Of the gradients at the outputs, relative to a device's largest: some sixty roundings
# of float32. Two losses closer than that train alike; in half precision it is one step
# of the dtype.
_SAME = 1e-5
# The first scale of torch's GradScaler.
_SCALE = 2.0**16
_MEANS_OF_EXAMPLES = (nn.CrossEntropyLoss, nn.NLLLoss)
_MEANS_OF_ELEMENTS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


@dataclass(frozen=True)
class OwnLosses:
    """The losses of the devices of a step.

    Parameters
    ----------
    values : dict of int to float
        Each device's own loss.
    undefined : frozenset of int
        Devices without one: all of their targets are ignored, and 0/0 is NaN.
    mean : Tensor or None
        The mean of the own losses by examples, with its graph, if its gradient at the
        outputs is not that of the joint loss.
    """

    values: dict[int, float]
    undefined: frozenset[int] = frozenset()
    mean: torch.Tensor | None = None

    @property
    def not_finite(self) -> dict[int, float]:
        """The losses that end a run."""
        return {
            device: value
            for device, value in self.values.items()
            if not math.isfinite(value) and device not in self.undefined
        }


def own_losses(
    loss: Loss, joint: torch.Tensor, outputs: Any, joined: JoinedBatch
) -> OwnLosses:
    """Return the losses of the devices of a step.

    Parameters
    ----------
    loss : callable
        From (outputs, targets) to a scalar.
    joint : Tensor
        Its value for the joined batch, with its graph.
    outputs : Tensor or nested structure of tensors
        What the back gave for the joined batch.
    joined : JoinedBatch
        The batch.

    Raises
    ------
    SettingError
        If outputs have no part for each example.
    """
    if len(joined.sizes) == 1:
        (device,) = joined.sizes
        value = float(joint.detach())
        empty = math.isnan(value) and _is_empty(joint, joint, outputs)
        return OwnLosses({device: value}, frozenset([device] if empty else []))
    targets = joined.by_device(joined.targets)
    if _is_mean(loss, outputs, joined.targets):
        with torch.no_grad():
            pairs = zip(joined.by_device(outputs.detach()), targets, strict=True)
            return OwnLosses({d: float(loss(part, y)) for (d, part), (_, y) in pairs})
    parts = zip(joined.outputs_by_device(outputs), targets, strict=True)
    own = {device: loss(part, y) for (device, part), (_, y) in parts}
    values = {device: float(value.detach()) for device, value in own.items()}
    undefined = frozenset(
        device
        for device, value in values.items()
        if math.isnan(value) and _is_empty(own[device], joint, outputs)
    )
    mean = _mean({d: o for d, o in own.items() if d not in undefined}, joined)
    if mean is None or _same_gradient(joint, mean, outputs, joined):
        mean = None
    return OwnLosses(values, undefined, mean)


def _is_mean(loss: Loss, outputs: Any, targets: torch.Tensor) -> bool:
    """Say whether a loss is known to be a plain mean over the batch."""
    kind = type(loss)
    if kind in _MEANS_OF_ELEMENTS:
        plain = isinstance(outputs, torch.Tensor) and outputs.shape == targets.shape
        return plain and loss.reduction == "mean"  # type: ignore[attr-defined]
    if kind not in _MEANS_OF_EXAMPLES or not isinstance(outputs, torch.Tensor):
        return False
    plain = loss.reduction == "mean" and loss.weight is None  # type: ignore[attr-defined]
    if not plain or targets.is_floating_point():
        return plain
    return not bool((targets == loss.ignore_index).any())  # type: ignore[attr-defined]


def _is_empty(own: torch.Tensor, joint: torch.Tensor, outputs: Any) -> bool:
    """Say whether a loss is NaN for want of targets, not because training diverged.

    Then no output counts: either the gradient is zero, or the others' loss is a number.
    """
    if not are_finite(outputs):
        return False
    if bool(torch.isfinite(joint.detach())):
        return True
    gradients = _gradients(own, tensors_of(outputs))
    return not any(bool((g != 0).any()) for g in gradients)


def _mean(own: Mapping[int, torch.Tensor], joined: JoinedBatch) -> torch.Tensor | None:
    shares = [
        value * (joined.sizes[device] / joined.num_examples)
        for device, value in own.items()
        if value.requires_grad
    ]
    if not shares:
        return None
    return torch.stack([share.reshape(()) for share in shares]).sum()


def _same_gradient(
    joint: torch.Tensor, mean: torch.Tensor, outputs: Any, joined: JoinedBatch
) -> bool:
    """Say whether two losses have the same gradient at every device's outputs."""
    if not joint.requires_grad:
        return True
    tensors = tensors_of(outputs)
    pairs = zip(_gradients(joint, tensors), _gradients(mean, tensors), strict=True)
    for one, other in pairs:
        tolerance = max(_SAME, torch.finfo(one.dtype).eps)
        parts = zip(joined.by_device(one), joined.by_device(other), strict=True)
        for (_, a), (_, b) in parts:
            # So written that NaN is a difference.
            if not bool((a - b).abs().max() <= tolerance * b.abs().max()):
                return False
    return True


def _gradients(
    loss: torch.Tensor, tensors: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    wanted = [t for t in tensors if t.requires_grad]
    if not wanted or not loss.requires_grad:
        return ()
    if any(t.dtype is torch.float16 for t in wanted):
        # As the step itself does, lest small gradients become zero and look alike.
        loss = loss * _SCALE
    return torch.autograd.grad(
        loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True
    )
