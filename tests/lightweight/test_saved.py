"""Activations in 8 bits: near, exact where they must be, and really small."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile

from flwr_slfac.cutting import cut
from flwr_slfac.errors import TrainingError
from flwr_slfac.lightweight.activations import saved_in_8_bits, without_values
from flwr_slfac.lightweight.activations.affine import to_affine
from tests import models

FRONTS: dict[str, Callable[[int], nn.Module]] = {
    "vgg19_bn": lambda w: cut(models.vgg19_bn(width=w), at="features.13").front,
    "resnet18": lambda w: cut(models.resnet18(width=w), at="layer1").front,
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(
    net: nn.Module, x: torch.Tensor, in_8_bits: bool | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return output and gradients, plainly if `in_8_bits` is None."""
    net = copy.deepcopy(net).train()
    x = x.clone().requires_grad_()
    if in_8_bits is None:
        out = net(x)
    else:
        with saved_in_8_bits(net, enabled=in_8_bits):
            out = net(x)
    out.backward(normal(*out.shape, seed=9).to(out.dtype))
    found = {n: p.grad for n, p in net.named_parameters()} | {"input": x.grad}
    return out.detach(), found | dict(net.named_buffers())


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the error of a relative to b."""
    return float((a - b).double().norm() / b.double().norm().clamp(min=1e-30))


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from([(3, 4, 5, 6), (2, 3, 70), (40, 9), (7,), (1, 1, 1, 1)]),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    st.floats(-3, 3),
    st.sampled_from(["plain", "relu", "negative", "constant", "tiny"]),
    st.integers(0, 1000),
)
def test_codes_are_within_a_step_and_keep_every_sign(
    shape: tuple[int, ...], dtype: torch.dtype, offset: float, kind: str, seed: int
) -> None:
    """An element is off by 1.01 steps at most; zero and both signs are exact."""
    x = normal(*shape, seed=seed) + offset
    x = {
        "plain": x,
        "relu": x.relu(),
        "negative": -x.abs(),
        "constant": torch.full(shape, offset),
        "tiny": x * 1e-30,
    }[kind].to(dtype)
    coded = to_affine(x)
    assert coded is not None
    out = coded.restore()
    assert (out.dtype, out.shape) == (x.dtype, x.shape)
    dims = [0, *range(2, x.ndim)] if x.ndim >= 4 else [-1]
    span = (x.amax(dims, keepdim=True) - x.amin(dims, keepdim=True)).double()
    rounding = 4 * torch.finfo(dtype).eps * x.double().abs()
    slack = rounding + torch.finfo(dtype).tiny
    assert ((out.double() - x.double()).abs() <= 1.01 * span / 255 + slack).all()
    # A half-precision restore may round a tiny value to zero; codes never do.
    if dtype in (torch.float32, torch.float64):
        assert torch.equal(out.sign(), x.sign())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_without_a_finite_grid_are_not_coded(bad: float) -> None:
    """NaN, infinity and a range beyond float32 have no code."""
    x = normal(2, 3, 4, 4)
    x[1, 2, 3, 3] = bad
    assert to_affine(x) is None
    assert to_affine(torch.tensor([-3e38, 3e38])) is None


@pytest.mark.parametrize("name", FRONTS)
def test_gradients_are_near_and_the_forward_is_the_same(name: str) -> None:
    """Outputs and statistics are PyTorch's bit for bit, gradients within 3 percent."""
    torch.manual_seed(0)
    net, x = FRONTS[name](8), normal(16, 3, 32, 32)
    plain_out, plain = gradients(net, x, None)
    out, coded = gradients(net, x, True)
    assert torch.equal(out, plain_out)
    for key, value in plain.items():
        if "running" in key or "num_batches" in key:
            assert torch.equal(coded[key], value), key
        elif value.double().norm() > 1e-3:
            assert relative(coded[key], value) < 0.03, key


@pytest.mark.parametrize("name", FRONTS)
def test_counting_alone_changes_nothing(name: str) -> None:
    """With enabled=False every gradient is PyTorch's, bit for bit."""
    net, x = FRONTS[name](4), normal(8, 3, 32, 32)
    plain, counted = gradients(net, x, None)[1], gradients(net, x, False)[1]
    assert all(torch.equal(counted[k], v) for k, v in plain.items())


