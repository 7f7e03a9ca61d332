"""What a step of a front costs, measured once for each mask."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flwr_slfac.lightweight import StepCost, step_cost
from flwr_slfac.split.protocol import Begin


class FrontCosts:
    """Measures what a step costs.

    Parameters
    ----------
    full : nn.Module
        The whole front.
    where : torch.device
        Where it runs.
    """

    def __init__(self, full: nn.Module, where: torch.device) -> None:
        self._full, self._where = full, where
        self._known: dict[Any, StepCost] = {}

    def of(
        self, begin: Begin, network: nn.Module, inputs: Callable[[], torch.Tensor]
    ) -> StepCost | None:
        """Return what a step on a batch costs, where asked for; once a mask.

        Parameters
        ----------
        begin : Begin
            Of the round.
        network : nn.Module
            What runs.
        inputs : callable
            Returns the inputs of a batch.
        """
        if not begin.config.reports_cost:
            return None
        key = (begin.mask, begin.config)
        if key not in self._known:
            bits = begin.config.saved_bits
            batch = inputs().to(self._where)
            self._known = {key: step_cost(network, self._full, batch, bits)}
        return self._known[key]
