"""Lightweight training on the device: less work, less memory, fewer bytes.

::

    Lightweight, a user's setting ──► Orders, what devices are told of it
    front ──pruning──► smaller front ──activations──► smashed data, graph in 8 bits
    smashed data ──DropMask──► what travels ──RunningMeans──► what the server sees
    gradients ──quantization──► optimizer; at the end of a round: the packed update
    step_cost ──► StepCost, what all this saves; convergence_bound, what it costs
"""

from flwr_slfac.lightweight.convergence import (
    Bound,
    Objective,
    Training,
    convergence_bound,
)
from flwr_slfac.lightweight.cost import StepCost, step_cost
from flwr_slfac.lightweight.dropout import DropMask
from flwr_slfac.lightweight.running_means import RunningMeans
from flwr_slfac.lightweight.setting import FULL_BITS, Lightweight, Orders

__all__ = [
    "FULL_BITS",
    "Bound",
    "DropMask",
    "Lightweight",
    "Objective",
    "Orders",
    "RunningMeans",
    "StepCost",
    "Training",
    "convergence_bound",
    "step_cost",
]
