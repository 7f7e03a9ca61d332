"""Unstructured masks: small on the wire, and pruned weights that stay zero."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn, optim

from flwr_slfac.errors import DecodeError, DivergedError, SettingError, TrainingError
from flwr_slfac.lightweight.pruning import (
    ElementMask,
    choose_elements,
    keep_pruned_zero,
    prunable_shapes,
)


def net() -> nn.Module:
    """Return a small network with a norm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))


def random_masks(shapes: dict[str, tuple[int, ...]], share: float) -> ElementMask:
    """Return masks that keep about a share, and one weight at least."""
    masks = {}
    for name, shape in shapes.items():
        mask = torch.rand(shape) < share
        mask.view(-1)[0] = True
        masks[name] = mask
    return ElementMask(masks)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("by_gradient", [False, True])
def test_the_smallest_weights_leave(scope: str, by_gradient: bool) -> None:
    """No weight that left scores above one that stayed, and the share is exact."""
    front = net()
    state = front.state_dict()
    slopes = {k: torch.randn_like(v) for k, v in state.items() if v.ndim}
    names = list(prunable_shapes(front.state_dict()))
    masks = choose_elements(state, names, 0.5, scope, slopes if by_gradient else None)
    assert masks.masks.keys() == {"0.weight", "3.weight"}
    assert sum(int(m.sum()) for m in masks.masks.values()) == (30 + 20) // 2
    for name, mask in masks.masks.items():
        score = (state[name] * (slopes[name] if by_gradient else 1)).abs()
        assert score[~mask].max() <= score[mask].min()
        assert scope == "global" or int(mask.sum()) == mask.numel() // 2


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=3),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_masks_cross_unchanged_at_no_more_than_a_bitmap(
    shapes: list[tuple[int, int]], share: float, seed: int
) -> None:
    """Packed masks come back the same; a part is a bitmap and a header at most."""
    torch.manual_seed(seed)
    masks = random_masks({str(i): s for i, s in enumerate(shapes)}, share)
    data = masks.to_bytes()
    assert len(data) <= sum(11 + math.ceil(a * b / 8) for a, b in shapes)
    again = ElementMask.from_bytes(data, {str(i): s for i, s in enumerate(shapes)})
    assert all(torch.equal(again.masks[n], m) for n, m in masks.masks.items())


def test_sparse_masks_are_smaller_than_a_bitmap() -> None:
    """With one weight in fifty kept, or pruned, places cost a fifth of a bitmap."""
    torch.manual_seed(0)
    masks = random_masks({"w": (100, 400)}, 0.02)
    other = ElementMask({"w": ~masks.masks["w"]})
    for found in (masks, other):
        assert len(found.to_bytes()) < 0.2 * 40_000 / 8
    everything = ElementMask({"w": torch.ones(100, 400) > 0})
    assert len(everything.to_bytes()) == 10


@given(st.binary(max_size=60), st.integers(0, 60), st.booleans())
def test_hostile_masks_are_refused_or_valid(junk: bytes, at: int, splice: bool) -> None:
    """Any bytes raise DecodeError or give masks of the declared shapes."""
    shapes = {"a": (3, 4), "b": (5, 7)}
    data = junk
    if splice:
        good = random_masks(shapes, 0.4).to_bytes()
        data = good[:at] + junk + good[at + len(junk) :]
    try:
        found = ElementMask.from_bytes(data, shapes)
    except DecodeError:
        return
    assert {n: tuple(m.shape) for n, m in found.masks.items()} == shapes
    assert all(mask.any() for mask in found.masks.values())


def test_only_kept_values_travel() -> None:
    """A sub state holds kept values only; expanding puts them back among zeros."""
    front = net()
    state = front.state_dict()
    masks = choose_elements(state, list(prunable_shapes(front.state_dict())), 0.7)
    sub = masks.take_state(state)
    assert sub["0.weight"].shape == (9,)
    assert sub["3.weight"].shape == (6,)
    assert torch.equal(sub["1.running_var"], state["1.running_var"])
    back = masks.put_state(sub, {k: torch.zeros_like(v) for k, v in state.items()})
    for name, value in state.items():
        mask = masks.held(name, tuple(value.shape))
        assert torch.equal(back[name], torch.where(mask, value, 0))
    with pytest.raises(TrainingError, match=r"'0.weight' has shape \(30,\)"):
        masks.put_state(sub | {"0.weight": torch.zeros(30)}, state)
    with pytest.raises(TrainingError, match=r"'3.bias' has shape \(3,\)"):
        masks.put_state(sub | {"3.bias": torch.zeros(3)}, state)


OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adam": partial(optim.Adam, lr=0.1, weight_decay=0.1),
    "adamw": partial(optim.AdamW, lr=0.1, amsgrad=True),
    "rmsprop": partial(optim.RMSprop, lr=0.1, momentum=0.9, centered=True),
    "adagrad": partial(optim.Adagrad, lr=0.1),
}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_pruned_weights_stay_zero(build: Callable[..., optim.Optimizer]) -> None:
    """No optimizer moves a pruned weight, also with momentum from before the mask."""
    front = net().train()
    optimizer = build(front.parameters())
    masks = choose_elements(
        front.state_dict(), list(prunable_shapes(front.state_dict())), 0.5
    )

    def train() -> None:
        optimizer.zero_grad()
        front(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()

    train()
    handles = keep_pruned_zero(optimizer, front, masks)
    before = front[0].weight.detach().clone()
    for _ in range(4):
        train()
        for name, mask in masks.masks.items():
            weight = front.get_parameter(name)
            assert not weight[~mask].any()
            assert not weight.grad[~mask].any()
    assert not torch.equal(before, front[0].weight)
    for handle in handles:
        handle.remove()
    train()
    assert front[0].weight[~masks.masks["0.weight"]].any()


@pytest.mark.parametrize("rho", [1.0, -0.5, math.nan])
def test_bad_settings_are_refused(rho: float) -> None:
    """Ratios, empty masks, wrong types and missing gradients are named."""
    state = {"w": torch.randn(3, 3), "v": torch.randn(2, 2)}
    with pytest.raises(SettingError, match=r"give a number in \[0, 1\)"):
        choose_elements(state, ["w"], rho)
    with pytest.raises(SettingError, match="no gradient of 'v'"):
        choose_elements(state, ["w", "v"], 0.5, gradients={"w": state["w"]})
    with pytest.raises(SettingError, match="'w' keeps none of its 9 weights"):
        ElementMask({"w": torch.zeros(3, 3) > 0})
    with pytest.raises(SettingError, match=r"is torch\.float32; give bool"):
        ElementMask({"w": torch.ones(3, 3)})
    with pytest.raises(DivergedError, match="'w' is NaN"):
        choose_elements({"w": torch.full((2, 2), math.nan)}, ["w"], 0.5)


def test_one_weight_is_kept_at_the_highest_ratio() -> None:
    """However high the ratio, no tensor is emptied, in either scope."""
    state: dict[str, Tensor] = {"w": torch.randn(3, 3), "v": torch.randn(1, 2)}
    for scope in ("layer", "global"):
        masks = choose_elements(state, ["w", "v"], 0.9999, scope)
        assert [int(m.sum()) for m in masks.masks.values()] == [1, 1]
