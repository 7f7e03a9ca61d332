"""What carries steps between server and devices; alone turns fields into text.

::

    server   TrainRequest ─records─► RecordDict ─delivery─► Flower ─► answers ─► device
             TrainReply   ◄─records─ RecordDict ◄─delivery─ Flower ◄─ answers ◄─ device
    device   Snapshot ─snapshots─► bytes ─► NodeState ─► bytes ─► Snapshot
"""

from flwr_slfac.transport.answers import (
    answer_describe,
    answer_evaluate,
    answer_partition,
    answer_train,
    begin_of,
    change_front,
    refusal,
)
from flwr_slfac.transport.messages import MessageLink
from flwr_slfac.transport.node_state import NodeState
from flwr_slfac.transport.record_state import RecordState, as_record

__all__ = [
    "MessageLink",
    "NodeState",
    "RecordState",
    "answer_describe",
    "answer_evaluate",
    "answer_partition",
    "answer_train",
    "as_record",
    "begin_of",
    "change_front",
    "refusal",
]
