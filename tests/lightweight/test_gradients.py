"""QSGD of gradients: right in the mean, within its variance, safe at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flwr_slfac.errors import DivergedError, SettingError
from flwr_slfac.lightweight.quantization import (
    qsgd_variance,
    quantize,
    quantize_gradients,
)
from flwr_slfac.lightweight.quantization.qsgd import num_levels


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def draws(x: torch.Tensor, num: int, bits: int) -> torch.Tensor:
    """Return independent quantizations (num, d) of one bucket x (d,)."""
    many = x.expand(num, -1).contiguous()
    return quantize(many, bits, seeded(), x.numel())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_mean_of_a_million_draws_is_the_value(bits: int) -> None:
    """Over 10^6 draws every value's mean is itself within 4 standard errors."""
    x = torch.tensor([0.9, -0.31, 0.05, -1.3, 0.0, 1e-3], dtype=torch.float64)
    num = 10**6
    sample = draws(x, num, bits)
    error = (sample.mean(0) - x).abs()
    allowed = 4 * sample.std(0) / math.sqrt(num) + 1e-12
    assert (error <= allowed).all(), error / allowed


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 8),
    st.integers(1, 300),
    st.sampled_from(["normal", "spike", "heavy", "flat"]),
    st.integers(0, 2**31),
)
def test_the_exact_variance_is_within_the_bound(
    bits: int, size: int, kind: str, seed: int
) -> None:
    """The variance frac (1 - frac) of the rounding, summed, obeys qsgd_variance."""
    x = torch.randn(size, generator=seeded(seed), dtype=torch.float64)
    x = {"normal": x, "heavy": x**3, "flat": x.sign(), "spike": x * 1e-3}[kind]
    if kind == "spike":
        x[0] = 1
    scale = x.abs().max()
    r = x.abs() / scale * num_levels(bits)
    variance = ((r - r.floor()) * (1 - r + r.floor())).sum()
    variance *= (scale / num_levels(bits)) ** 2
    assert variance <= qsgd_variance(bits, size) * x.square().sum() + 1e-9


@pytest.mark.parametrize(("bits", "bucket"), [(2, 16), (4, 64), (8, 512)])
def test_measured_variance_is_within_the_bound(bits: int, bucket: int) -> None:
    """What the code does, on the bound's worst kind of bucket, stays under it."""
    x = torch.full((bucket,), 0.5 / num_levels(bits), dtype=torch.float64)
    x[0] = 1
    sample = draws(x, 2000, bits)
    measured = (sample - x).square().sum(1).mean()
    assert measured <= 1.05 * qsgd_variance(bits, bucket) * x.square().sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_move_by_less_than_a_level(dtype: torch.dtype) -> None:
    """Each value goes to one of the two levels around it, in every dtype."""
    x = torch.randn(3, 7, 11, generator=seeded()).to(dtype)
    scale = float(x.float().abs().max())
    out = quantize(x, 4, seeded(1), 1000)
    assert out.dtype is dtype
    assert out.shape == x.shape
    slack = 1 + 4 * torch.finfo(dtype).eps
    worst = (out.float() - x.float()).abs().max()
    assert worst <= slack * scale / num_levels(4) + scale * torch.finfo(dtype).eps


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 1e-40, 1e-30, 1e30, 3e38])
def test_magnitudes_at_the_ends_of_float32(magnitude: float) -> None:
    """Zero, subnormal and huge buckets give finite values on the bucket's own scale."""
    x = torch.full((100,), magnitude) * torch.tensor([1.0, -1.0]).repeat(50)
    out = quantize(x, 8, seeded(), 64)
    assert torch.isfinite(out).all()
    assert torch.equal(out, x)


def test_zeros_stay_zero() -> None:
    """The gradient of a pruned weight stays zero among others."""
    x = torch.randn(1000, generator=seeded())
    x[::3] = 0
    assert (quantize(x, 2, seeded(), 512)[::3] == 0).all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (511,), (513,)])
def test_every_shape_keeps_its_shape(shape: tuple[int, ...]) -> None:
    """Scalars, empty tensors and sizes that fill no bucket come back in shape."""
    x = torch.ones(shape)
    out = quantize(x, 8, seeded())
    assert torch.equal(out, x)


def test_a_seed_gives_the_same_gradients_and_another_gives_others() -> None:
    """The noise is a function of the generator's seed."""
    x = torch.randn(999, generator=seeded())
    assert torch.equal(quantize(x, 4, seeded(5)), quantize(x, 4, seeded(5)))
    assert not torch.equal(quantize(x, 4, seeded(5)), quantize(x, 4, seeded(6)))


def test_a_transposed_gradient_equals_its_contiguous_copy() -> None:
    """Buckets follow C order, whatever the strides."""
    x = torch.randn(40, 30, generator=seeded()).t()
    assert torch.equal(quantize(x, 4, seeded()), quantize(x.contiguous(), 4, seeded()))


def test_gradients_are_replaced_in_place_by_levels_of_their_buckets() -> None:
    """Each bucket of each gradient holds at most 2 levels + 1 values, in place."""
    layer = nn.Linear(100, 20)
    frozen = nn.Parameter(torch.ones(2))
    layer(torch.randn(8, 100)).square().sum().backward()
    gradient = layer.weight.grad
    before = gradient.clone()
    quantize_gradients([*layer.parameters(), frozen], 3, seeded(), bucket=500)
    assert layer.weight.grad is gradient
    assert frozen.grad is None
    assert not torch.equal(gradient, before)
    for bucket in gradient.reshape(-1, 500):
        assert bucket.unique().numel() <= 2 * num_levels(3) + 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_refused_by_shape(bad: float) -> None:
    """NaN and infinity raise DivergedError that names the parameter's shape."""
    parameter = nn.Parameter(torch.zeros(3, 5))
    parameter.grad = torch.full((3, 5), bad)
    with pytest.raises(DivergedError, match=r"\(3, 5\).*NaN or infinity"):
        quantize_gradients([parameter], 8, seeded())


def test_a_sparse_gradient_is_refused() -> None:
    """A sparse embedding's gradient raises SettingError with the remedy."""
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(SettingError, match="sparse=False"):
        quantize_gradients(table.parameters(), 8, seeded())


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 1},
        {"bits": 9},
        {"bits": 4.0},
        {"bits": True},
        {"bucket": 0},
        {"bucket": 65536},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    """A wrong bit width or bucket raises SettingError that names it."""
    (name,) = wrong
    with pytest.raises(SettingError, match=name):
        qsgd_variance(**{"bits": 8, **wrong})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=name):
        quantize_gradients([], **{"bits": 8, "generator": seeded(), **wrong})  # type: ignore[arg-type]


def test_the_variance_bound_falls_with_bits_and_grows_with_the_bucket() -> None:
    """More bits never add variance, a larger bucket never removes any."""
    for bucket in (1, 2, 64, 512):
        bounds = [qsgd_variance(bits, bucket) for bits in range(2, 9)]
        assert bounds == sorted(bounds, reverse=True)
    grown = [qsgd_variance(4, bucket) for bucket in (1, 2, 64, 512, 9999)]
    assert grown == sorted(grown)
