"""What carries steps between server and devices; alone turns fields into text.

::

    server   TrainRequest ─records─► RecordDict ─delivery─► Flower ─► answers ─► device
             TrainReply   ◄─records─ RecordDict ◄─delivery─ Flower ◄─ answers ◄─ device
    device   Snapshot ─snapshots─► bytes ─► NodeState ─► bytes ─► Snapshot

`MessageLink` carries each step as a Flower message; `stream` has each device open one
stream by such a message and carries all steps over it.
"""

from flwr_slfac.transport.answers import (
    DESCRIBE,
    EVALUATE,
    TRAIN,
    DescribeRequest,
    Exchange,
    Reply,
    Request,
    answer,
    answer_partition,
    exchange_of,
    refusal,
    with_front,
)
from flwr_slfac.transport.carrier import Carrier, Seen
from flwr_slfac.transport.messages import MessageLink
from flwr_slfac.transport.node_state import NodeState
from flwr_slfac.transport.record_state import RecordState, as_record

__all__ = [
    "DESCRIBE",
    "EVALUATE",
    "TRAIN",
    "Carrier",
    "DescribeRequest",
    "Exchange",
    "MessageLink",
    "NodeState",
    "RecordState",
    "Reply",
    "Request",
    "Seen",
    "answer",
    "answer_partition",
    "as_record",
    "exchange_of",
    "refusal",
    "with_front",
]