@pytest.mark.parametrize("name", FRONTS)
def test_the_graph_holds_at_most_three_tenths(name: str) -> None:
    """Bytes held between forward and backward, grids and indices included."""
    net, x = FRONTS[name](16), normal(16, 3, 32, 32)
    with saved_in_8_bits(net, enabled=False) as plain:
        out = net(x)
    with saved_in_8_bits(net) as saved:
        out = net(x)
    assert saved.raw_num_bytes == plain.raw_num_bytes == plain.num_bytes
    assert saved.num_bytes <= 0.3 * plain.num_bytes
    assert out.requires_grad


def peak_bytes(net: nn.Module, x: torch.Tensor, in_8_bits: bool) -> int:
    """Return the peak of torch's allocations during a step, over those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with saved_in_8_bits(net, enabled=in_8_bits):
            out = net(x)
        if in_8_bits:
            out = without_values(out)
        out.backward(torch.ones(out.shape))
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("name", FRONTS)
def test_the_peak_of_a_step_is_below_45_percent(name: str) -> None:
    """All that torch allocates in forward and backward, temporaries included."""
    net, x = FRONTS[name](64), normal(32, 3, 32, 32)
    net(x[:2]).sum().backward()
    net.zero_grad(set_to_none=False)
    assert peak_bytes(net, x, True) <= 0.45 * peak_bytes(net, x, False)


def test_an_activation_is_coded_once_and_its_original_freed() -> None:
    """What a ReLU and the next convolution share is held once, in 8 bits."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)
    )
    seen = []
    net[1].register_forward_hook(
        lambda *a: seen.append(StorageWeakRef(a[2].untyped_storage()))
    )
    with saved_in_8_bits(net) as saved:
        out = net(normal(4, 3, 16, 16))
    assert saved.raw_num_bytes == 4 * (4 * 3 + 4 * 8) * 256
    assert saved.num_bytes <= (4 * 3 + 4 * 8) * 256 + 3 * 4 * (3 + 8)
    assert seen[0].expired()
    out.sum().backward()


@pytest.mark.parametrize("inplace", [False, True])
def test_relu_masks_and_pooling_winners_are_exact(inplace: bool) -> None:
    """A chain that needs only signs and winners gives PyTorch's gradient exactly."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(normal(1, 6, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(x + self.shift, inplace=inplace)
            y = F.max_pool2d(y + x, 3, stride=2, padding=1, ceil_mode=True)
            return F.max_pool2d(F.relu(y, inplace=inplace), 2)

    x = normal(8, 6, 31, 29)
    plain, coded = gradients(Chain(), x, None)[1], gradients(Chain(), x, True)[1]
    assert all(torch.equal(coded[k], v) for k, v in plain.items())


def test_biases_that_need_no_activation_are_exact() -> None:
    """The last layers' biases have PyTorch's gradient, to the order of summation."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))
    head = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    line = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 9))
    for module, x, last in (
        (net, normal(8, 3, 20, 20), "2.bias"),
        (head, normal(8, 3, 20, 20), "1.bias"),
        (line, normal(64, 64), "2.bias"),
    ):
        plain, coded = gradients(module, x, None)[1], gradients(module, x, True)[1]
        torch.testing.assert_close(coded[last], plain[last], rtol=1e-5, atol=1e-5)
        assert module is net or torch.equal(coded[last], plain[last])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(6, 9, (3, 1), dilation=(2, 1), groups=3),
        nn.Conv2d(6, 8, 3, padding="same"),
        nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(6),
        nn.BatchNorm2d(6, affine=False, track_running_stats=False),
        nn.BatchNorm2d(6, momentum=None),
        nn.BatchNorm2d(6).eval(),
        nn.MaxPool2d((2, 3), stride=(2, 1), padding=1, dilation=1),
        nn.MaxPool2d(3, 2, dilation=2),
    ],
    ids=str,
)
def test_layers_in_chunks_equal_pytorch_where_codes_are_exact(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On whole numbers 0 to 255, which codes hold exactly, gradients are PyTorch's."""
    monkeypatch.setattr("flwr_slfac.lightweight.activations.affine._CHUNK", 3000)
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (10, 6, 14, 15), generator=generator).float()
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, 255
    for kind in (torch.contiguous_format, torch.channels_last):
        given = x.to(memory_format=kind)
        plain, coded = (gradients(layer, given, flag)[1] for flag in (None, True))
        for key, value in plain.items():
            if value is not None:
                atol = 1e-5 * float(value.abs().max())
                torch.testing.assert_close(coded[key], value, rtol=1e-4, atol=atol)


