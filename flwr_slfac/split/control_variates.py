"""Control variates of a front: what holds devices together between means.

Within a round, over a period of steps with rates lr from x to y, and a mean x+ after
it::

    step     w  <-  w - lr (g + d)
    mean     d  <-  d + (y - x+) / (sum of lr)

This is the second form of SCAFFOLD (Karimireddy et al., ICML 2020), where a device
adds c - c_i to its gradients and ``c_i+ = c_i - c + (x - y) / (K lr)``. With c the mean
of all c_i, ``c+ = (x - x+) / (K lr)``, so that d = c - c_i needs nothing but the mean
that comes down anyway. Terms begin at zero in each round, as who takes part may change,
and where a mask changes.
"""

from typing import Any

import torch
from torch.optim import SGD, Optimizer

from flwr_slfac.errors import SettingError


class ControlVariates:
    """Adds to gradients what a device's drift of earlier periods was.

    Parameters
    ----------
    optimizer : Optimizer or None
        Plain SGD; None of a front without trained weights.
    clip_norm : float or None
        None.

    Raises
    ------
    SettingError
        If a step is not ``lr`` times a gradient.
    """

    def __init__(self, optimizer: Optimizer | None, clip_norm: float | None) -> None:
        groups = [] if optimizer is None else optimizer.param_groups
        if clip_norm is not None:
            raise _refused(f"clip_norm={clip_norm} shortens some of them")
        if optimizer is not None and type(optimizer) is not SGD:
            raise _refused(f"{type(optimizer).__name__} takes others")
        if any(group["momentum"] for group in groups):
            raise _refused("momentum mixes them with those before")
        if any(group["maximize"] for group in groups):
            raise _refused("maximize turns them round")
        self._groups = groups
        self._terms = {p: torch.zeros_like(p) for g in groups for p in g["params"]}
        self._before: dict[torch.nn.Parameter, torch.Tensor] = {}
        # By parameter: the sum of rates at which it was moved in the period.
        self._rates = dict.fromkeys(self._terms, 0.0)

    def apply(self) -> None:
        """Add the terms to the gradients of a step that is about to be taken."""
        for group in self._groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.add_(self._terms[p])
                    self._rates[p] += float(group["lr"])

    def leave(self) -> None:
        """Note the weights that a period ends with."""
        self._before = {p: p.detach().clone() for p in self._terms}

    def arrive(self) -> None:
        """Learn from the mean, now in their place, how far the device had strayed."""
        for p, term in self._terms.items():
            if self._rates[p]:
                term.add_((self._before[p] - p.detach()) / self._rates[p])
        self._before = {}
        self._rates = dict.fromkeys(self._terms, 0.0)

    def start_round(self) -> None:
        """Begin at zero."""
        for term in self._terms.values():
            term.zero_()
        self._rates = dict.fromkeys(self._terms, 0.0)

    def state(self) -> list[Any]:
        """Return terms and sums of rates, in the order of parameters."""
        return [[term.clone(), self._rates[p]] for p, term in self._terms.items()]

    def load(self, state: list[Any]) -> None:
        """Go on from a state."""
        for (p, term), (own, rates) in zip(self._terms.items(), state, strict=True):
            term.copy_(own)
            self._rates[p] = rates


def _refused(why: str) -> SettingError:
    return SettingError(
        "Lightweight(control_variates=True) takes a front's steps for rates times "
        f"gradients, and {why}; give the device plain torch.optim.SGD without momentum "
        "and clip_norm, or leave control_variates out"
    )
