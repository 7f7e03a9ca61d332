"""A Flower Grid whose nodes are ClientApps in this process: no Ray, no SuperLink."""

import itertools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

_RUNS = itertools.count(1)


@contextmanager
def process_of_a_run() -> Iterator[None]:
    """Make this process one in which a ServerApp may create messages."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    try:
        yield
    finally:
        names = "_task_id", "_run_id", "_node_id"
        for name, value in zip(names, before, strict=True):
            setattr(TaskIdentity, name, value)


class GridInProcess(Grid):
    """Hands messages to a ClientApp at once and keeps its replies until asked.

    Parameters
    ----------
    app : ClientApp
        What every node runs.
    num_nodes : int
        How many there are; node ids are others in each grid, as in each run.
    """

    def __init__(self, app: ClientApp, num_nodes: int) -> None:
        self._app = app
        self._run_id = next(_RUNS)
        ids = random.Random().sample(range(1, 10**6), num_nodes)
        self._contexts = {
            node: Context(
                self._run_id,
                node,
                {"partition-id": partition, "num-partitions": num_nodes},
                RecordDict(),
                {},
            )
            for partition, node in enumerate(ids)
        }
        self._replies: dict[str, Message] = {}

    @property
    def run(self) -> Any:
        return None

    def set_run(self, run: Any) -> None:
        pass

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self._contexts)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            about = message.metadata
            name = f"{self._run_id}/{random.Random().random()}"
            to = about.dst_node_id
            sent = Metadata(
                *(self._run_id, name, 0, to, "", about.group_id),
                *(about.created_at, about.ttl, about.message_type),
            )
            arrived = Message(message.content, metadata=sent)
            self._replies[name] = self._app(arrived, self._contexts[to])
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