def test_transformers_are_coded_by_hooks() -> None:
    """Attention, layer norm and GELU: a quarter is held, gradients within 3 percent."""
    torch.manual_seed(0)
    block = models.Block(64, 4, causal=True, dropout=0.0)
    x = normal(8, 32, 64)
    plain, coded = gradients(block, x, None)[1], gradients(block, x, True)[1]
    assert all(relative(coded[k], v) < 0.03 for k, v in plain.items())
    with saved_in_8_bits(block) as saved:
        block(x)
    assert saved.num_bytes <= 0.4 * saved.raw_num_bytes


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_taken(dtype: torch.dtype) -> None:
    """Fronts in float64 and bfloat16 train with gradients near PyTorch's."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).to(dtype)
    x = normal(8, 3, 16, 16).to(dtype)
    plain, coded = gradients(net, x, None)[1], gradients(net, x, True)[1]
    assert coded["0.weight"].dtype is dtype
    assert relative(coded["0.weight"], plain["0.weight"]) < 0.05


def test_autocast_goes_pytorchs_way() -> None:
    """Under autocast the output is that of autocast and backward runs."""
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), normal(8, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = net(x)
        with saved_in_8_bits(net):
            out = net(x)
    assert torch.equal(out, plain)
    out.float().sum().backward()
    assert net[0].weight.grad is not None


def test_nan_comes_through() -> None:
    """A NaN activation gives NaN where PyTorch gives NaN, not a quiet number."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    x = normal(8, 3, 16, 16)
    x[0, 0, 0, 0] = math.nan
    plain, coded = gradients(net, x, None)[1], gradients(net, x, True)[1]
    for key, value in plain.items():
        assert torch.equal(coded[key].isnan(), value.isnan()), key


def test_a_second_backward_gives_the_same_gradient() -> None:
    """With retain_graph backward may run twice; without, PyTorch's error."""
    net, x = FRONTS["vgg19_bn"](4), normal(4, 3, 32, 32)
    with saved_in_8_bits(net):
        out = net(x)
    out.sum().backward(retain_graph=True)
    once = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    out.sum().backward()
    assert all(
        torch.equal(a, p.grad) for a, p in zip(once, net.parameters(), strict=True)
    )
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()


def test_a_change_in_place_after_saving_is_noticed_or_harmless() -> None:
    """A small kept tensor changed later raises; a coded one was copied in time."""
    small, large = (torch.ones(n, requires_grad=True) for n in (4, 4096))
    a, b = small * 1, large * 1
    with saved_in_8_bits():
        of_small, of_large = (a * a).sum(), (b * b).sum()
        a.add_(1)
        b.add_(1)
    with pytest.raises(TrainingError, match="in place"):
        of_small.backward()
    of_large.backward()
    assert torch.equal(large.grad, torch.full((4096,), 2.0))


def test_a_tensor_changed_in_place_is_coded_again() -> None:
    """Values saved before and after a change in place are not taken for each other."""
    leaf = torch.linspace(-1, 1, 4096).requires_grad_()
    with saved_in_8_bits():
        x = leaf * 1
        before = x * x
        x = F.relu(x, inplace=True)
        out = (before + x * x).sum()
    out.backward()
    wanted = 2 * leaf.detach() + 2 * leaf.detach().relu()
    assert (leaf.grad - wanted).abs().max() < 0.05


def test_a_handle_without_values_has_the_shape_and_the_backward() -> None:
    """The handle takes one element of memory and gives the same gradients."""
    net, x = nn.Conv2d(3, 8, 3), normal(4, 3, 8, 8)
    out = net(x)
    handle = without_values(out)
    assert handle.shape == out.shape
    assert handle.untyped_storage().nbytes() == 4
    gradient = normal(*out.shape)
    handle.backward(gradient)
    plain = torch.autograd.grad(net(x), net.weight, gradient)[0]
    assert torch.equal(net.weight.grad, plain)
    assert without_values(x) is x
