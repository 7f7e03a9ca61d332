"""Lightweight training on the device: less work, less memory, fewer bytes.

::

    Lightweight, a user's setting ──► DeviceConfig, what devices are told of it
    front ──pruning──► smaller front ──activations──► smashed data, graph in 8 bits
    smashed data ──DropMask──► what travels ──RunningMeans──► what the server sees
    gradients ──quantization──► optimizer; at the end of a round: the packed update
    step_cost ──► StepCost, what all this saves; convergence_bound, what it costs
"""

from flwr_slfac.lightweight.convergence import Bound, convergence_bound
from flwr_slfac.lightweight.cost import StepCost, step_cost
from flwr_slfac.lightweight.device_config import FULL_BITS, DeviceConfig
from flwr_slfac.lightweight.dropout import DropMask, Per, Unit, require_dropout
from flwr_slfac.lightweight.running_means import RunningMeans
from flwr_slfac.lightweight.setting import Lightweight
from flwr_slfac.lightweight.trained_problem import Objective, Training

__all__ = [
    "FULL_BITS",
    "Bound",
    "DeviceConfig",
    "DropMask",
    "Lightweight",
    "Objective",
    "Per",
    "RunningMeans",
    "StepCost",
    "Training",
    "Unit",
    "convergence_bound",
    "require_dropout",
    "step_cost",
]
