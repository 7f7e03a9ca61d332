"""The Flower strategy inside `SplitFed`: it samples devices and aggregates fronts."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from flwr_slfac.errors import SettingError
from flwr_slfac.split import RoundResult, ServerFronts, seed_for
from flwr_slfac.transport import RecordState, as_record

Devices = Callable[[Grid, list[int]], dict[int, int]]

# Strategies that rank, clip or weigh whole states, which no mean by coordinate serves.
_NOT_BY_COORDINATE = (
    flower.Bulyan,
    flower.DifferentialPrivacyClientSideAdaptiveClipping,
    flower.DifferentialPrivacyClientSideFixedClipping,
    flower.DifferentialPrivacyServerSideAdaptiveClipping,
    flower.DifferentialPrivacyServerSideFixedClipping,
    flower.FedMedian,
    flower.FedTrimmedAvg,
    flower.Krum,
    flower.MultiKrum,
    flower.QFedAvg,
)


class Sampled:
    """What the wrapped strategy wants of a round.

    Parameters
    ----------
    messages : iterable of Message
        One a device, as the strategy configured them.
    """

    def __init__(self, messages: Iterable[Message]) -> None:
        self._by_node = {m.metadata.dst_node_id: m for m in messages}

    @property
    def nodes(self) -> list[int]:
        """Node ids of the sampled devices."""
        return list(self._by_node)

    @property
    def front(self) -> RecordState:
        """The front that devices are to be given."""
        return RecordState(next(iter(self._content.array_records.values())))

    @property
    def proximal_mu(self) -> float:
        """Weight of FedProx's proximal term; 0 under other strategies."""
        configs = self._content.config_records.values()
        config = next(iter(configs), ConfigRecord())
        return float(cast(float, config.get("proximal-mu", 0.0)))

    @property
    def _content(self) -> RecordDict:
        return next(iter(self._by_node.values())).content

    def reply(self, node: int, content: RecordDict) -> Message:
        """Return what Flower takes for a node's answer."""
        return Message(content, reply_to=self._by_node[node])


class WrappedStrategy:
    """A Flower strategy, with the sampling and the replies that split training needs.

    Parameters
    ----------
    inner : Strategy
        Any Flower strategy.
    devices : callable
        From a grid and node ids to the partition ids of those that answer.
    seed : int
        Seed of the run.
    seeded : bool
        Whether sampling is a function of the seed.
    """

    def __init__(
        self, inner: Strategy, devices: Devices, seed: int, *, seeded: bool
    ) -> None:
        self.inner = inner
        self._devices = devices
        self._seed = seed
        self._seeded = seeded

    @property
    def name(self) -> str:
        """Name of the strategy's class."""
        return type(self.inner).__name__

    def sample(
        self,
        what: Literal["train", "evaluate"],
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> Sampled:
        """Let the strategy sample devices and say what they are to be told.

        Parameters
        ----------
        what : {"train", "evaluate"}
            What they are sampled for.
        server_round, arrays, config, grid
            As Flower hands them to a strategy.
        """
        inner = self.inner
        configure = inner.configure_train
        if what == "evaluate":
            configure = inner.configure_evaluate
        with self._sampling(server_round, what, grid) as ordered:
            return Sampled(configure(server_round, arrays, config, ordered))

    def train_replies(self, sampled: Sampled, result: RoundResult) -> list[Message]:
        """Return a round's fronts as replies that any strategy aggregates."""
        ordered = sorted(result.finished.items(), key=lambda item: item[1].device)
        if result.handed_on:
            ordered = ordered[-1:]
        key = getattr(self.inner, "arrayrecord_key", "arrays")
        replies = []
        for node, r in ordered:
            metrics = {"num-examples": r.num_examples, "train-loss": r.loss}
            content = self._metrics(metrics)
            content[key] = as_record(r.front or {})
            replies.append(sampled.reply(node, content))
        return replies

    def evaluate_replies(
        self, sampled: Sampled, metrics: Mapping[int, Mapping[str, float]]
    ) -> list[Message]:
        """Return devices' metrics, by node id, as replies."""
        return [
            sampled.reply(node, self._metrics(values))
            for node, values in metrics.items()
        ]

    def _metrics(self, metrics: Mapping[str, float]) -> RecordDict:
        """Return metrics as a record, the weight named as the strategy wants it."""
        weight = str(getattr(self.inner, "weighted_by_key", "num-examples"))
        record = MetricRecord()
        for name, value in metrics.items():
            record[weight if name == "num-examples" else name] = value
        return RecordDict({"metrics": record})

    def require_fit(self, fronts: ServerFronts) -> None:
        """Refuse strategies that compare whole states, where devices hold unlike parts.

        Raises
        ------
        SettingError
            If this is one.
        """
        if fronts.unlike_parts and isinstance(self.inner, _NOT_BY_COORDINATE):
            raise SettingError(
                f"{self.name} compares whole fronts, but with prune as a function "
                "devices hold unlike parts; use a strategy that averages (FedAvg, "
                "FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi) or one share for all"
            )

    @contextmanager
    def _sampling(self, server_round: int, what: str, grid: Grid) -> Iterator[Grid]:
        """Give the strategy a grid and a `random` that make its sampling repeatable."""
        if not self._seeded:
            yield grid
            return
        state = random.getstate()
        # Of the server itself (-1), before its first step.
        seed = seed_for(self._seed, server_round, -1, 0, f"sample-{what}")
        try:
            yield cast(Grid, _OrderedGrid(grid, self._devices, seed))
        finally:
            random.setstate(state)


class _OrderedGrid:
    """A grid that lists its nodes by partition id; all else is the grid's own."""

    def __init__(self, grid: Grid, devices: Devices, seed: int) -> None:
        self._grid = grid
        self._devices = devices
        self._seed = seed

    def get_node_ids(self) -> list[int]:
        """Return the nodes that told their partition id, in its order."""
        devices = self._devices(self._grid, list(self._grid.get_node_ids()))
        # Now, because other threads draw from `random` while nodes are asked.
        random.seed(self._seed)
        return sorted(devices, key=lambda k: devices[k])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)
