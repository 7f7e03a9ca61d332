"""What becomes of a front's gradients before the optimizer's step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight import FULL_BITS
from flwr_slfac.lightweight.quantization import quantize_gradients
from flwr_slfac.split.place import Moment
from flwr_slfac.split.protocol import Begin


class GradientRule:
    """What becomes of gradients before the optimizer's step; null form: nothing.

    Attributes
    ----------
    name : str
        Under which a device keeps its state.
    """

    name = ""

    def start(self, network: nn.Module) -> None:
        """Take note of the weights that a round begins with."""

    def apply(self, network: nn.Module, moment: Moment) -> None:
        """Change the gradients that backward left."""

    def state(self) -> dict[str, Any]:
        """Return what `load` restores."""
        return {}

    def load(self, state: Mapping[str, Any], where: torch.device) -> None:
        """Go on from a state."""

    def go_on(self, states: Mapping[str, Any], where: torch.device) -> None:
        """Go on, in a round that sent no front, from the states of the last round.

        Parameters
        ----------
        states : mapping
            By name of the rule.
        where : torch.device
            Of the network.

        Raises
        ------
        SettingError
            If what is needed was not kept.
        """


class ProximalTerm(GradientRule):
    """The gradient of ``mu/2 |w - w_sent|^2``, of the front that the server sent last.

    Li et al., Federated Optimization in Heterogeneous Networks (FedProx), MLSys 2020.

    Parameters
    ----------
    mu : float
        Weight of the term, above 0.
    """

    name = "proximal"

    def __init__(self, mu: float) -> None:
        self._mu = mu
        self._anchor: dict[str, torch.Tensor] = {}

    def start(self, network: nn.Module) -> None:
        """Anchor the term at the weights of now."""
        self._anchor = {n: p.detach().clone() for n, p in network.named_parameters()}

    def apply(self, network: nn.Module, moment: Moment) -> None:
        """Add the term's gradient."""
        for name, p in network.named_parameters():
            if p.grad is not None:
                p.grad.add_(p.detach() - self._anchor[name], alpha=self._mu)

    def state(self) -> dict[str, Any]:
        """Return the anchor."""
        return self._anchor

    def load(self, state: Mapping[str, Any], where: torch.device) -> None:
        """Restore the anchor."""
        self._anchor = {name: tensor.to(where) for name, tensor in state.items()}

    def go_on(self, states: Mapping[str, Any], where: torch.device) -> None:
        """Stay anchored at the front that was sent, not at the device's own.

        Raises
        ------
        SettingError
            If there was no proximal term when it was sent.
        """
        if self.name not in states:
            raise SettingError(
                "proximal-mu was 0 when the front was sent that this device goes on "
                "with, so it has not kept what the term pulls to; change proximal-mu "
                "only in rounds that send fronts, or leave aggregate_every out"
            )
        self.load(states[self.name], where)


class QuantizedGradients(GradientRule):
    """Gradients quantized without bias, after Zhang, Ni and Wang (see `Lightweight`).

    Parameters
    ----------
    bits, bucket : int
        As ``gradient_bits`` and ``bucket`` of `Lightweight`.
    """

    name = "quantized"

    def __init__(self, bits: int, bucket: int) -> None:
        self._bits, self._bucket = bits, bucket

    def start(self, network: nn.Module) -> None:
        """Refuse weights whose gradients cannot be quantized.

        Raises
        ------
        SettingError
            If a weight is complex.
        """
        for name, p in network.named_parameters():
            if p.is_complex() and p.requires_grad:
                raise SettingError(
                    f"the front's {name!r} is {p.dtype}, whose gradient is not "
                    "quantized; set gradient_bits=32"
                )

    def apply(self, network: nn.Module, moment: Moment) -> None:
        """Quantize the gradients of all parameters."""
        generator = moment.generator("gradient")
        quantize_gradients(network.parameters(), self._bits, generator, self._bucket)


def gradient_rules(begin: Begin) -> list[GradientRule]:
    """Return the rules of a round, in the order in which they apply.

    Raises
    ------
    SettingError
        If a proximal term is to go with control variates.
    """
    rules: list[GradientRule] = []
    if begin.proximal_mu and begin.config.control_variates:
        raise SettingError(
            f"proximal_mu={begin.proximal_mu} pulls fronts to the last mean, and "
            "Lightweight(control_variates=True) would take the pull for a gradient; "
            "use one of them"
        )
    if begin.proximal_mu:
        rules.append(ProximalTerm(begin.proximal_mu))
    config = begin.config
    if config.gradient_bits < FULL_BITS:
        rules.append(QuantizedGradients(config.gradient_bits, config.bucket))
    return rules
