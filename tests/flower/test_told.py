"""What a strategy tells devices reaches them, each its own, or is refused by name."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from torch.optim import SGD

from flwr_slfac import Device
from flwr_slfac.split import Begin
from tests.flower.app.splitapp.task import Job
from tests.flower.harness import Outcome, flower_in
from tests.flower.oracle import train_in_process

pytestmark = pytest.mark.flower

LR = {"train_config": {"lr": 0.02}}
BY_NODE = {"strategy": "ByNode", "num_rounds": 1}
JOBS = (
    Job("plain"),
    Job("configured", configure=True),
    Job("rate", configure=True, start=LR),
    Job("rate without a cache", configure=True, start=LR, live_cache=0),
    Job("epochs", configure=True, start={"train_config": {"epochs": 2}}),
    Job("tested", configure=True, start={"evaluate_config": {"epochs": 2}}),
    Job(
        "too few for Bulyan",
        strategy="Bulyan",
        strategy_settings={"num_malicious_nodes": 1},
    ),
    Job("in time", start={"timeout": 300.0}),
    Job("mu", strategy_settings={"what": "mu"}, **BY_NODE),
    Job("lr", strategy_settings={"what": "lr"}, configure=True, **BY_NODE),
    Job("arrays", strategy_settings={"what": "arrays"}, **BY_NODE),
)
REFUSED = {
    "unread": (Job("unread", start=LR), ("lr", "configure")),
    "unread in evaluation": (
        Job("unread in evaluation", start={"evaluate_config": {"beta": 1}}),
        ("beta", "configure"),
    ),
    "timeout": (Job("timeout", start={"timeout": 0.0}), ("timeout", "above 0")),
    "extra": (
        Job("extra", strategy_settings={"what": "extra"}, **BY_NODE),
        ("ByNode", "2 ArrayRecord", "variates"),
    ),
    "twice": (
        Job("twice", strategy_settings={"what": "twice"}, **BY_NODE),
        ("ByNode", "two messages"),
    ),
    "arrays in a relay": (
        Job(
            "arrays in a relay",
            "sequential",
            strategy_settings={"what": "arrays"},
            **BY_NODE,
        ),
        ("sequential", "unlike fronts"),
    ),
    "arrays and masks": (
        Job(
            "arrays and masks",
            strategy_settings={"what": "arrays"},
            lightweight={"prune": 0.4},
            **BY_NODE,
        ),
        ("lightweight", "another front"),
    ),
    "own in a relay": (
        Job("own in a relay", "sequential", "Midpoint"),
        ("Midpoint", "sequential"),
    ),
    "own of unlike parts": (
        Job("own of unlike parts", strategy="Midpoint", lightweight={"prune": "odd"}),
        ("Midpoint", "unlike parts"),
    ),
}
LATE = Job(
    "late",
    num_rounds=1,
    start={"timeout": 0.6, "train_config": {"epochs": 30}},
    configure=True,
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Run all jobs in one simulation."""
    refused = [job for job, _ in REFUSED.values()]
    with flower_in(tmp_path_factory.mktemp("told")) as flower:
        yield flower.simulate([*refused, LATE, *JOBS])


def hash_of(outcome: Outcome, name: str) -> Any:
    """Return the hash of a job's final weights."""
    assert "error" not in outcome.results[name], outcome.results[name]["traceback"]
    return outcome.results[name]["hash"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused(outcome: Outcome, name: str) -> None:
    """The error names what was asked for and the remedy."""
    result = outcome.results[name]
    for words in REFUSED[name][1]:
        assert words in result["error"]
    assert "hash" not in result


def test_a_round_past_its_timeout_loses_its_devices(outcome: Outcome) -> None:
    """`timeout` bounds a round of many steps, not each step; the reason says so."""
    error = outcome.results["late"]["error"]
    assert error.startswith("AllDevicesLostError")
    assert "not done within the timeout of 0.6 s" in error


def test_what_says_nothing_new_changes_nothing(outcome: Outcome) -> None:
    """A timeout that is kept, a configuration of the same values: the same weights."""
    plain = train_in_process(Job("plain"))[0]
    for name in ("plain", "configured", "tested", "in time"):
        assert hash_of(outcome, name) == plain


@pytest.mark.parametrize("name", ["rate", "rate without a cache"])
def test_train_config_reaches_the_device(outcome: Outcome, name: str) -> None:
    """A learning rate in `train_config` is that of a device built with it."""

    def slower(partition: int, device: Device) -> None:
        device.optimizer = partial(SGD, lr=0.02, momentum=0.9)

    expected = train_in_process(Job("rate"), configure=slower)[0]
    assert hash_of(outcome, name) == expected != hash_of(outcome, "plain")


def test_epochs_reach_the_device(outcome: Outcome) -> None:
    """A number of epochs in `train_config` is that of a device built with it."""

    def longer(partition: int, device: Device) -> None:
        device.epochs = 2

    expected = train_in_process(Job("epochs"), configure=longer)[0]
    assert hash_of(outcome, "epochs") == expected


def test_every_node_has_its_own_learning_rate(outcome: Outcome) -> None:
    """What a strategy tells one node reaches that node and no other."""

    def own(partition: int, device: Device) -> None:
        device.optimizer = partial(SGD, lr=0.05 * (partition + 1), momentum=0.9)

    expected = train_in_process(Job("lr", num_rounds=1), configure=own)[0]
    assert hash_of(outcome, "lr") == expected


def test_every_node_has_its_own_proximal_term(outcome: Outcome) -> None:
    """The weight of the proximal term is that of each node's message."""

    def own(partition: int, begin: Begin) -> Begin:
        return replace(begin, proximal_mu=0.25 * partition)

    expected = train_in_process(Job("mu", num_rounds=1), tell=own)[0]
    assert hash_of(outcome, "mu") == expected


def test_every_node_has_its_own_front(outcome: Outcome) -> None:
    """A front that a strategy sends to one node reaches that node and no other."""

    def own(partition: int, begin: Begin) -> Begin:
        front = begin.front or {}
        scaled = {n: (t * (1 + partition)).to(t.dtype) for n, t in front.items()}
        return replace(begin, front=scaled)

    expected = train_in_process(Job("arrays", num_rounds=1), tell=own)[0]
    assert hash_of(outcome, "arrays") == expected


def test_a_round_without_a_front_is_one_without_a_back(outcome: Outcome) -> None:
    """Where a strategy aggregates no front, the back does not run ahead of it."""
    result = outcome.results["too few for Bulyan"]
    assert "error" not in result, result["traceback"]
    assert len(result["hash-by-round"]) == 3
    assert len(set(result["hash-by-round"])) == 1
    assert "Bulyan aggregated no front" in outcome.log
