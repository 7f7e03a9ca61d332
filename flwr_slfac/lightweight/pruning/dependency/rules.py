"""What each operation does to the channels that it reads: one rule an operation.

A rule returns the channels of the result. Two things must hold of an operation that
lets channels pass: with fewer channels it computes the same values for the rest, with
the arguments that the trace has fixed; and it maps a channel of zeros to zeros, so that
a channel that left and one whose weights are zero are the same to all that follows.
"""

from typing import Any

from torch import nn
from torch.fx.node import Node

from flwr_slfac.lightweight.pruning.dependency.flow import Axis, Call, Rule
from flwr_slfac.lightweight.pruning.dependency.layers import (
    batch_norm,
    convolution,
    group_norm,
    linear,
    prelu,
)
from flwr_slfac.lightweight.pruning.dependency.shapes import (
    attribute,
    concatenation,
    getitem,
    mean,
    padding,
    rearranged,
    shape_of,
    spatial,
    unread,
)


def elementwise(call: Call) -> Axis | None:
    """Each value on its own, zero to zero."""
    return call.axis()


def bounded(call: Call) -> Axis | None:
    """Hardtanh: zero to zero if zero is within its bounds."""
    low, high = call.arg(1, "min_val", -1.0), call.arg(2, "max_val", 1.0)
    if isinstance(low, Node) or isinstance(high, Node) or not low <= 0 <= high:
        call.stop()
        return None
    return call.axis()


def total(call: Call) -> Axis | None:
    """Sum or difference: channels of both operands are tied."""
    operands = (call.arg(0, "input"), call.arg(1, "other"))
    if any(not isinstance(o, Node) and o == 0 for o in operands):
        return _seen(call, operands[0]) or _seen(call, operands[1])
    return call.tied([_seen(call, o) for o in operands])


def product(call: Call) -> Axis | None:
    """Product: a factor without channels of its own leaves the other's as they are."""
    operands = (call.arg(0, "input"), call.arg(1, "other"))
    axes = [_seen(call, o) for o in operands]
    for axis, other, theirs in zip(axes, operands[::-1], axes[::-1], strict=True):
        if axis is not None and theirs is None and _is_one_along(call, other, axis.dim):
            return axis
    return call.tied(axes)


def quotient(call: Call) -> Axis | None:
    """Quotient: only by what has no channels; zero by zero is no number."""
    axis, other = call.axis(), call.arg(1, "other")
    if axis is not None and not isinstance(other, Node):
        return axis
    call.stop()
    return None


def _seen(call: Call, operand: Any) -> Axis | None:
    """Return an operand's channels as the result sees them, dimensions from behind."""
    axis = call.walk.axes.get(operand) if isinstance(operand, Node) else None
    if axis is None:
        return None
    return Axis(axis.dim + call.result.ndim - len(call.shape(operand)), axis.ids)


def _is_one_along(call: Call, operand: Any, dim: int) -> bool:
    """Whether an operand is a number, or a tensor of size 1 along a dimension."""
    shape = call.shape(operand)
    own = dim - call.result.ndim + len(shape)
    return own < 0 or bool(shape[own] == 1)


_ELEMENTWISE = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish tanh hardswish softsign "
    "tanhshrink softshrink hardshrink abs neg dropout dropout1d dropout2d dropout3d "
    "feature_dropout identity contiguous clone detach alias float double half bfloat16"
)
_REARRANGED = "flatten view reshape transpose permute unsqueeze squeeze"
_SPATIAL = [
    f"{kind}_pool{n}d"
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
    for n in (1, 2, 3)
]

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **dict.fromkeys([*_SPATIAL, "interpolate", "upsample"], spatial),
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    "linear": linear,
    **dict.fromkeys(["batch_norm", "instance_norm"], batch_norm),
    "group_norm": group_norm,
    "hardtanh": bounded,
    "prelu": prelu,
    "mean": mean,
    **dict.fromkeys(_REARRANGED.split(), rearranged),
    "getitem": getitem,
    "size": shape_of,
    "sym_size": shape_of,
    "getattr": attribute,
    **dict.fromkeys(["dim", "is_floating_point", "_assert_tensor_metadata"], unread),
    **dict.fromkeys(["cat", "concat", "concatenate"], concatenation),
    **dict.fromkeys(["add", "iadd", "sub", "isub"], total),
    **dict.fromkeys(["mul", "imul", "multiply"], product),
    **dict.fromkeys(["div", "truediv", "itruediv"], quotient),
    "pad": padding,
}

MODULES: dict[type, str] = {
    **{kind: kind.__name__.lower() for kind in (nn.Linear, nn.PReLU, nn.Flatten)},
    **{kind: kind.__name__.lower() for kind in (nn.Identity, nn.Upsample)},
    **{getattr(nn, f"Conv{n}d"): f"conv{n}d" for n in (1, 2, 3)},
    **{getattr(nn, f"ConvTranspose{n}d"): f"conv_transpose{n}d" for n in (1, 2, 3)},
    **{getattr(nn, f"BatchNorm{n}d"): "batch_norm" for n in (1, 2, 3)},
    **{getattr(nn, f"InstanceNorm{n}d"): "instance_norm" for n in (1, 2, 3)},
    **{getattr(nn, f"ZeroPad{n}d"): "pad" for n in (1, 2, 3)},
    **{getattr(nn, f"MaxPool{n}d"): f"max_pool{n}d" for n in (1, 2, 3)},
    **{getattr(nn, f"AvgPool{n}d"): f"avg_pool{n}d" for n in (1, 2, 3)},
    **{getattr(nn, f"AdaptiveAvgPool{n}d"): f"avg_pool{n}d" for n in (1, 2, 3)},
    **{getattr(nn, f"AdaptiveMaxPool{n}d"): f"max_pool{n}d" for n in (1, 2, 3)},
    nn.GroupNorm: "group_norm",
    nn.Hardtanh: "hardtanh",
    nn.LeakyReLU: "leaky_relu",
    **{
        kind: kind.__name__.lower()
        for kind in (
            *(nn.ReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
            *(nn.Tanh, nn.Hardswish, nn.Softsign, nn.Tanhshrink, nn.Softshrink),
            *(nn.Hardshrink, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
        )
    },
}
