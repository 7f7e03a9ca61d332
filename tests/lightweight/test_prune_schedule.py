"""A pruning ratio grows over rounds as Zhu and Gupta's does, and masks follow it."""

from fractions import Fraction
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_slfac import Lightweight
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.pruning import (
    ChannelMask,
    ElementMask,
    FullMask,
    Mask,
    channel_groups,
    channel_scores,
    choose_channels,
    choose_elements,
    gradual_share,
    increase,
    prunable_shapes,
)
from tests.split.test_lightweight import Witness, by_partition, net, run

GRADUAL = partial(Lightweight, prune=0.5, prune_rounds=2)


@given(st.just(0.0) | st.floats(1e-9, 0.99), st.integers(0, 60), st.integers(1, 50))
def test_shares_are_those_of_the_formula(final: float, t: int, n: int) -> None:
    """``s_f (1 - (1 - t/n)^3)`` to the last digits; exactly s_f from t = n on."""
    share = gradual_share(final, t, n)
    if t >= n:
        assert share == final
    exact = Fraction(final) * (1 - (1 - Fraction(min(t, n), n)) ** 3)
    assert abs(Fraction(share) - exact) <= Fraction(final) * Fraction(1, 2**48)


@given(st.floats(0, 0.99), st.integers(0, 20))
def test_shares_start_at_nothing_and_never_fall(final: float, n: int) -> None:
    """From the whole front, unless it is reached at once, to the final share."""
    shares = [gradual_share(final, t, n) for t in range(n + 3)]
    assert shares[0] == (0 if n else final)
    assert shares == sorted(shares)
    assert shares[-1] == final


def test_a_function_of_the_user_is_reached_gradually_too() -> None:
    """Each device is on its way to its own share, of that round."""
    setting = GRADUAL(prune=lambda r, profile: 0.1 * r * profile["strength"])
    assert [setting.share(r, {"strength": 2}) for r in (1, 2, 3)] == [
        0.0,
        0.4 * (1 - 0.5**3),
        pytest.approx(0.6),
    ]


@pytest.mark.parametrize("rounds", [-1, 1.5, True, "two"])
def test_a_length_that_is_none_is_refused(rounds: object) -> None:
    """The message names the setting."""
    with pytest.raises(SettingError, match="prune_rounds"):
        GRADUAL(prune_rounds=rounds)


def test_two_schedules_are_refused() -> None:
    """Shares by round are a schedule already."""
    with pytest.raises(SettingError, match="leave prune_rounds out"):
        GRADUAL(prune=[0.1, 0.5])


def masks_by_round(setting: Lightweight, num_rounds: int = 4) -> list[bytes]:
    """Return the mask that the last device was sent in each round."""
    run(setting, num_rounds=num_rounds)
    last = max(device for device, _ in Witness.last.begins)
    return [b.mask for device, b in Witness.last.begins if device == last]


def kept_in(data: bytes) -> list[int]:
    """Return how many channels a mask of the small net keeps, by group."""
    if not data:
        return [4, 4]
    channels = channel_groups(net()[0], torch.zeros(1, 1, 6, 6))
    mask = ChannelMask.from_bytes(data, channels)
    return [int(kept.sum()) for kept in mask.masks.values()]


def test_devices_are_sent_the_masks_of_the_schedule() -> None:
    """The whole front, then shares 0.4375 and 0.5 of four channels, rounded down."""
    masks = masks_by_round(GRADUAL())
    assert masks[0] == b""
    assert [kept_in(m) for m in masks] == [[4, 4], [3, 3], [2, 2], [2, 2]]


@pytest.mark.parametrize(
    "rare", [{"remask_every": 2}, {"aggregate_every": 2, "period": "round"}]
)
def test_the_schedule_waits_for_a_choice_of_masks(rare: dict[str, int]) -> None:
    """Masks that hold for two rounds have the share of the first of the two."""
    masks = masks_by_round(GRADUAL(prune_rounds=3, **rare))
    # After two rounds 0.5 (1 - (1/3)^3) = 0.481: one of four.
    assert [kept_in(m) for m in masks] == [[4, 4], [4, 4], [3, 3], [3, 3]]


def test_unlike_devices_are_pruned_on_the_way_to_their_own_share() -> None:
    """Device 1 keeps fewer and fewer channels, devices 0 and 2 all of them."""
    run(GRADUAL(prune=by_partition), num_rounds=3)
    kept = {0: [], 1: [], 2: []}  # type: dict[int, list[list[int]]]
    for device, begin in Witness.last.begins:
        kept[device].append(kept_in(begin.mask))
    assert kept == {0: [[4, 4]] * 3, 1: [[4, 4], [3, 3], [2, 2]], 2: [[4, 4]] * 3}


def test_growth_is_counted_from_the_first_round() -> None:
    """The first mask of channels that leave is by growth since the start, not drawn."""
    setting = GRADUAL(criterion="increase")
    grown = run(setting, num_rounds=1)
    run(setting, num_rounds=2)
    sent = next(b.mask for _, b in Witness.last.begins if b.server_round == 2)
    front = net()[0]
    channels = channel_groups(front, torch.zeros(1, 1, 6, 6))
    then = channel_scores(channels, front.state_dict())
    now = channel_scores(channels, dict(grown.front))
    expected = choose_channels(channels, increase(now, then), 0.4375)
    assert sent == expected.to_bytes()
    drawn = choose_channels(channels, increase(now, now), 0.4375)
    assert sent != drawn.to_bytes()


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("structured", [True, False])
def test_masks_of_the_schedule_are_nested(structured: bool, scope: str) -> None:
    """Where scores stay, what leaves early is away later: of channels and weights."""
    setting = GRADUAL(prune_rounds=5, structured=structured, scope=scope)
    front = net(16)[0]
    full = dict(front.state_dict())
    channels = channel_groups(front, torch.zeros(1, 1, 6, 6))

    def mask_of(server_round: int) -> Mask:
        share = setting.share(server_round, {})
        if share == 0:
            return FullMask()
        if structured:
            scores = channel_scores(channels, full)
            return choose_channels(channels, scores, share, setting.scope)
        return choose_elements(full, list(prunable_shapes(full)), share, setting.scope)

    masks = [mask_of(r) for r in range(1, 7)]
    assert masks[0].is_full
    for wider, narrower in pairwise(masks[1:]):
        assert isinstance(wider, ChannelMask | ElementMask)
        assert isinstance(narrower, type(wider))
        kept = [int(m.sum()) for m in narrower.masks.values()]
        assert kept <= [int(m.sum()) for m in wider.masks.values()]
        for name, few in narrower.masks.items():
            assert not (few & ~wider.masks[name]).any()


def test_no_schedule_is_none() -> None:
    """With n = 0, or nothing to prune, training is what it was, bit for bit."""
    at_once, reached = run(Lightweight(prune=0.5)), run(GRADUAL(prune_rounds=0))
    for name, tensor in at_once.front.items():
        assert torch.equal(tensor, reached.front[name])
    plain, empty = run(Lightweight()), run(GRADUAL(prune=0.0))
    for name, tensor in plain.front.items():
        assert torch.equal(tensor, empty.front[name])
