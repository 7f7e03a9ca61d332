"""Kill -9 of any part of a deployment loses what the drop-out rule says, no more."""

import logging
import random
import threading
from collections.abc import Mapping

import pytest

from flwr_slfac.split import EvaluateRequest, Lost
from flwr_slfac.split.protocol import EvaluateAnswer
from tests.flower import oracle
from tests.flower.app.splitapp.task import Job
from tests.flower.deployed import Deployed
from tests.flower.killing import KINDS, Finding, Killings, Kind, losses_of
from tests.flower.oracle import LossyLink

pytestmark = pytest.mark.flower

# Fifty of each by hand: tests/bench/kills.py. Flower takes a minute to miss a device.
NUM_KILLS = {"supernode": 1, "clientapp": 1, "serverapp": 2, "superlink": 2}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Finding]:
    """Kill each kind in a deployment of its own, two at once: most of it is waiting."""
    findings: dict[Kind, Finding] = {}
    places = threading.Semaphore(2)

    def kill_some(kind: Kind) -> None:
        with places:
            deployed = Deployed(tmp_path_factory.mktemp(kind))
            try:
                deployed.start()
                killings = Killings(deployed, kind, random.randrange(2**32))
                killings.train(NUM_KILLS[kind])
                findings[kind] = killings.finding
            finally:
                deployed.stop()

    threads = [threading.Thread(target=kill_some, args=(kind,)) for kind in KINDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return findings


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_is_lost_or_taken_twice(found: dict[Kind, Finding], kind: Kind) -> None:
    """The weights are those of one process that loses the same devices, bit for bit."""
    assert not found[kind].faults
    assert found[kind].num_runs == 1


class Unevaluated(LossyLink):
    """Loses device 1 in every evaluation."""

    def evaluate(
        self, requests: Mapping[int, EvaluateRequest]
    ) -> dict[int, EvaluateAnswer]:
        """Call the others."""
        reached = {k: r for k, r in requests.items() if k != 1}
        return {
            **super().evaluate(reached),
            **{k: Lost("dark") for k in requests if k == 1},
        }


def test_a_loss_in_evaluation_is_no_loss_of_training(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log tells them apart: a kill may come between a round and its evaluation."""
    monkeypatch.setattr(oracle, "LossyLink", Unevaluated)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        oracle.train_in_process(Job("dark"), 2, losses={(1, 2): 0})
    assert "round 1, evaluation: lost device 1: dark" in caplog.text
    assert losses_of([caplog.text]) == {(1, 2): 0}
