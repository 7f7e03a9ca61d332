"""Flower's own averaging strategies, given filled states."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from torch import Tensor, nn

from flwr_slfac import Lightweight, SettingError, SplitFed
from flwr_slfac.lightweight.pruning import (
    ChannelMask,
    average_coordinates,
    channel_groups,
    fill_unheld,
    restore_unheld,
)
from tests.lightweight.prune_cases import random_mask

State = dict[str, Tensor]
NUM_EXAMPLES = [30, 50, 20]
STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "FedAvg": FedAvg,
    "FedAvgM": partial(FedAvgM, server_learning_rate=0.7, server_momentum=0.9),
    "FedAdagrad": FedAdagrad,
    "FedAdam": partial(FedAdam, beta_1=0.9, beta_2=0.99),
    "FedYogi": partial(FedYogi, beta_1=0.9, beta_2=0.99),
}


def drawn(seed: int) -> tuple[State, list[State], list[ChannelMask]]:
    """Return a state, what three devices made of their parts, and the parts."""
    torch.manual_seed(seed)
    front = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    channels = channel_groups(front, torch.zeros(1, 6).double())
    masks = [random_mask(channels, seed + i, share=0.7) for i in range(3)]
    previous = {k: v.clone() for k, v in front.state_dict().items()}
    parts = [mask.take_state(previous) for mask in masks]
    subs = [{k: v + torch.randn_like(v) for k, v in part.items()} for part in parts]
    return previous, subs, masks


def aggregated(strategy: Strategy, number: int, old: State, new: list[State]) -> State:
    """Return what a strategy makes of a round."""
    # With fraction_train=0 a strategy notes what it would send, and samples nobody.
    strategy.configure_train(number, ArrayRecord(old), ConfigRecord(), None)
    replies = []
    for node, (state, examples) in enumerate(zip(new, NUM_EXAMPLES, strict=True), 1):
        metrics = MetricRecord({"num-examples": examples})
        content = RecordDict({"arrays": ArrayRecord(state), "metrics": metrics})
        about = Metadata(1, "", node, 0, "", "", 0.0, 60.0, "train")
        replies.append(Message(content, metadata=about))
    arrays, _ = strategy.aggregate_train(number, replies)
    return arrays.to_torch_state_dict()


@pytest.mark.parametrize("build", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_a_strategy_sees_the_mean_over_holders(build: Callable[..., Strategy]) -> None:
    """Filled states lead where three devices with the coordinates' mean would lead."""
    filling, knowing = build(fraction_train=0.0), build(fraction_train=0.0)
    for number in (1, 2):
        previous, subs, masks = drawn(number)
        mean = average_coordinates(subs, NUM_EXAMPLES, masks, previous)
        filled = fill_unheld(subs, NUM_EXAMPLES, masks, previous)
        found = aggregated(filling, number, previous, filled)
        wanted = aggregated(knowing, number, previous, [mean] * 3)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
        if build is FedAvg:
            torch.testing.assert_close(found, mean)


def test_what_nobody_holds_stays_even_with_momentum() -> None:
    """A strategy's momentum moves it on; restored, it is where it was, bit for bit."""
    strategy = STRATEGIES["FedAdam"](fraction_train=0.0)
    previous, subs, masks = drawn(1)
    everything = [{k: v + 1 for k, v in previous.items()}] * 3
    aggregated(strategy, 1, previous, everything)
    filled = fill_unheld(subs, NUM_EXAMPLES, masks, previous)
    moved = aggregated(strategy, 2, previous, filled)
    restored = restore_unheld(moved, NUM_EXAMPLES, masks, previous)
    num_absent = 0
    for name, old in previous.items():
        held = torch.stack([mask.held(name, tuple(old.shape)) for mask in masks]).any(0)
        num_absent += int((~held).sum())
        assert torch.equal(restored[name][~held], old[~held])
        assert not torch.equal(moved[name][~held], old[~held]) or bool(held.all())
        assert torch.equal(restored[name][held], moved[name][held])
    assert num_absent > 0


def split_around(strategy: Strategy, **settings: object) -> SplitFed:
    """Return split training around a strategy."""
    back, sgd = nn.Linear(4, 2), partial(torch.optim.SGD, lr=0.1)
    loss = nn.CrossEntropyLoss()
    return SplitFed(strategy, back=back, loss=loss, optimizer=sgd, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "strategy",
    [
        Bulyan(),
        FedMedian(),
        FedTrimmedAvg(),
        Krum(),
        MultiKrum(),
        QFedAvg(client_learning_rate=0.1),
    ],
    ids=lambda s: type(s).__name__,
)
def test_strategies_that_compare_whole_fronts_want_like_parts(
    strategy: Strategy,
) -> None:
    """Unlike shares are refused around them by name; one share for all is not."""
    unlike = Lightweight(prune=lambda server_round, profile: 0.5)
    with pytest.raises(SettingError, match=type(strategy).__name__):
        split_around(strategy, lightweight=unlike)
    split_around(strategy, lightweight=Lightweight(prune=0.5))


def test_a_residual_by_place_is_refused_with_dropout() -> None:
    """Error feedback and dropout at the cut exclude each other, with the reason."""
    with pytest.raises(SettingError, match="feedback"):
        split_around(
            FedAvgM(),
            down="feedback(inner=topk(fraction=0.1))",
            lightweight=Lightweight(activation_dropout=0.1),
        )
