"""Only operations that bear it have their saved tensors in 8 bits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flwr_slfac.lightweight.activations import saved_in_8_bits
from tests.lightweight.test_saved import gradients, normal, relative


class Layer(nn.Module):
    """A weight, then an operation."""

    def __init__(self, operation: Callable[[Tensor], Tensor], size: int = 32) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(size, size, seed=3) / size**0.5)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        """Return the operation of the weighted input."""
        return self.operation(x @ self.weight)


class Cubed(torch.autograd.Function):
    """A user's own operation, which saves what it likes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


def attention(x: Tensor, factor: float = 1.0, **settings: Any) -> Tensor:
    """Self attention over four heads; a factor makes its logits sharp."""
    q = x.reshape(len(x), -1, 4, 8).transpose(1, 2)
    return F.scaled_dot_product_attention(q * factor, q * factor, q, **settings)


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "sharp softmax": lambda x: F.softmax(x * 30, -1),
    "log softmax": lambda x: F.log_softmax(x, -1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "exp": torch.exp,
    "log": lambda x: (x.abs() + 0.1).log(),
    "amax": lambda x: x.amax(-1),
    "amin": lambda x: x.amin((0, 1)),
    "max": lambda x: x.max(),
    "max of a dim": lambda x: x.max(-1).values,
    "maximum": lambda x: torch.maximum(x, x.flip(0)),
    "norm inf": lambda x: torch.linalg.vector_norm(x, math.inf, dim=-1),
    "norm": lambda x: x.norm(dim=-1),
    "norm 1": lambda x: x.norm(1, dim=-1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "cosine": lambda x: F.cosine_similarity(x, x.roll(1, 0), dim=-1),
    "cdist": lambda x: torch.cdist(x, x),
    "cumprod": lambda x: x[..., :4].contiguous().cumprod(-1),
    "prod": lambda x: x[..., :3].contiguous().prod(-1),
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(4).values,
    "sigmoid": lambda x: (9 * x).sigmoid(),
    "tanh": lambda x: (9 * x).tanh(),
    "sqrt": lambda x: (x.abs() + 1e-3).sqrt(),
    "divided": lambda x: 1 / (x.abs() + 1e-3),
    "pow": lambda x: (x.abs() + 1e-3) ** 1.5,
    "std": lambda x: x.std(-1),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "own": Cubed.apply,
}
NEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda x: x * x.roll(1, 0),
    "matrix product": lambda x: x @ x.transpose(1, 2),
    "relu": F.relu,
    "leaky relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "elu": F.elu,
    "selu": F.selu,
    "hardswish": F.hardswish,
    "relu6": lambda x: F.relu6(3 * x),
    "dropout": lambda x: F.dropout(x, 0.5),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "group norm": lambda x: F.group_norm(x, 4),
    "rms norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "attention": attention,
    "sharp attention": lambda x: attention(x, 6.0),
    "very sharp attention": lambda x: attention(x, 30.0, is_causal=True),
    "scaled attention": lambda x: attention(x, scale=40.0),
    "max pool 1d": lambda x: F.max_pool1d(x, 3),
}


@pytest.mark.parametrize("offset", [0.0, 20.0])
@pytest.mark.parametrize("name", EXACT)
def test_operations_that_do_not_bear_it_are_exact(name: str, offset: float) -> None:
    """What compares, exponentiates or divides has PyTorch's gradient, bit for bit."""
    operation = EXACT[name]
    x = normal(16, 40, 32)
    x[:, 0] += offset

    def of(y: Tensor) -> Tensor:
        return operation(y)

    # The leaf itself, so that nothing before it is coded.
    leaf = x.clone().requires_grad_()
    one = of(leaf * 1.0)
    one.backward(normal(*one.shape, seed=9))
    other_leaf = x.clone().requires_grad_()
    with saved_in_8_bits():
        other = of(other_leaf * 1.0)
    other.backward(normal(*other.shape, seed=9))
    assert torch.equal(one, other)
    assert leaf.grad is not None
    assert other_leaf.grad is not None
    assert torch.equal(other_leaf.grad, leaf.grad)


@pytest.mark.parametrize("outlier", [1.0, 1000.0])
@pytest.mark.parametrize("name", [*NEAR, *EXACT])
def test_a_zoo_of_operations_has_near_gradients(name: str, outlier: float) -> None:
    """Behind a weight every operation's gradients are within 3 percent.

    Also where one value of each row is a thousand times the others.
    """
    operation = {**NEAR, **EXACT}[name]
    x = normal(16, 40, 32) * 0.7
    x[..., 0] *= outlier
    net = Layer(operation)
    if outlier > 1 and name in ("very sharp attention", "exp"):
        pytest.skip("its own gradient overflows or vanishes")
    torch.manual_seed(0)
    plain_out, plain = gradients(net, x, None)
    torch.manual_seed(0)
    out, coded = gradients(net, x, True)
    assert torch.equal(out, plain_out)
    for key, value in plain.items():
        assert bool(torch.isfinite(coded[key]).all()), key
        assert relative(coded[key], value) < 0.03, key


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("factor", [1.0, 20.0])
def test_attention_layers_have_near_gradients(
    need_weights: bool, factor: float
) -> None:
    """PyTorch's own attention layer bears sharp logits, whichever way it takes."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x * factor
            return self.layer(x, x, x, need_weights=need_weights)[0]

    x = normal(8, 40, 32)
    plain, coded = (gradients(Own(), x, flag)[1] for flag in (None, True))
    for key, value in plain.items():
        # A bias of all keys changes no softmax: its gradient is noise around zero.
        if float(value.norm()) > 1e-3:
            assert relative(coded[key], value) < 0.03, key


def test_statistics_of_norms_stay_exact() -> None:
    """Groups of very unlike scale keep theirs: only the input of a norm is coded."""
    x = normal(64, 32, 9) * torch.logspace(-3, 3, 32)[:, None]
    net = nn.GroupNorm(32, 32)
    plain, coded = (gradients(net, x, flag)[1] for flag in (None, True))
    for key, value in plain.items():
        assert relative(coded[key], value) < 0.03, key


def test_what_is_held_exact_is_not_coded_besides() -> None:
    """A tensor that a softmax holds as it is takes no more bytes for a product."""
    leaf = normal(64, 64).requires_grad_()
    with saved_in_8_bits() as saved:
        weights = (leaf * 1.0).softmax(-1)
        out = weights @ weights
    assert saved.num_bytes == saved.raw_num_bytes
    assert out.requires_grad
