"""Averages over those who hold a coordinate, alone and through any averaging."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flwr_slfac.errors import SettingError, TrainingError
from flwr_slfac.lightweight.pruning import (
    ElementMask,
    FullMask,
    Mask,
    average_coordinates,
    channel_groups,
    fill_unheld,
)
from tests.lightweight.prune_cases import random_mask

FRONT = nn.Sequential(
    nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
).double()
CHANNELS = channel_groups(FRONT, torch.zeros(2, 2, 2, 2).double())
State = dict[str, Tensor]


def random_state(seed: int) -> State:
    """Return a state of the front with random values and counters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(v.shape, generator=generator).double()
        if v.is_floating_point()
        else torch.randint(0, 99, v.shape, generator=generator)
        for k, v in FRONT.state_dict().items()
    }


@st.composite
def devices(
    draw: st.DrawFn,
) -> tuple[list[State], list[float], list[Mask]]:
    """Draw what a few devices hold, by channel, by weight or all of it."""
    full, weights, masks = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        seed = draw(st.integers(0, 999))
        kind = draw(st.sampled_from(["channels", "elements", "everything"]))
        mask: Mask = FullMask()
        if kind == "channels":
            mask = random_mask(CHANNELS, seed)
        elif kind == "elements":
            flags = torch.rand(4, 12, generator=torch.Generator().manual_seed(seed))
            mask = ElementMask({"4.weight": (flags < 0.5) | (flags == flags.min())})
        full.append(random_state(seed))
        weights.append(draw(st.integers(0, 500)))
        masks.append(mask)
    return full, weights, masks


def by_definition(
    full: list[State], weights: list[float], masks: list[Mask], previous: State
) -> dict[str, list[float]]:
    """Average coordinate by coordinate in Python."""
    result = {}
    for name, old in previous.items():
        held = [h.held(name, tuple(old.shape)).flatten().tolist() for h in masks]
        values = [state[name].flatten().tolist() for state in full]
        result[name] = []
        for i, stays in enumerate(old.flatten().tolist()):
            total = weight = 0.0
            for k, own in enumerate(weights):
                if held[k][i]:
                    total += own * values[k][i]
                    weight += own
            mean = total / weight if weight else stays
            result[name].append(mean if old.is_floating_point() else round(mean))
    return result


@settings(deadline=None)
@given(devices(), st.integers(0, 9))
def test_a_coordinate_is_the_mean_over_its_holders(
    drawn: tuple[list[State], list[float], list[Mask]],
    seed: int,
) -> None:
    """It equals a slow loop from the definition; what nobody holds stays as it was."""
    full, weights, masks = drawn
    previous = random_state(1000 + seed)
    subs = [mask.take_state(s) for s, mask in zip(full, masks, strict=True)]
    found = average_coordinates(subs, weights, masks, previous)
    wanted = by_definition(full, weights, masks, previous)
    for name, value in found.items():
        assert value.dtype == previous[name].dtype
        assert value.flatten().tolist() == pytest.approx(wanted[name], rel=1e-12)


@settings(deadline=None)
@given(devices(), st.integers(0, 9))
def test_an_averaging_strategy_finds_the_mean_over_holders(
    drawn: tuple[list[State], list[float], list[Mask]],
    seed: int,
) -> None:
    """Filled states keep what devices hold, and average to the coordinate's mean."""
    full, weights, masks = drawn
    previous = random_state(1000 + seed)
    subs = [mask.take_state(s) for s, mask in zip(full, masks, strict=True)]
    filled = fill_unheld(subs, weights, masks, previous)
    wanted = average_coordinates(subs, weights, masks, previous)
    for name, old in previous.items():
        for state, own, mask in zip(filled, full, masks, strict=True):
            held = mask.held(name, tuple(old.shape))
            assert torch.equal(state[name][held], own[name][held])
        if sum(weights) and old.is_floating_point():
            mean = sum(
                state[name] * w for state, w in zip(filled, weights, strict=True)
            ) / sum(weights)
            torch.testing.assert_close(mean, wanted[name], rtol=1e-12, atol=1e-12)


def test_devices_that_hold_everything_average_as_ever() -> None:
    """Without pruning, filling changes no bit."""
    states = [random_state(0), random_state(1)]
    filled = fill_unheld(states, [3, 4], [FullMask(), FullMask()], random_state(2))
    for state, found in zip(states, filled, strict=True):
        assert all(torch.equal(found[key], value) for key, value in state.items())


def test_the_null_forms_change_nothing() -> None:
    """A mask of everything takes, puts and sends what is there, at the cut too."""
    mask, state = FullMask(), random_state(0)
    assert mask.is_full
    assert mask.to_bytes() == b""
    for found in (mask.take_state(state), mask.put_state(state, random_state(1))):
        assert all(torch.equal(found[key], value) for key, value in state.items())
    smashed = torch.randn(2, 4, 3)
    assert mask.cut.gather(smashed) is smashed
    assert mask.cut.scatter(smashed) is smashed
    dim, size, index = mask.cut.places(smashed.shape, dim=2)
    assert (dim, size, torch.arange(size)[index].tolist()) == (2, 3, [0, 1, 2])


def test_a_value_of_a_holder_without_weight_does_not_count() -> None:
    """A NaN on a coordinate that is not held reaches nobody."""
    mask = ElementMask({"w": torch.tensor([[True, False]])})
    previous = {"w": torch.tensor([[5.0, math.nan]])}
    found = average_coordinates([{"w": torch.tensor([1.0])}], [2], [mask], previous)
    assert found["w"][0, 0] == 1
    assert found["w"].isnan().tolist() == [[False, True]]


def test_input_that_does_not_fit_is_refused() -> None:
    """Counts, weights, keys and shapes that do not fit are named."""
    previous = random_state(0)
    mask = random_mask(CHANNELS, 0)
    with pytest.raises(SettingError, match="1 states, 2 weights and 1 masks"):
        average_coordinates([previous], [1, 2], [FullMask()], previous)
    for bad in (-1, math.nan, math.inf):
        with pytest.raises(SettingError, match="give a number >= 0"):
            average_coordinates([previous], [bad], [FullMask()], previous)
    with pytest.raises(TrainingError, match=r"'0\.weight' has shape"):
        average_coordinates([previous], [1], [mask], previous)
    partial = {k: v for k, v in previous.items() if k != "0.bias"}
    with pytest.raises(TrainingError, match=r"differs in the keys '0\.bias'"):
        average_coordinates([partial], [1], [FullMask()], previous)
