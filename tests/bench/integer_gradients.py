"""Whether weight gradients by integer products make a device's backward faster.

Usage: python -m tests.bench.integer_gradients [--pairs 9] [--batch 16] [--threads 1]

Convolutions of stride 1 and linear layers get their weight gradients from inputs and
output gradients in int8 (a scale for each channel) by `torch._int_mm`: one product for
each place in the kernel, over rows of images that are padded so that a place is an
offset. The same is done in float32, to tell layout from integers. Inputs are coded in
the forward, to nearest; gradients to nearest, or unbiased by noise that the examples of
a batch share. The gradient of the input stays in float32 and as PyTorch computes it.
Ratios are PyTorch's time over that of each way: above 1 is faster. "Error" is of the
weight gradients, relative to their norm, the worst layer of the front.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from flwr_slfac import cut
from tests.models import resnet18, vgg19_bn

# So many products of bytes always fit an int32: 127 * 127 * 2**17 < 2**31.
MOST_ROWS = 2**17
# Layers of fewer inputs, the first ones, stay with PyTorch: they have little to save.
FEWEST_CHANNELS = 8


def coded(x: Tensor, dims: Sequence[int], way: str) -> tuple[Tensor, Tensor]:
    """Return values as int8, or as they are, and the step of each channel."""
    if way == "float32":
        return x, x.new_ones(())
    step = x.abs().amax(dims, keepdim=True).clamp_(min=1e-30).div_(127)
    if way == "nearest":
        return (x / step).round_(), step.flatten()
    return (x / step).add_(torch.rand(x.shape[1:])).floor_(), step.flatten()


def _inputs(way: str) -> str:
    """Return how inputs are coded: to nearest, whatever gradients are."""
    return "float32" if way == "float32" else "nearest"


def as_rows(x: Tensor, height: int, width: int, at: int, way: str) -> Tensor:
    """Return images (N, C, H, W) as rows (N height width, C), at a place in zeros."""
    n, channels, h, w = x.shape
    dtype = x.dtype if way == "float32" else torch.int8
    rows = torch.zeros(n, height, width, channels, dtype=dtype)
    rows[:, at : at + h, at : at + w] = x.permute(0, 2, 3, 1)
    return rows.view(-1, channels)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left.T @ right``, of bytes without overflow."""
    if left.dtype != torch.int8:
        return left.T @ right
    if len(left) <= MOST_ROWS:
        return torch._int_mm(left.T, right)
    parts = zip(left.split(MOST_ROWS), right.split(MOST_ROWS), strict=True)
    return torch.stack([torch._int_mm(a.T, b).double() for a, b in parts]).sum(0)


class ByPlace(torch.autograd.Function):
    """A convolution of stride 1 whose weight gradient is a product for each place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int, way: str) -> Tensor:
        """Convolve."""
        ctx.padding, ctx.shape, ctx.way = padding, x.shape, way
        values, step = coded(x, (0, 2, 3), _inputs(way))
        height, width = (size + 2 * padding for size in x.shape[2:])
        rows = as_rows(values, height, width, padding, way)
        ctx.save_for_backward(rows, step, weight)
        return F.conv2d(x, weight, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Return both gradients."""
        rows, step, weight = ctx.saved_tensors
        values, g_step = coded(gradient, (0, 2, 3), ctx.way)
        height, width = (size + 2 * ctx.padding for size in ctx.shape[2:])
        left = as_rows(values, height, width, 0, ctx.way)
        whole = torch.empty_like(weight)
        size = weight.shape[-1]
        for i in range(size):
            for j in range(size):
                # What is beyond the last row meets zeros on the left.
                start = i * width + j
                end = len(rows) - start
                whole[:, :, i, j] = product(left[:end], rows[start:])
        if ctx.way != "float32":
            whole *= (g_step[:, None] * step)[..., None, None]
        back = None
        if ctx.needs_input_grad[0]:
            back = conv2d_input(ctx.shape, weight, gradient, padding=ctx.padding)
        return back, whole, None, None


