"""A grid that counts what crosses it, without asking flwr_slfac."""

from collections.abc import Iterable
from typing import Any

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid


class CountingGrid(Grid):
    """Passes everything on and adds up the bytes of frames and models.

    Parameters
    ----------
    grid : Grid
        The grid of the run.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.num_bytes: dict[str, int] = {}
        self.partitions: dict[int, int] = {}

    @property
    def run(self) -> Any:
        return self._grid.run

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            self._count(message, "down")
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            if not reply.has_error():
                self._count(reply, "up")
        return replies

    def send_and_receive(self, messages: Iterable[Message], **kwargs: Any) -> Any:
        return self._grid.send_and_receive(messages, **kwargs)

    def _count(self, message: Message, way: str) -> None:
        content = message.content
        split = content.config_records.get("split", ConfigRecord())
        if "device" in split:
            self.partitions[message.metadata.src_node_id] = int(split["device"])
        for record in content.array_records.values():
            for name, array in record.items():
                self._add(way, name, len(array.data))
        for name, value in split.items():
            if isinstance(value, bytes):
                self._add(way, name, len(value))

    def _add(self, way: str, name: str, num_bytes: int) -> None:
        kind = name.rpartition(".")[2]
        frames = {"activations": "up", "targets": "targets", "gradient": "down"}
        direction = frames.get(kind, f"model-{way}")
        self.num_bytes[direction] = self.num_bytes.get(direction, 0) + num_bytes
