"""Layers whose backward decodes saved activations chunk by chunk.

PyTorch's own backward wants the whole activation at once, which at the peak takes as
much memory as it saves. These do the same sums over a few examples (convolution, ReLU,
pooling) or a few channels (batch normalization) at a time. Forward values are those of
PyTorch, from the same kernels. Each function returns None for what it does not take
(other shapes, autocast, NaN), which then goes PyTorch's way.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from flwr_slfac.lightweight.activations.affine import AffineTensor, chunks
from flwr_slfac.lightweight.activations.store import ActivationStore

Tensor = torch.Tensor
_Pair = tuple[int, int]
_aten = torch.ops.aten


def conv2d(
    store: ActivationStore,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | _Pair = 1,
    padding: int | _Pair | str = 0,
    dilation: int | _Pair = 1,
    groups: int = 1,
) -> Tensor | None:
    """Stand in for `torch.nn.functional.conv2d`."""
    if isinstance(padding, str) or not _takes(input, weight):
        return None
    coded = store.coded(input)
    if coded is None:
        return None
    setting = (_pair(stride), _pair(padding), _pair(dilation), groups)
    return _apply(_Conv2d, input, weight, bias, coded, setting)


def batch_norm(
    store: ActivationStore,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # both as in PyTorch
    eps: float = 1e-5,
) -> Tensor | None:
    """Stand in for `torch.nn.functional.batch_norm`."""
    # With one value a channel PyTorch raises; let it.
    if not training or not _takes(input) or input.numel() == input.shape[1]:
        return None
    coded = store.coded(input)
    if coded is None:
        return None
    running = (running_mean, running_var, momentum)
    return _apply(_BatchNorm, input, weight, bias, coded, running, eps)


def relu(store: ActivationStore, input: Tensor, inplace: bool = False) -> Tensor | None:
    """Stand in for `torch.nn.functional.relu`."""
    if not _takes(input) or (inplace and input._is_view()):
        return None
    coded: list[AffineTensor | None] = []
    output = _apply(_ReLU, input, store, inplace, coded)
    if coded[0] is not None:
        store.share(output, coded[0])
    return output


def max_pool2d(
    store: ActivationStore,
    input: Tensor,
    kernel_size: int | _Pair,
    stride: int | _Pair | None = None,
    padding: int | _Pair = 0,
    dilation: int | _Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """Stand in for `torch.nn.functional.max_pool2d`."""
    if return_indices or not _takes(input):
        return None
    kernel = _pair(kernel_size)
    steps = _pair(stride) if stride else kernel
    setting = (kernel, steps, _pair(padding), _pair(dilation), ceil_mode)
    return _apply(_MaxPool2d, input, store, setting)


def _takes(input: Tensor, *others: Tensor) -> bool:
    """Say whether this is a batch of images (N, C, H, W) to be trained on, plainly."""
    return (
        input.ndim == 4
        and input.numel() > 0
        and input.dtype in (torch.float32, torch.float64)
        and all(t.dtype is input.dtype for t in others)
        and any(t.requires_grad for t in (input, *others))
        and not torch.is_autocast_enabled(input.device.type)
    )


def _pair(value: int | _Pair) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any):  # type: ignore[no-untyped-def]
        coded, ctx.setting = rest
        ctx.save_for_backward(weight, *coded.tensors)
        ctx.dtype, ctx.biased = x.dtype, bias is not None
        return F.conv2d(x, weight, bias, *ctx.setting)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        coded = _rebuilt(saved, ctx.dtype)
        stride, padding, dilation, groups = ctx.setting
        wanted = [*ctx.needs_input_grad[:2], False]
        to_input = _like(coded) if wanted[0] else None
        to_weight = None
        for part in chunks(coded.codes):
            inputs, weights, _ = _aten.convolution_backward(
                gradient[part],
                coded.restore(part),
                weight,
                None,
                stride,
                padding,
                dilation,
                False,
                [0, 0],
                groups,
                wanted,
            )
            if to_input is not None:
                to_input[part] = inputs
            if wanted[1]:
                to_weight = weights if to_weight is None else to_weight.add_(weights)
        to_bias = gradient.sum((0, 2, 3)) if ctx.biased else None
        return to_input, to_weight, to_bias, None, None


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any):  # type: ignore[no-untyped-def]
        coded, (mean, var, momentum), ctx.eps = rest
        out, *statistics = torch.native_batch_norm(
            x, weight, bias, mean, var, True, momentum, ctx.eps
        )
        ctx.save_for_backward(weight, *statistics, *coded.tensors)
        ctx.dtype = x.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, mean, scale, *saved = ctx.saved_tensors
        coded = _rebuilt(saved, ctx.dtype)
        to_input = _like(coded)
        of_norms = []
        for part in chunks(coded.codes, dim=1):
            channels = part[1]
            inputs, *norms = _aten.native_batch_norm_backward(
                gradient[part].contiguous(),
                coded.restore(part).contiguous(),
                None if weight is None else weight[channels],
                None,
                None,
                mean[channels],
                scale[channels],
                True,
                ctx.eps,
                [True, *[weight is not None] * 2],
            )
            to_input[part] = inputs
            of_norms.append(norms)
        if weight is None:
            return to_input, None, None, None, None, None
        to_weight, to_bias = (torch.cat(t) for t in zip(*of_norms, strict=True))
        return to_input, to_weight, to_bias, None, None, None


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any):  # type: ignore[no-untyped-def]
        store, inplace, out = rest
        if inplace:
            ctx.mark_dirty(x)
        result = x.relu_() if inplace else x.relu()
        coded = store.coded(result)
        out.append(coded)
        ctx.dtype = x.dtype
        # Without a grid (NaN) the signs alone are saved, a byte each.
        ctx.save_for_backward(*((result > 0,) if coded is None else coded.tensors))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        coded = None if len(saved) == 1 else _rebuilt(saved, ctx.dtype)
        to_input = torch.empty_like(gradient)
        for part in chunks(gradient):
            outputs = saved[0][part] if coded is None else coded.restore(part)
            to_input[part] = _aten.threshold_backward(
                gradient[part], outputs.to(gradient.dtype), 0
            )
        return to_input, None, None, None


class _MaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any):  # type: ignore[no-untyped-def]
        store, setting = rest
        ctx.shape, ctx.setting = x.shape, setting
        out, indices = _aten.max_pool2d_with_indices(x, *setting)
        ctx.save_for_backward(store.narrow(indices))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_input = gradient.new_empty(ctx.shape)
        (indices,) = ctx.saved_tensors
        for part in chunks(to_input):
            # The kernel asks the input for its shape only.
            to_input[part] = _aten.max_pool2d_with_indices_backward(
                gradient[part],
                torch.empty_like(to_input[part]),
                *ctx.setting,
                indices[part].to(torch.int64),
            )
        return to_input, None, None


def _like(coded: AffineTensor) -> Tensor:
    return torch.empty_like(coded.codes, dtype=coded.dtype)


def _rebuilt(saved: Sequence[Tensor], dtype: torch.dtype) -> AffineTensor:
    codes, zero, step, base = saved
    return AffineTensor(codes, zero, step, base, dtype)
