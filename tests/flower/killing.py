"""Kills parts of a deployment while it trains, and holds the run to its law.

- A SuperNode or a ClientApp: its device is lost for the round, by the drop-out rule,
  and takes part again; a SuperNode is started again as a supervisor does, which takes
  some trials: Flower refuses its key while it takes the one that was killed for alive.
- The ServerApp or the SuperLink: the run is begun again with ``resume``, again if no
  device comes.

Weights are, bit for bit, those of one process that loses the same devices at the same
steps of the same rounds; the log says which. Where the ServerApp or the SuperLink is
killed none is lost, unless the machine is too busy to start its processes in time.
"""

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from tests.flower.app.splitapp.task import Job
from tests.flower.deployed import Deployed, Run, kill, wait_until
from tests.flower.oracle import train_in_process

Kind = Literal["supernode", "clientapp", "serverapp", "superlink"]
KINDS: tuple[Kind, ...] = ("supernode", "clientapp", "serverapp", "superlink")
JOB = Job(
    "killed",
    num_rounds=12,
    up="waterfill(nrmse=0.2)",
    down="feedback(inner=topk(fraction=0.1))",
    # What devices keep is gone with their process; the rest is to be the same.
    keep_optimizer=False,
    pace_s=0.15,
    step_timeout_s=150.0,
)
# Up to here after a process has joined, it is killed; a run takes some ten seconds.
_LONGEST_WAIT_S = 6.0
# A ServerApp takes up to this from its beginning to its end.
_LONGEST_RUN_S = 30.0
# A SuperNode whose key is refused is started again after so long.
_TEND_S = 5.0
# How often a run is begun again for which no device came in time.
_MOST_AGAIN = 3
# Threads share torch's generator.
_ONE_AT_A_TIME = threading.Lock()
_ROUND = re.compile(r"\[ROUND (\d+)/")
_LOST = re.compile(r"round (\d+), step (\d+): lost device (\d+)")


@dataclass
class Finding:
    """What came of some kills.

    Parameters
    ----------
    num_kills : int
        How many found a run that was not over.
    num_runs : int
        Trainings that were held to their law.
    num_losses : int
        Rounds that a device did not end.
    num_again : int
        Runs that were begun again because no device came.
    faults : list of str
        What was not as it should be.
    """

    num_kills: int = 0
    num_runs: int = 0
    num_losses: int = 0
    num_again: int = 0
    faults: list[str] = field(default_factory=list)


def losses_of(logs: list[str]) -> dict[tuple[int, int], int]:
    """Return the first step that each device lost, by device and round.

    Parameters
    ----------
    logs : list of str
        Of a run and of those that resumed it: what a later one begins again counts.
    """
    losses: dict[tuple[int, int], int] = {}
    for log in logs:
        begun = {int(number) for number in _ROUND.findall(log)}
        losses = {key: step for key, step in losses.items() if key[1] not in begun}
        for found in _LOST.findall(log):
            server_round, step, device = map(int, found)
            losses.setdefault((device, server_round), step)
    return losses


class Killings:
    """Kills of one kind in one deployment.

    Parameters
    ----------
    deployed : Deployed
        That was started.
    kind : {"supernode", "clientapp", "serverapp", "superlink"}
        What is killed.
    seed : int
        Of the moments, and of what is chosen.
    """

    def __init__(self, deployed: Deployed, kind: Kind, seed: int) -> None:
        self._deployed, self._kind = deployed, kind
        self._random = random.Random(seed)
        self._num_trained = 0
        self.finding = Finding()

    def train(self, num_kills: int) -> None:
        """Train once, killing so often at most."""
        self._num_trained += 1
        folder = self._deployed.folder / f"checkpoints{self._num_trained}"
        job = replace(JOB, checkpoint=str(folder), resume=True)
        if self._kind in ("supernode", "clientapp"):
            # Rounds go on while a device is away.
            job = replace(job, num_rounds=8 + 4 * num_kills)
            self._check(job, [self._kill_devices(job, num_kills)])
        else:
            self._check(job, self._kill_servers(job, num_kills))

    def _kill_devices(self, job: Job, num_kills: int) -> Run:
        run = self._deployed.begin(job)
        for _ in range(num_kills):
            if not self._until_all_train(run):
                break
            time.sleep(self._random.uniform(0, _LONGEST_WAIT_S))
            device = self._random.choice(sorted(self._deployed.nodes))
            if run.is_over:
                break
            before = len(self._begun(run, device))
            if self._kind == "clientapp":
                pid = self._begun(run, device)[-1]
                alive = pid in self._deployed.apps("flwr-clientapp")
                killed = alive and kill(pid)
                if not alive:
                    continue
            else:
                killed = kill(self._deployed.nodes[device])
            self.finding.num_kills += killed
            wait_until(lambda d=device, n=before: self._is_back(run, d, n))
        wait_until(lambda: run.is_over)
        return run

    def _kill_servers(self, job: Job, num_kills: int) -> list[Run]:
        deployed, runs = self._deployed, list[Run]()
        for _ in range(num_kills):
            run = deployed.begin(job)
            runs.append(run)
            wait_until(lambda r=run: r.is_over or deployed.apps("flwr-serverapp"))
            time.sleep(self._random.uniform(0, _LONGEST_RUN_S))
            if run.is_over:
                break
            if self._kind == "superlink":
                killed = kill(deployed.link)
                deployed.start_link()
            else:
                killed = kill(max(deployed.apps("flwr-serverapp"), default=None))
            self.finding.num_kills += killed
            run.leave()
        while "hash" not in runs[-1].results.get(job.name, {}):
            if len(runs) > num_kills + _MOST_AGAIN:
                break
            self.finding.num_again += len(runs) > num_kills
            run = deployed.begin(job)
            runs.append(run)
            wait_until(lambda r=run: r.is_over)
        return runs

    def _begun(self, run: Run, device: int) -> list[int]:
        """Return the processes that have built a device in this run."""
        rows = [line.split() for line in run.lines("built.txt")]
        return [int(pid) for _, partition, pid in rows if int(partition) == device]

    def _is_back(self, run: Run, device: int, before: int) -> bool:
        node = self._deployed.nodes[device]
        if node.poll() is not None:
            time.sleep(_TEND_S)
            self._deployed.start_node(device)
        return run.is_over or len(self._begun(run, device)) > before

    def _until_all_train(self, run: Run) -> bool:
        """Wait until every device has begun; return whether the run goes on."""
        nodes = self._deployed.nodes
        wait_until(lambda: run.is_over or all(self._begun(run, d) for d in nodes))
        return not run.is_over

    def _check(self, job: Job, runs: list[Run]) -> None:
        self.finding.num_runs += 1
        losses = losses_of([run.log for run in runs])
        self.finding.num_losses += len(losses)
        result = runs[-1].results.get(job.name, {"error": "there is no result"})
        if "hash" not in result:
            self._wrong(runs[-1], str(result.get("error")))
            return
        with _ONE_AT_A_TIME:
            num_devices = len(self._deployed.nodes)
            expected = train_in_process(job, num_devices, losses=losses)[0]
        if result["hash"] != expected:
            self._wrong(runs[-1], f"other weights, with losses {losses}")

    def _wrong(self, run: Run, what: str) -> None:
        self.finding.faults.append(f"{self._kind}, {run.folder}: {what}")


def until(
    killings: Killings, num_kills: int, each: int, say: Callable[[], None]
) -> None:
    """Train until so many kills have been tried."""
    while (left := num_kills - killings.finding.num_kills) > 0:
        killings.train(min(each, left))
        say()
