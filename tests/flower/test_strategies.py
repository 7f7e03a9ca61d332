"""Any Flower strategy samples the devices and aggregates the fronts."""

from collections.abc import Iterator

import pytest

from tests.flower.app.splitapp.task import Job
from tests.flower.harness import Outcome, flower_in
from tests.flower.oracle import train_in_process

pytestmark = pytest.mark.flower

HALF = {"fraction_train": 0.5, "min_train_nodes": 1, "min_available_nodes": 4}
JOBS = (
    Job("FedAvg", strategy_settings=dict(HALF), num_rounds=3),
    Job("FedAvg again", strategy_settings=dict(HALF), num_rounds=3),
    Job("other seed", strategy_settings=dict(HALF), num_rounds=3, seed=8),
    Job("FedAdam", strategy="FedAdam"),
    Job("FedProx", strategy="FedProx", strategy_settings={"proximal_mu": 0.5}),
    Job("Krum", strategy="Krum", strategy_settings={"num_malicious_nodes": 1}),
    Job("plain"),
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Run all jobs in one simulation."""
    with flower_in(tmp_path_factory.mktemp("strategies")) as flower:
        yield flower.simulate(JOBS)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_every_strategy_completes(outcome: Outcome, job: Job) -> None:
    """The run completes, with finite weights and accuracy in every round."""
    result = outcome.results[job.name]
    assert "error" not in result, result["traceback"]
    assert result["finite"]
    assert len(result["evaluate-metrics"]) == job.num_rounds


def trained(outcome: Outcome, name: str) -> list[set[int]]:
    """Return who trained in each round."""
    rows = [r for r in outcome.results[name]["traffic"] if r["phase"] == "train"]
    rounds = range(1, 1 + len(outcome.results[name]["reports"]))
    return [{r["device"] for r in rows if r["server_round"] == n} for n in rounds]


def test_sampling_follows_from_the_seed(outcome: Outcome) -> None:
    """The same seed samples the same partitions, though node ids are random."""
    first = trained(outcome, "FedAvg")
    assert all(len(devices) == 2 for devices in first)
    assert trained(outcome, "FedAvg again") == first
    again = outcome.results["FedAvg again"]["hash"]
    assert again == outcome.results["FedAvg"]["hash"]
    assert trained(outcome, "other seed") != first


def test_fedprox_holds_the_fronts_back(outcome: Outcome) -> None:
    """FedProx's proximal term reaches the devices: the weights of one process."""
    expected = train_in_process(Job("FedProx"), proximal_mu=0.5)[0]
    assert outcome.results["FedProx"]["hash"] == expected
    assert expected != outcome.results["plain"]["hash"]


def test_strategies_aggregate_in_their_own_ways(outcome: Outcome) -> None:
    """No two of the strategies end in the same weights."""
    names = ("FedAvg", "FedAdam", "FedProx", "Krum", "plain")
    assert len({outcome.results[name]["hash"] for name in names}) == len(names)
