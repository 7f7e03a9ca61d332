"""The strategies of jobs: Flower's, wrapped ones, and some of the tests' own."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy
from flwr.serverapp.strategy import FedAvg, Strategy


class Recording(FedAvg):
    """FedAvg that keeps what it is given: norms of updates, metrics."""

    seen: list[dict[str, Any]]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.given = arrays.copy()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        self.seen = [*getattr(self, "seen", []), *map(self._look, replies)]
        return super().aggregate_train(server_round, replies)

    def _look(self, reply: Message) -> dict[str, Any]:
        front = next(iter(reply.content.array_records.values()))
        # Flower clips no tensor without dimensions; here those are BatchNorm's counts.
        moved = [
            a.numpy() - self.given[name].numpy() for name, a in front.items() if a.shape
        ]
        norm = np.sqrt(sum(np.square(m, dtype=np.float64).sum() for m in moved))
        metrics = next(iter(reply.content.metric_records.values()))
        return {"norm": float(norm), "metrics": dict(metrics)}


class ByNode(FedAvg):
    """FedAvg that tells every node something else.

    Parameters
    ----------
    what : str
        ``mu``: another proximal-mu; ``lr``: another learning rate; ``arrays``: another
        front; ``extra``: one more record; ``twice``: two messages.
    """

    def __init__(self, what: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.what = what

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        nodes = sorted(grid.get_node_ids())
        if self.what == "twice":
            return [*messages, messages[0]]
        return [self._own(m, list(grid.get_node_ids()), nodes) for m in messages]

    def _own(self, message: Message, by_partition: list[int], _: list[int]) -> Message:
        node = message.metadata.dst_node_id
        index = by_partition.index(node)
        content = message.content
        arrays, config = content["arrays"].copy(), content["config"].copy()
        if self.what == "mu":
            config["proximal-mu"] = 0.25 * index
        elif self.what == "lr":
            config["lr"] = 0.05 * (index + 1)
        elif self.what == "arrays":
            arrays = ArrayRecord(
                {
                    name: Array(np.asarray(a.numpy() * np.float32(1 + index)))
                    for name, a in arrays.items()
                }
            )
        own = RecordDict({"arrays": arrays, "config": config})
        if self.what == "extra":
            own["variates"] = arrays.copy()
        return Message(own, node, message.metadata.message_type)


class Midpoint(FedAvg):
    """An aggregation of the tests' own that is no weighted mean: between extremes."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        fronts = [next(iter(r.content.array_records.values())) for r in replies]
        middle = {
            name: Array(
                np.asarray(
                    (
                        np.max([f[name].numpy() for f in fronts], axis=0)
                        + np.min([f[name].numpy() for f in fronts], axis=0)
                    )
                    / 2
                )
            )
            for name in fronts[0]
        }
        _, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord(middle), metrics


OWN = {each.__name__: each for each in (Recording, ByNode, Midpoint)}


def build_strategy(name: str, settings: Mapping[str, Any]) -> Strategy:
    """Return a strategy; settings that are a pair [name, settings] are strategies."""
    made = {
        key: build_strategy(*value) if isinstance(value, list) else value
        for key, value in settings.items()
    }
    return (OWN.get(name) or getattr(strategy, name))(**made)  # type: ignore[no-any-return]
