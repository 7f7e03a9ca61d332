"""Means within a round go with strategies that average, and with no others."""

from functools import partial

import pytest
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    Krum,
    Strategy,
)
from torch import nn
from torch.optim import SGD

from flwr_slfac import Lightweight, SplitFed
from flwr_slfac.errors import SettingError

STEPS = Lightweight(aggregate_every=5, period="step")


def around(strategy: Strategy, lightweight: Lightweight) -> SplitFed:
    """Return a strategy around another."""
    return SplitFed(
        strategy,
        back=nn.Linear(2, 2),
        loss=nn.CrossEntropyLoss(),
        optimizer=partial(SGD, lr=0.1),
        lightweight=lightweight,
    )


@pytest.mark.parametrize("kind", [FedAvg, FedAvgM, FedAdam, FedProx])
def test_strategies_that_average_may_be_wrapped(kind: type[Strategy]) -> None:
    """Their mean at the end of the round is that of the means within it."""
    around(kind(), STEPS)


def private() -> Strategy:
    """Return a strategy that clips and adds noise on the server."""
    return DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 2)


@pytest.mark.parametrize("kind", [FedMedian, Krum, private])
def test_strategies_that_do_more_are_refused_by_name(kind: type[Strategy]) -> None:
    """What ranks, clips or adds noise would be passed by within the round."""
    with pytest.raises(SettingError, match=r"within a round .*period='round'"):
        around(kind(), STEPS)
    around(kind(), Lightweight(aggregate_every=5, period="round"))
