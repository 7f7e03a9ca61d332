"""Split training in one process, without Flower: the fastest way, and the oracle."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Codec, Identity
from flwr_slfac.errors import SlfacError
from flwr_slfac.lightweight import Lightweight
from flwr_slfac.split.crossing import require_places
from flwr_slfac.split.device import Device
from flwr_slfac.split.device_half import DeviceHalf
from flwr_slfac.split.features import CutFeature
from flwr_slfac.split.forwards import require_pipeline_depth
from flwr_slfac.split.limits import Limits, OnDeviceError
from flwr_slfac.split.masked_fronts import fronts_for
from flwr_slfac.split.protocol import (
    Begin,
    Description,
    EvaluateAnswer,
    EvaluateReply,
    EvaluateRequest,
    Lost,
    TrainAnswer,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.split.results import RoundResult
from flwr_slfac.split.rounds import Rounds
from flwr_slfac.split.server_fronts import ServerFronts
from flwr_slfac.split.server_half import ServerHalf
from flwr_slfac.states import State, weighted_average
from flwr_slfac.traffic import Traffic

A = TypeVar("A", TrainReply, EvaluateReply, Description)
# Of smashed test data a reply: a few batches, so that little is held at once.
_EVALUATE_BYTES = 2**23


class LocalLink:
    """Carries requests by calling the devices' halves; keys are partition ids."""

    on_device_error: OnDeviceError = "raise"

    def __init__(self, halves: Sequence[DeviceHalf]) -> None:
        self._halves = {half.partition: half for half in halves}

    def _call(self, key: int, work: Callable[[DeviceHalf], A]) -> A | Lost:
        """Return what a device answers; what it raises is its loss, if so wanted."""
        try:
            return work(self._halves[key])
        except SlfacError as error:
            if self.on_device_error == "raise":
                raise
            reason = f"{type(error).__name__}: {error}"
            return Lost(f"refused: {reason}", key, at_fault=True)

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Return the keys: here they are the partition ids."""
        return {key: key for key in keys}

    def describe(
        self, keys: list[int], *, channels: bool
    ) -> dict[int, Description | Lost]:
        """Call each device."""
        return {k: self._call(k, lambda h: h.describe(channels=channels)) for k in keys}

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Call each device in partition order."""
        return {
            k: self._call(k, lambda half, k=k: half.train(requests[k]))  # type: ignore[misc]
            for k in sorted(requests)
        }

    def evaluate(
        self, requests: Mapping[int, EvaluateRequest]
    ) -> dict[int, EvaluateAnswer]:
        """Call each device in partition order."""
        return {
            k: self._call(k, lambda half, k=k: half.evaluate(requests[k]))  # type: ignore[misc]
            for k in sorted(requests)
        }


@dataclass
class LocalResult:
    """What a run in one process came to.

    Parameters
    ----------
    front : mapping of str to Tensor
        The averaged device-side model, zero where it is pruned; the back is in the
        `ServerHalf`.
    rounds : list of RoundResult
        One a round; the devices' fronts are those of the last round only.
    evaluations : list of dict
        One a round: the metrics over all test sets, weighted by examples.
    traffic : Traffic
        What the codecs made.
    """

    front: State
    rounds: list[RoundResult]
    evaluations: list[dict[str, float]]
    traffic: Traffic


def train_locally(
    devices: Sequence[Device],
    front: State,
    server: ServerHalf,
    *,
    num_rounds: int,
    seed: int = 0,
    up: Codec | None = None,
    down: Codec | None = None,
    evaluate: bool = True,
    proximal_mu: float = 0.0,
    lightweight: Lightweight | None = None,
    cut_features: Sequence[CutFeature] = (),
    on_device_error: OnDeviceError = "raise",
    pipeline_depth: int = 0,
    make_link: Callable[[Sequence[DeviceHalf]], LocalLink] = LocalLink,
) -> LocalResult:
    """Train a split model over several devices in this process.

    The same seed, settings and data give the same weights as `SplitFed` around FedAvg,
    bit for bit at an equal number of threads.

    Parameters
    ----------
    devices : sequence of Device
        Their position is their partition id.
    front : mapping of str to Tensor
        First weights of the device-side model.
    server : ServerHalf
        The back, the loss, the scheme.
    num_rounds : int
        Rounds of training; each ends in averaging the fronts by examples.
    seed : int
        Seed of the run.
    up, down : Codec (default: Identity())
        How activations and cut-layer gradients are coded.
    evaluate : bool (default: True)
        Evaluate through the split after each round.
    proximal_mu : float (default: 0)
        Weight of FedProx's proximal term on the devices.
    lightweight : Lightweight, optional
        What makes training lighter on the devices.
    cut_features : sequence of CutFeature
        What else is done to the smashed data, in the order of sending.
    on_device_error : {"drop", "raise"} (default: "raise")
        As in `SplitFed`, whose default is to drop.
    pipeline_depth : {0, 1} (default: 0)
        As in `SplitFed`; here it changes the weights and saves no time.
    make_link : callable
        How the halves are reached.
    """
    require_pipeline_depth(pipeline_depth)
    codecs = up or Identity(), down or Identity()
    fronts = fronts_for(lightweight, server.scheme, *codecs)
    fronts.last_round = num_rounds
    require_places((*cut_features, *fronts.cut_features), *codecs)
    result = LocalResult(dict(front), [], [], Traffic())
    shared = Limits(), fronts, cut_features, on_device_error
    rounds = Rounds(server, codecs[1], result.traffic, *shared)
    keys = range(len(devices))
    link = make_link([DeviceHalf(devices[key], key) for key in keys])
    link.on_device_error = on_device_error
    settings = codecs[0], RELEASE, server.min_batch, proximal_mu
    begin = Begin(0, seed, None, *settings, pipeline_depth=pipeline_depth)
    for number in range(1, num_rounds + 1):
        begin = replace(begin, server_round=number, front=fronts.take(result.front))
        _add(result, rounds.train(link, keys, begin), fronts)
        if evaluate:
            begin = replace(begin, front=result.front)
            by_key = rounds.evaluate(link, keys, begin, _EVALUATE_BYTES)
            result.evaluations.append(weighted_metrics(list(by_key.values())))
    return result


def _add(result: LocalResult, outcome: RoundResult, fronts: ServerFronts) -> None:
    """Add a round, without the fronts of the last, or a long run would hold all."""
    if outcome.aggregates:
        result.front = fronts.advance(merge_fronts(outcome))
    for before in result.rounds[-1:]:
        for device in before.finished.values():
            device.front = None
    result.rounds.append(outcome)


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
