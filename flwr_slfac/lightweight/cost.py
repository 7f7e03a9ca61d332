"""What a step costs a device: operations, parameters and what the graph holds."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flwr_slfac.lightweight.activations.saved import saved_in_8_bits


@dataclass(frozen=True)
class StepCost:
    """The cost of one step of a front, with and without what makes it lighter.

    Parameters
    ----------
    forward_flops, backward_flops : int
        Floating-point operations, a multiply-add counted as two, of convolutions and
        matrix products, as `torch.utils.flop_counter` counts them.
    parameter_bytes : int
        Bytes of the parameters that the device holds.
    activation_bytes : int
        Bytes that the graph holds at the end of the forward, each storage once.
    pruned_activation_bytes : int
        The same if they were not stored in 8 bits.
    plain_forward_flops, plain_backward_flops, plain_parameter_bytes
        The same of the whole front.
    plain_activation_bytes : int
        The same of the whole front, not in 8 bits.
    """

    forward_flops: int
    backward_flops: int
    parameter_bytes: int
    activation_bytes: int
    pruned_activation_bytes: int
    plain_forward_flops: int
    plain_backward_flops: int
    plain_parameter_bytes: int
    plain_activation_bytes: int


def step_cost(
    network: nn.Module, full: nn.Module, inputs: torch.Tensor, saved_bits: int
) -> StepCost:
    """Measure a step on a batch; the models are not changed.

    Parameters
    ----------
    network : nn.Module
        What the device runs.
    full : nn.Module
        The whole front; may be `network` itself.
    inputs : Tensor
        A batch, on the device of `network`.
    saved_bits : {8, 32}
        Whether activations are stored in 8 bits between forward and backward.

    Examples
    --------
    >>> front = nn.Linear(4, 2)
    >>> cost = step_cost(front, front, torch.ones(8, 4), saved_bits=32)
    >>> cost.forward_flops, cost.parameter_bytes, cost.activation_bytes
    (128, 40, 128)
    """
    own = whole = _count(network, inputs)
    if full is not network:
        whole = _count(full, inputs)
    saved_bytes = _bytes_in_8_bits(network, inputs) if saved_bits == 8 else own[2]
    return StepCost(
        forward_flops=own[0],
        backward_flops=own[1],
        parameter_bytes=_parameter_bytes(network),
        activation_bytes=saved_bytes,
        pruned_activation_bytes=own[2],
        plain_forward_flops=whole[0],
        plain_backward_flops=whole[1],
        plain_parameter_bytes=_parameter_bytes(full),
        plain_activation_bytes=whole[2],
    )


def _count(front: nn.Module, inputs: torch.Tensor) -> tuple[int, int, int]:
    """Count operations and saved bytes on tensors that have a shape and no values.

    So a device need not bear the whole front to tell what it would cost. A front that
    asks for values, or makes tensors of its own, runs on a copy with values.
    """
    try:
        meta = copy.deepcopy(front).to("meta")
        return _count_on(meta, inputs.detach().to("meta"))
    except (RuntimeError, NotImplementedError):
        cuda = [inputs.device] if inputs.is_cuda else []
        with torch.random.fork_rng(devices=cuda):
            return _count_on(copy.deepcopy(front), inputs.detach())


def _count_on(front: nn.Module, inputs: torch.Tensor) -> tuple[int, int, int]:
    with (
        FlopCounterMode(display=False) as forward,
        saved_in_8_bits(front, enabled=False) as saved,
    ):
        out = front.train()(inputs)
    if not out.requires_grad:
        return forward.get_total_flops(), 0, saved.raw_num_bytes
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return (
        forward.get_total_flops(),
        backward.get_total_flops(),
        saved.raw_num_bytes,
    )


def _bytes_in_8_bits(front: nn.Module, inputs: torch.Tensor) -> int:
    """Return the bytes that the graph holds if activations are coded in 8 bits."""
    own = copy.deepcopy(front).train()
    cuda = [inputs.device] if inputs.is_cuda else []
    with torch.random.fork_rng(devices=cuda), saved_in_8_bits(own) as saved:
        own(inputs.detach())
    return saved.num_bytes


def _parameter_bytes(front: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in front.parameters())
