"""What operations on shapes do to channels: pool, move, flatten, join, read sizes."""

import math
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from flwr_slfac.lightweight.pruning.dependency.flow import Axis, Call


def spatial(call: Call) -> Axis | None:
    """Pooling and resizing: each map on its own."""
    axis = call.axis()
    if axis is None:
        return None
    digits = [int(c) for c in call.name if c.isdigit()]
    num_spatial = digits[0] if digits else len(call.shape(call.arg(0, "input"))) - 2
    is_tensor = isinstance(call.result, torch.Tensor)
    if not is_tensor or axis.dim >= call.result.ndim - num_spatial:
        call.stop()
        return None
    return axis


def mean(call: Call) -> Axis | None:
    """Mean over dimensions other than that of the channels."""
    axis, dims = call.axis(), call.arg(1, "dim")
    if axis is None:
        return None
    over = (dims,) if isinstance(dims, int) else dims
    literal = isinstance(over, tuple | list) and all(isinstance(d, int) for d in over)
    if not literal or not over:
        call.stop()
        return None
    ndim = len(call.shape(call.arg(0, "input")))
    gone = {d % ndim for d in over}
    if axis.dim in gone:
        call.stop()
        return None
    keeps = call.result.ndim == ndim
    return Axis(axis.dim - (0 if keeps else sum(d < axis.dim for d in gone)), axis.ids)


def padding(call: Call) -> Axis | None:
    """Pad with zeros, and not along the channels."""
    axis, pad = call.axis(), call.arg(1, "pad", call.arg(1, "padding"))
    if axis is None:
        return None
    mode, value = call.arg(2, "mode", "constant"), call.arg(3, "value")
    literal = isinstance(pad, tuple | list) and all(isinstance(p, int) for p in pad)
    num_padded = math.ceil(len(pad) / 2) if literal else call.result.ndim
    if mode != "constant" or value or axis.dim >= call.result.ndim - num_padded:
        call.stop()
        return None
    return axis


def rearranged(call: Call) -> Axis | None:
    """Flatten, transpose, view: find where each channel goes."""
    axis = call.axis()
    if axis is None:
        return None
    source = call.arg(0, "input")
    shape = call.shape(source)
    marks = torch.from_numpy(axis.ids)
    marks = marks.view([-1 if d == axis.dim else 1 for d in range(len(shape))])
    moved = _again(call, marks.expand(shape).contiguous())
    found = None if moved is None else _axis_of(moved)
    if found is None or not _adapts(call, axis, found):
        call.stop()
        return None
    return found


def _again(call: Call, marks: torch.Tensor) -> torch.Tensor | None:
    """Do the call's rearrangement to another tensor of the same shape."""
    if call.module is not None:
        moved = call.module(marks)
    else:
        values = call.walk.values
        if any(n not in values for n in call.node.all_input_nodes[1:]):
            return None
        args = torch.fx.map_arg(call.node.args[1:], lambda n: values.get(n))
        kwargs = torch.fx.map_arg(dict(call.node.kwargs), lambda n: values.get(n))
        if call.node.op == "call_method":
            moved = getattr(marks, str(call.node.target))(*args, **kwargs)
        else:
            moved = call.node.target(marks, *args, **kwargs)  # type: ignore[operator]
    return moved if isinstance(moved, torch.Tensor) else None


def _axis_of(marks: torch.Tensor) -> Axis | None:
    """Return the one dimension along which the marks differ, and the marks there."""
    varies = [
        d for d in range(marks.ndim) if bool((marks != marks.narrow(d, 0, 1)).any())
    ]
    if len(varies) != 1:
        return None
    dim = varies[0]
    first = marks.movedim(dim, -1).reshape(-1, marks.shape[dim])[0]
    return Axis(dim, first.numpy())


def _adapts(call: Call, axis: Axis, found: Axis) -> bool:
    """Whether the call's own arguments still fit with fewer channels."""
    if call.name in ("view", "reshape"):
        sizes: Any = call.node.args[1:] or call.node.kwargs.get("shape", ())
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            (sizes,) = sizes
        return len(sizes) == call.result.ndim and bool(sizes[found.dim] == -1)
    if call.name == "squeeze":
        return isinstance(call.arg(1, "dim"), int)
    if call.name == "getitem":
        given = call.node.args[1]
        index = given if isinstance(given, tuple) else (given,)
        plain = all(i == slice(None) or isinstance(i, int) for i in index)
        return plain and all(i == slice(None) for i in index[axis.dim : axis.dim + 1])
    return True


def getitem(call: Call) -> Axis | None:
    """Part of a tensor, or one size out of a shape."""
    axis, index = call.axis(0, "a"), call.arg(1, "b")
    if axis is None:
        return None
    if call.shape(call.arg(0, "a")):
        return rearranged(call)
    # A shape's channels stay in the trace as a number, so they must not change.
    ndim = call.walk.num_sizes[call.node.args[0]]
    _stop_if_size(call, axis, index, ndim)
    return None


def shape_of(call: Call) -> Axis | None:
    """``x.size()``, ``x.shape``: which sizes are read is seen later, or here."""
    axis = call.axis()
    source = call.node.args[0]
    if axis is None or not isinstance(source, Node):
        return None
    index = call.arg(1, "dim")
    ndim = len(call.shape(source))
    if index is None:
        call.walk.num_sizes[call.node] = ndim
        return axis
    _stop_if_size(call, axis, index, ndim)
    return None


def attribute(call: Call) -> Axis | None:
    """``x.shape`` and what does not depend on the number of channels."""
    key = call.node.args[1]
    if key == "shape":
        source = call.node.args[0]
        axis = call.axis()
        if axis is not None and isinstance(source, Node):
            call.walk.num_sizes[call.node] = len(call.shape(source))
        return axis
    if key not in ("device", "dtype", "ndim"):
        call.stop()
    return None


def unread(call: Call) -> Axis | None:
    """Read what does not depend on the number of channels."""
    return None


def _stop_if_size(call: Call, axis: Axis, index: Any, ndim: int) -> None:
    """Fix the channels if it is their number that is read, and used."""
    if call.node.users and not (isinstance(index, int) and index % ndim != axis.dim):
        call.stop()


def concatenation(call: Call) -> Axis | None:
    """Concatenation: channels one after the other, or side by side and tied."""
    parts: Any = call.arg(0, "tensors")
    axes = [call.walk.axes.get(p) if isinstance(p, Node) else None for p in parts]
    known = [axis for axis in axes if axis is not None]
    dim = call.arg(1, "dim", 0)
    if not known or not isinstance(dim, int):
        call.stop()
        return None
    dim %= call.result.ndim
    if any(axis.dim != known[0].dim for axis in known):
        call.stop()
        return None
    if dim != known[0].dim:
        return call.tied(axes)
    sizes = [call.shape(p)[dim] for p in parts]
    ids = [
        np.zeros(size, np.int64) if axis is None else axis.ids
        for axis, size in zip(axes, sizes, strict=True)
    ]
    return Axis(dim, np.concatenate(ids))
