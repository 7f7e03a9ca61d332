"""A run in one process, round after round, as it can be saved and resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from flwr_slfac.checkpoint import (
    Ledger,
    described,
    modules_of,
    random_states,
    restore_random,
    shapes_of,
)
from flwr_slfac.lightweight import StepCost
from flwr_slfac.split.device_half import DeviceHalf
from flwr_slfac.split.link import Link
from flwr_slfac.split.protocol import Begin
from flwr_slfac.split.results import DeviceResult, RoundResult
from flwr_slfac.split.rounds import Rounds
from flwr_slfac.states import State, weighted_average
from flwr_slfac.traffic import Traffic

# Of smashed test data a reply: a few batches, so that little is held at once.
_EVALUATE_BYTES = 2**23


@dataclass
class LocalResult:
    """What a run in one process came to.

    Parameters
    ----------
    front : mapping of str to Tensor
        The averaged device-side model, zero where it is pruned; the back is in the
        `ServerHalf`.
    rounds : list of RoundResult
        One a round; the devices' fronts are those of the last round only, and of none
        that was run before the run was resumed.
    evaluations : list of dict
        One a round: the metrics over all test sets, weighted by examples.
    traffic : Traffic
        What the codecs made.
    """

    front: State
    rounds: list[RoundResult]
    evaluations: list[dict[str, float]]
    traffic: Traffic


class LocalRun:
    """A run in one process; a `Resumable`.

    Parameters
    ----------
    rounds : Rounds
        What trains.
    link : Link
        To the halves.
    halves : sequence of DeviceHalf
        The devices.
    begin : Begin
        What devices are told, but for the round and the front.
    result : LocalResult
        With the first front, and the traffic of `rounds`.
    num_rounds : int
        The round after which it is to end.
    evaluates : bool
        Whether to evaluate after each round.
    """

    def __init__(
        self,
        rounds: Rounds,
        link: Link,
        halves: Sequence[DeviceHalf],
        begin: Begin,
        result: LocalResult,
        num_rounds: int,
        *,
        evaluates: bool,
    ) -> None:
        self._rounds, self._link, self._halves = rounds, link, halves
        self._begin, self._evaluates = begin, evaluates
        self._ledger = Ledger()
        self._fronts = rounds.run.fronts
        self._fronts.last_round = num_rounds
        self.result, self.num_rounds = result, num_rounds

    def next_round(self) -> None:
        """Train a round, and evaluate."""
        result, fronts = self.result, self._fronts
        keys = range(len(self._halves))
        begin = replace(
            self._begin,
            server_round=self.server_round + 1,
            front=fronts.take(result.front),
        )
        outcome = self._rounds.train(self._link, keys, begin)
        if outcome.aggregates:
            result.front = fronts.advance(merge_fronts(outcome))
        _forget_fronts(result.rounds)
        result.rounds.append(outcome)
        if self._evaluates:
            served = replace(begin, front=result.front)
            by_key = self._rounds.evaluate(self._link, keys, served, _EVALUATE_BYTES)
            result.evaluations.append(weighted_metrics(list(by_key.values())))

    @property
    def server_round(self) -> int:
        """The last round that was finished; 0 for none."""
        return len(self.result.rounds)

    @property
    def aggregates(self) -> bool:
        """Whether no front stays on the devices after the last round."""
        return self._fronts.aggregates(self.server_round)

    @property
    def is_forced(self) -> bool:
        """Whether fronts were aggregated only because no round follows."""
        return self._fronts.is_forced(self.server_round)

    def settings(self) -> dict[str, str]:
        """Return what makes it another run; of devices, how many there are."""
        begin, back = self._begin, self._rounds.run.server.back
        own = {
            "proximal_mu": begin.proximal_mu,
            "devices": len(self._halves),
            "evaluate": self._evaluates,
        }
        shared = self._rounds.settings(begin.seed, begin.up, begin.pipeline_depth)
        return {
            **described({**own, **shared}),
            **shapes_of("front", self.result.front),
            **shapes_of("back", back.state_dict()),
            **modules_of("back", back),
        }

    def metrics(self) -> dict[str, float]:
        """Return what the last round came to."""
        last = self.result.evaluations[-1:]
        evaluation = {f"evaluate/{k}": v for each in last for k, v in each.items()}
        return {"train/loss": self.result.rounds[-1].loss, **evaluation}

    def sections(self) -> dict[str, Any]:
        """Return what it goes on from: ``front``, ``back`` and ``state``.

        Raises
        ------
        CheckpointError
            By who packs it, if a device keeps what cannot be stored.
        """
        run = self._rounds.run
        kept = {half.partition: half.kept for half in self._halves}
        state = {"run": run.state(), "devices": kept, "random": random_states()}
        return {
            "front": dict(self.result.front),
            "back": run.server.snapshot(),
            "state": state,
        }

    def rounds(self) -> bytes:
        """Return what all rounds came to."""
        for number in range(len(self._ledger) + 1, self.server_round + 1):
            self._ledger.add(self._entry(number))
        return self._ledger.to_bytes()

    def load(
        self, sections: Mapping[str, Any], rounds: bytes, server_round: int
    ) -> None:
        """Go on from what `sections` and `rounds` returned after a round."""
        run, state = self._rounds.run, sections["state"]
        run.server.back.load_state_dict(sections["back"])
        run.load(state["run"])
        for half in self._halves:
            half.kept = state["devices"][half.partition]
        self.result.front = sections["front"]
        self._ledger = Ledger(rounds)
        for entry in self._ledger:
            self._restore(entry)
        restore_random(state["random"])

    def _entry(self, server_round: int) -> dict[str, Any]:
        """Return what a round came to, its fronts left out."""
        result = self.result
        outcome = result.rounds[server_round - 1]
        fields = {**vars(outcome)}
        fields["finished"] = {
            key: asdict(replace(device, front=None))
            for key, device in outcome.finished.items()
        }
        rows = result.traffic.rows(server_round=server_round)
        evaluations = result.evaluations[server_round - 1 : server_round]
        return {
            "outcome": fields,
            "evaluations": evaluations,
            "traffic": [asdict(row) for row in rows],
        }

    def _restore(self, entry: Mapping[str, Any]) -> None:
        """Enter what a round of an earlier run came to."""
        outcome = RoundResult(**entry["outcome"])
        outcome.finished = {
            key: _device_of(fields)
            for key, fields in entry["outcome"]["finished"].items()
        }
        self.result.rounds.append(outcome)
        self.result.evaluations.extend(entry["evaluations"])
        self.result.traffic.restore(entry["traffic"])


def _device_of(fields: Mapping[str, Any]) -> DeviceResult:
    cost = fields["cost"]
    return DeviceResult(
        **{**fields, "cost": None if cost is None else StepCost(**cost)}
    )


def _forget_fronts(rounds: Sequence[RoundResult]) -> None:
    """Let go of the last round's fronts, or a long run would hold all of them."""
    for outcome in rounds[-1:]:
        for device in outcome.finished.values():
            device.front = None


def merge_fronts(outcome: RoundResult) -> State:
    """Return the round's front: the last of a relay, else the mean by examples."""
    results = sorted(outcome.finished.values(), key=lambda r: r.device)
    fronts = [r.front for r in results if r.front is not None]
    if outcome.handed_on:
        return fronts[-1]
    return weighted_average(fronts, [r.num_examples for r in results])


def weighted_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of metrics by ``num-examples``, and their sum.

    Examples
    --------
    >>> weighted_metrics([{"num-examples": 1, "loss": 1.0},
    ...                   {"num-examples": 3, "loss": 2.0}])
    {'num-examples': 4, 'loss': 1.75}
    """
    total = sum(m["num-examples"] for m in metrics)
    if not total:
        return {}
    names = [n for n in metrics[0] if n != "num-examples"]
    return {
        "num-examples": total,
        **{n: sum(m[n] * m["num-examples"] for m in metrics) / total for n in names},
    }
