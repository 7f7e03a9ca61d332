"""FedAvg among the devices that a policy chooses; what it learns of their losses."""

from collections.abc import Callable, Iterable
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

Choose = Callable[[int, int], list[int]]
Learn = Callable[[int, float, int], None]


class Chosen(FedAvg):
    """FedAvg that trains devices that a function names.

    Parameters
    ----------
    choose : callable
        From the round and the number of nodes to partition ids.
    learn : callable
        Told (partition id, mean loss, examples) of each device that finished.
    """

    def __init__(self, choose: Choose, learn: Learn) -> None:
        # Evaluation is the server's: it takes no time on devices.
        super().__init__(
            fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1
        )
        self._choose, self._learn = choose, learn
        self._devices: dict[int, int] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample whom the function names; nodes are listed by partition id."""
        nodes = list(grid.get_node_ids())
        self._devices = {node: device for device, node in enumerate(nodes)}
        only = _Only([nodes[d] for d in self._choose(server_round, len(nodes))], grid)
        return super().configure_train(server_round, arrays, config, cast(Grid, only))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Learn what devices tell of their training, and average."""
        replies = list(replies)
        for reply in replies:
            device = self._devices.get(reply.metadata.src_node_id)
            for record in reply.content.metric_records.values():
                if device is not None and "train-loss" in record:
                    loss = float(cast(float, record["train-loss"]))
                    num_examples = int(cast(int, record["num-examples"]))
                    self._learn(device, loss, num_examples)
        return super().aggregate_train(server_round, replies)


class _Only:
    """A grid with some of its nodes; all else is the grid's own."""

    def __init__(self, nodes: list[int], grid: Grid) -> None:
        self._nodes, self._grid = nodes, grid

    def get_node_ids(self) -> list[int]:
        """Return the chosen nodes."""
        return self._nodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)
