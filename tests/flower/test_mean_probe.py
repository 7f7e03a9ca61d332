"""Strategies are judged by what they make of replies, not by their names."""

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp import strategy
from flwr.serverapp.strategy import FedAvg, Strategy

from flwr_slfac.mean_probe import probe_mean
from tests.flower.app.splitapp.strategies import Midpoint

FRONT = ArrayRecord(
    {"w": Array(np.ones((3, 2), np.float32)), "n": Array(np.asarray(3.0))}
)


class Renamed(FedAvg):
    """FedAvg under a name that nobody knows."""


class Uncopyable(FedAvg):
    """FedAvg that cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopyable":
        raise TypeError("a socket is open")


class Noisy(FedAvg):
    """FedAvg with noise from NumPy."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        noisy = {
            name: Array(np.asarray(a.numpy() + np.random.normal(size=a.shape)))
            for name, a in (arrays or ArrayRecord()).items()
        }
        return ArrayRecord(noisy), metrics


@pytest.mark.parametrize(
    "mean",
    [
        FedAvg(),
        Renamed(weighted_by_key="examples", arrayrecord_key="front"),
        strategy.FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
        strategy.FedAdam(beta_1=0.9, beta_2=0.99),
        strategy.FedProx(proximal_mu=0.5),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_weighted_mean_is_let_pass(mean: Strategy) -> None:
    """A function of the weighted mean alone is let pass, whatever its name."""
    assert not probe_mean(mean, FRONT).refused


@pytest.mark.parametrize(
    "other",
    [
        Midpoint(),
        Noisy(),
        strategy.Krum(),
        strategy.FedMedian(),
        strategy.FedTrimmedAvg(),
        strategy.Bulyan(),
        strategy.QFedAvg(client_learning_rate=0.1),
        strategy.DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 0.5, 11),
    ],
    ids=lambda s: type(s).__name__,
)
def test_all_else_is_refused(other: Strategy) -> None:
    """What ranks, clips, weighs otherwise or adds noise is found out."""
    assert probe_mean(other, FRONT).refused


def test_what_cannot_be_tried_is_unclear() -> None:
    """A strategy that cannot be copied is not taken for one that averages."""
    finding = probe_mean(Uncopyable(), FRONT)
    assert "a socket is open" in finding.unclear


def test_a_trial_leaves_no_trace() -> None:
    """Neither the strategy nor any generator of random numbers is changed."""
    tried = strategy.FedAvgM(server_momentum=0.9)
    before = random.getstate(), np.random.get_state()[1].tolist()
    probe_mean(tried, FRONT)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert tried.current_arrays is None
    assert tried.momentum_vector is None
