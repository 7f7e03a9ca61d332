"""Dropout at the cut: right in the mean, the same on both sides, only kept values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_slfac.codec import Identity, Waterfill, decode, encode
from flwr_slfac.errors import SettingError, TrainingError
from flwr_slfac.lightweight import DropMask
from flwr_slfac.lightweight.dropout import Per, Unit

UNITS: tuple[Unit, ...] = ("channel", "element")
PERS: tuple[Per, ...] = ("batch", "example")
SHAPES = ((3, 8), (2, 5, 6), (2, 6, 3, 4), (1, 4, 2, 2, 3))


def normal(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Return normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(mask: DropMask, x: torch.Tensor) -> torch.Tensor:
    """Return the dropped activations from the definition, unit by unit."""
    out = torch.zeros_like(x)
    dim = 2 if x.ndim == 3 else 1
    for n, kept in enumerate(mask.units.tolist()):
        for unit in kept:
            if mask.unit == "element":
                out[n].view(-1)[unit] = x[n].view(-1)[unit] * mask.scale
            else:
                out[n].select(dim - 1, unit).copy_(
                    x[n].select(dim - 1, unit) * mask.scale
                )
    return out


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_what_is_put_back_is_dropout_from_the_definition(
    shape: tuple[int, ...], p: float, unit: Unit, per: Per
) -> None:
    """Scatter of gather equals scaling the kept units and zeroing the others."""
    x = normal(shape)
    mask = DropMask(shape, p, seed=7, unit=unit, per=per)
    kept = mask.gather(x)
    assert kept.shape == mask.kept_shape
    assert kept.is_contiguous()
    assert torch.equal(mask.scatter(kept), reference(mask, x))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_dropout_and_travels_at_kept_places_only(
    shape: tuple[int, ...], unit: Unit
) -> None:
    """A split backward through bytes equals autograd through the whole."""
    mask = DropMask(shape, 0.4, seed=3, unit=unit)
    weight = normal(shape, 1)
    whole = normal(shape).requires_grad_()
    (mask.scatter(mask.gather(whole)).square() * weight).sum().backward()

    front = normal(shape).requires_grad_()
    kept = mask.gather(front)
    back = decode(encode(kept, Identity())).requires_grad_()
    server = DropMask(shape, 0.4, seed=3, unit=unit)
    (server.scatter(back).square() * weight).sum().backward()
    assert back.grad is not None
    assert back.grad.shape == mask.kept_shape
    kept.backward(decode(encode(back.grad, Identity())))
    assert torch.equal(front.grad, whole.grad)


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("unit", UNITS)
def test_the_mean_over_masks_is_the_activation(unit: Unit, per: Per) -> None:
    """Over 1500 seeds the mean is x within 4 sigma and the variance is r x^2."""
    x = normal((2, 6, 2, 2)).double()
    masks = [DropMask(x.shape, 0.3, seed, unit, per) for seed in range(1500)]
    sample = torch.stack([m.scatter(m.gather(x)) for m in masks])
    sigma = ((masks[0].scale - 1) * x.square()).sqrt()
    assert ((sample.mean(0) - x).abs() <= 4.5 * sigma / math.sqrt(1500)).all()
    assert torch.allclose(sample.std(0), sigma, rtol=0.2)


def test_examples_of_a_batch_are_dropped_without_correlation() -> None:
    """Two examples keep the same or different units as often as chance has it."""
    masks = [DropMask((2, 5), 0.4, seed, per="example") for seed in range(1500)]
    kept = torch.stack([m.scatter(torch.ones(2, 3)) for m in masks])
    joint = torch.einsum("si,sj->ij", kept[:, 0], kept[:, 1]) / len(masks)
    assert (joint - 0.36).abs().max() < 4 * math.sqrt(0.36 * 0.64 / 4000)


@given(
    st.integers(0, 2**64 - 1),
    st.floats(0, 0.99),
    st.sampled_from(SHAPES),
    st.sampled_from(UNITS),
    st.sampled_from(PERS),
)
def test_both_sides_derive_the_same_subset_of_the_same_size(
    seed: int, p: float, shape: tuple[int, ...], unit: Unit, per: Per
) -> None:
    """Equal seeds give equal units; every example keeps exactly K distinct ones."""
    here, there = (DropMask(shape, p, seed, unit, per) for _ in range(2))
    assert torch.equal(here.units, there.units)
    assert here.units.shape == (shape[0], here.num_kept)
    assert (here.units.diff(dim=1) > 0).all()
    assert 0 <= here.units.min() <= here.units.max() < here.num_units
    assert abs(here.num_kept - (1 - p) * here.num_units) <= max(0.5, p)


def test_the_subset_of_a_seed_never_changes() -> None:
    """The units of a seed are fixed: releases must agree with each other."""
    units = DropMask((3, 8), 0.5, seed=42, per="example").units
    assert units.tolist() == [[0, 2, 6, 7], [1, 2, 4, 5], [0, 1, 3, 6]]


def test_a_batch_shares_a_subset_and_examples_do_not() -> None:
    """By default every example keeps the same units; per example they differ."""
    shared = DropMask((9, 64), 0.5, 1).units
    own = DropMask((9, 64), 0.5, 1, per="example").units
    assert len({tuple(row) for row in shared.tolist()}) == 1
    assert len({tuple(row) for row in own.tolist()}) > 4


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_waterfill_never_takes_more_bytes_than_without(p: float) -> None:
    """Whole channels of correlated maps cost Waterfill less than all of them."""
    mix = normal((8, 32), 1)
    smooth = torch.nn.functional.interpolate(normal((16, 8, 4, 4)), size=(16, 16))
    maps = torch.einsum("nchw,ck->nkhw", smooth, mix).relu()
    kept = DropMask(maps.shape, p, 5).gather(maps)
    assert len(encode(kept, Waterfill())) < len(encode(maps, Waterfill()))


def test_other_seeds_give_other_subsets() -> None:
    """Seeds of other steps or roles drop other units."""
    all_units = {tuple(DropMask((1, 64), 0.5, s).units[0].tolist()) for s in range(99)}
    assert len(all_units) == 99


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_without_dropout_nothing_is_touched(shape: tuple[int, ...], unit: Unit) -> None:
    """At p = 0 both ways return the very tensor they were given."""
    x = normal(shape)
    mask = DropMask(shape, 0.0, seed=1, unit=unit)
    assert mask.gather(x) is x
    assert mask.scatter(x) is x
    assert mask.kept_shape == shape


def test_bytes_fall_by_the_share_that_is_dropped() -> None:
    """At p = 0.3 identity carries at most 0.71 of the bytes in either unit."""
    x = normal((8, 64, 16, 16))
    for unit in UNITS:
        kept = DropMask(x.shape, 0.3, 5, unit).gather(x)
        assert len(encode(kept, Identity())) <= 0.71 * len(encode(x, Identity()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_layouts_are_kept(dtype: torch.dtype) -> None:
    """The dtype stays, and a channels-last tensor gives what a contiguous one does."""
    x = normal((2, 6, 3, 4)).to(dtype)
    mask = DropMask(x.shape, 0.5, 0)
    last = x.to(memory_format=torch.channels_last)
    assert mask.gather(last).dtype is dtype
    assert torch.equal(mask.gather(last), mask.gather(x))
    assert mask.scatter(mask.gather(x)).dtype is dtype


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (2, 3, 0, 0)])
def test_empty_batches_and_maps_pass(shape: tuple[int, ...]) -> None:
    """Nothing in, nothing out, in the right shape."""
    for unit in UNITS:
        mask = DropMask(shape, 0.5, 0, unit)
        assert mask.scatter(mask.gather(torch.zeros(shape))).shape == shape


@pytest.mark.parametrize("p", [-0.1, 1, 1.0, 2, math.nan, math.inf, True, "0.5"])
def test_a_share_outside_zero_to_one_is_refused(p: float) -> None:
    """A share outside [0, 1) raises SettingError that names the setting."""
    with pytest.raises(SettingError, match="activation_dropout"):
        DropMask((2, 4), p, 0)


def test_other_wrong_settings_are_refused() -> None:
    """Shapes without channels, unknown units and seeds out of range raise."""
    with pytest.raises(SettingError, match="shape"):
        DropMask((5,), 0.5, 0)
    with pytest.raises(SettingError, match="unit"):
        DropMask((5, 2), 0.5, 0, "pixel")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="per"):
        DropMask((5, 2), 0.5, 0, per="day")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="seed"):
        DropMask((5, 2), 0.5, -1)


def test_tensors_of_another_shape_are_refused() -> None:
    """Activations or kept values that do not fit the mask raise TrainingError."""
    mask = DropMask((2, 4), 0.5, 0)
    with pytest.raises(TrainingError, match=r"\(2, 5\)"):
        mask.gather(torch.zeros(2, 5))
    with pytest.raises(TrainingError, match=r"\(2, 4\)"):
        mask.scatter(torch.zeros(2, 4))