class ByRow(torch.autograd.Function):
    """A linear layer whose weight gradient is by integers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, way: str) -> Tensor:
        """Multiply."""
        values, step = coded(x, (0,), _inputs(way))
        rows = x if way == "float32" else values.to(torch.int8)
        ctx.save_for_backward(rows, step, weight)
        ctx.way = way
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Return both gradients."""
        rows, step, weight = ctx.saved_tensors
        values, g_step = coded(gradient, (0,), ctx.way)
        whole = product(values.to(rows.dtype), rows)
        if ctx.way != "float32":
            whole = whole * (g_step[:, None] * step)
        back = gradient @ weight if ctx.needs_input_grad[0] else None
        return back, whole, None


def replace(module: nn.Module, way: str) -> None:
    """Give the layers of a network other weight gradients."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels >= FEWEST_CHANNELS:
            assert layer.stride == (1, 1)
            layer.forward = lambda x, own=layer: (  # type: ignore[method-assign]
                _plus(
                    ByPlace.apply(x, own.weight, own.padding[0], way),
                    None if own.bias is None else own.bias[:, None, None],
                )
            )
        if isinstance(layer, nn.Linear):
            layer.forward = lambda x, own=layer: _plus(  # type: ignore[method-assign]
                ByRow.apply(x, own.weight, way), own.bias
            )


def _plus(out: Tensor, bias: Tensor | None) -> Tensor:
    return out if bias is None else out + bias


def mlp() -> nn.Module:
    """Return a front of linear layers."""
    sizes = 784, 1024, 1024
    first, second = (nn.Linear(a, b) for a, b in pairwise(sizes))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


FRONTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "VGG-19-BN, quarter width": (
        lambda: cut(vgg19_bn(width=16), at="features.13").front,
        (3, 32, 32),
        1,
    ),
    "VGG-19-BN": (lambda: cut(vgg19_bn(), at="features.13").front, (3, 32, 32), 1),
    "ResNet-18 to layer1": (
        lambda: cut(resnet18(in_channels=1), at="layer1").front,
        (1, 28, 28),
        1,
    ),
    "784-1024-1024": (mlp, (784,), 16),
}


def seconds(front: nn.Module, x: Tensor, gradient: Tensor) -> tuple[float, float]:
    """Return the seconds of one forward, and of one backward."""
    front.zero_grad()
    start = time.perf_counter()
    out = front(x)
    middle = time.perf_counter()
    out.backward(gradient)
    return middle - start, time.perf_counter() - middle


def worst_error(plain: nn.Module, other: nn.Module) -> float:
    """Return the largest relative error of a layer's weight gradient."""
    pairs = zip(plain.parameters(), other.parameters(), strict=True)
    errors = [
        float((b.grad - a.grad).norm() / a.grad.norm())  # type: ignore[operator, union-attr]
        for a, b in pairs
        if a.ndim > 1
    ]
    return max(errors)


def row(name: str, fronts: Sequence[nn.Module], x: Tensor, pairs: int) -> str:
    """Return a row of the table: PyTorch, by place in float32, by integers."""
    gradient = torch.randn_like(fronts[0](x))
    times = [[seconds(f, x, gradient) for f in fronts] for _ in range(pairs + 1)][1:]
    cells = [f"| {name} | {len(x)} | {_ms(t[0][1] for t in times)} "]
    for i in range(1, len(fronts)):
        ratios = [t[0][1] / t[i][1] for t in times]
        low, middle, high = statistics.quantiles(ratios, n=4)
        cells.append(f"| {middle:.2f} ({low:.2f} - {high:.2f}) ")
    steps = statistics.median(sum(t[0]) / sum(t[-1]) for t in times)
    errors = ", ".join(f"{worst_error(fronts[0], f):.3f}" for f in fronts[2:])
    return "".join(cells) + f"| {steps:.2f} | {errors} |"


def _ms(values: Any) -> str:
    return f"{1e3 * statistics.median(values):.1f}"


def main() -> None:
    """Print a row for each front."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        "| front | batch | backward ms | float32 by place | int8, nearest "
        "| int8, unbiased | step, unbiased | error, nearest, unbiased |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (build, shape, more) in FRONTS.items():
        torch.manual_seed(0)
        fronts = [build()]
        for way in ("float32", "nearest", "unbiased"):
            fronts.append(build())
            fronts[-1].load_state_dict(fronts[0].state_dict())
            replace(fronts[-1], way)
        x = torch.randn(options.batch * more, *shape)
        print(row(name, fronts, x, options.pairs), flush=True)


if __name__ == "__main__":
    main()
