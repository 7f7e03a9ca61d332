"""Opens streams by Flower messages, one a session, and watches what becomes of them."""

from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_slfac.split import Lost
from flwr_slfac.transport.delivery import accept, reason_of
from flwr_slfac.transport.messages import pieces_of
from flwr_slfac.transport.records import SPLIT
from flwr_slfac.transport.stream.opening import (
    TRAIN_STREAM,
    UNREACHABLE,
    Opening,
    to_content,
)

# The message is answered when the session ends, and no run takes longer than this.
_TTL_S = 366 * 24 * 3600.0


class FlowerOpener:
    """Has nodes open their streams; they answer when their sessions end.

    Parameters
    ----------
    grid : Grid
        Flower's access to the nodes.

    Attributes
    ----------
    unreachable : dict of int to str
        Nodes from which the service cannot be reached, and what they say of it.
    """

    def __init__(self, grid: Grid) -> None:
        self.unreachable: dict[int, str] = {}
        self._grid = grid
        self._pending: dict[int, str | None] = {}

    def open(self, opening: Opening) -> int:
        """Send a node its opening; return the bytes it took."""
        content = to_content(opening)
        message = Message(content, opening.node, TRAIN_STREAM, ttl=_TTL_S)
        pushed = [i for i in self._grid.push_messages([message]) if i]
        self._pending[opening.node] = pushed[0] if pushed else None
        return sum(piece.num_bytes for piece in pieces_of(content, "model-down"))

    def ended(self, nodes: Iterable[int]) -> dict[int, Lost]:
        """Return those of these nodes whose call has ended, and why."""
        waiting = {node: self._pending[node] for node in nodes if node in self._pending}
        lost = {
            node: Lost("its message could not be delivered")
            for node, message_id in waiting.items()
            if message_id is None
        }
        ids = {i: node for node, i in waiting.items() if i is not None}
        for reply in self._grid.pull_messages(list(ids)) if ids else ():
            node = ids[reply.metadata.reply_to_message_id]
            lost[node] = self._why(node, reply)
        for node in lost:
            del self._pending[node]
        return lost

    def _why(self, node: int, reply: Message) -> Lost:
        if reply.has_error():
            return Lost(reason_of(reply))
        content = accept(node, reply.content)
        if isinstance(content, Lost):
            return content
        said = content.config_records.get(SPLIT)
        if said is not None and UNREACHABLE in said:
            self.unreachable[node] = str(said[UNREACHABLE])
            return Lost(self.unreachable[node])
        return Lost("it ended its session")
