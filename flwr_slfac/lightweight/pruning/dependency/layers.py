"""What layers with weights do to channels: read some, make others, scale each."""

import numpy as np
from torch import nn
from torch.fx.node import Node

from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.pruning.dependency.flow import Axis, Call


def convolution(call: Call) -> Axis | None:
    """Conv and transposed conv: new channels; the input's lie along the weight.

    Raises
    ------
    SettingError
        If it has more than one group.
    """
    _require_ungrouped(call)
    transposed = "transpose" in call.name
    return _layer(call, from_dim=1, out_dim=1 if transposed else 0, to_dim=1)


def linear(call: Call) -> Axis | None:
    """Linear: new channels in the last dimension."""
    last = len(call.result.shape) - 1
    return _layer(call, from_dim=last, out_dim=0, to_dim=last)


def _layer(call: Call, from_dim: int, out_dim: int, to_dim: int) -> Axis | None:
    weight, bias = call.tensor(1, "weight"), call.tensor(2, "bias")
    has_bias = call.arg(2, "bias") is not None
    if weight is None or (has_bias and bias is None):
        call.stop()
        return None
    # A weight's first two dimensions are those of its channels, in either order.
    _bind_along(call, {weight: 1 - out_dim}, from_dim)
    num = call.result.shape[to_dim]
    ids = call.walk.bindings.made_by(weight, out_dim, num)
    call.walk.bindings.bind(bias, 0, ids)
    return Axis(to_dim, ids)


def _bind_along(call: Call, tensors: dict[str, int], dim: int) -> None:
    """Lay the input's channels along a dimension of each tensor."""
    axis = call.axis()
    for name, own in tensors.items():
        size = call.walk.state[name].shape[own]
        if axis is not None and axis.dim == dim:
            call.walk.bindings.bind(name, own, axis.ids)
        else:
            call.walk.bindings.bind(name, own, np.zeros(size, np.int64))
    if axis is not None and axis.dim != dim:
        call.walk.bindings.sets.fix(axis.ids, f"is mixed by {call.label}")


def _require_ungrouped(call: Call) -> None:
    # The seventh argument of torch.nn.functional.conv*d.
    groups = call.arg(6, "groups", 1)
    if groups != 1:
        raise SettingError(
            f"the channels of {call.label} cannot be pruned: it has {groups} groups, "
            "whose sizes must stay equal; use groups=1, cut before it, or prune "
            "unstructured"
        )


def batch_norm(call: Call) -> Axis | None:
    """Batch or instance norm: each channel on its own, if it has scale and shift."""
    given = call.node.kwargs.get("weight")
    if call.module is not None:
        keys = ("weight", "bias", "running_mean", "running_var")
        names = [name for key in keys if (name := call.tensor(1, key))]
    else:
        read = [n for n in (given, *call.node.all_input_nodes) if isinstance(n, Node)]
        names = [str(n.target) for n in read if n.op == "get_attr"]
        call.taken.update(names)
    trained = [n for n in dict.fromkeys(names) if _is_parameter(call, n)]
    axis = call.axis()
    if axis is not None and len(trained) != 2:
        # Without a scale and a shift of zero, a channel of zeros would not stay zero.
        call.stop()
        return None
    _bind_along(call, dict.fromkeys(names, 0), dim=1)
    call.walk.bindings.scales.update(trained[:1])
    return axis if axis is not None and axis.dim == 1 else None


def _is_parameter(call: Call, name: str) -> bool:
    return isinstance(call.walk.state[name], nn.Parameter)


def group_norm(call: Call) -> Axis | None:
    """Group norm: its statistics span channels.

    Raises
    ------
    SettingError
        If channels that could leave reach it.
    """
    if call.axis() is None:
        return None
    raise SettingError(
        f"the channels that {call.label} normalizes cannot be pruned: its statistics "
        "span channels; use batch norm, cut before it, or prune unstructured"
    )


def prelu(call: Call) -> Axis | None:
    """PReLU: one slope for all channels, or one a channel."""
    axis, weight = call.axis(), call.tensor(1, "weight")
    if weight is None:
        call.stop()
        return None
    if call.walk.state[weight].numel() == 1:
        return axis
    _bind_along(call, {weight: 0}, dim=1)
    return axis if axis is not None and axis.dim == 1 else None
