"""What a wrapped strategy wants of a round: whom it sampled, what each is told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    Message,
    RecordDict,
)

from flwr_slfac.errors import SettingError
from flwr_slfac.flower_parts import PROXIMAL_MU, SERVER_ROUND
from flwr_slfac.states import as_dtype
from flwr_slfac.transport import RecordState


class Offered:
    """A front as strategies are given it: a record of their own, integers as floats.

    Strategies empty the records that they are given, and some compute in place, which
    NumPy refuses in integers. Averages of integers are floats in any case.

    Parameters
    ----------
    front : ArrayRecord
        The front; not changed.
    """

    def __init__(self, front: ArrayRecord) -> None:
        self._front = front
        self._as_floats = as_floats(front)
        self._seen: list[tuple[ArrayRecord, RecordState]] = []

    def record(self) -> ArrayRecord:
        """Return the record to hand out."""
        return self._as_floats.copy()

    def is_front(self, state: RecordState) -> bool:
        """Say whether a state has the values of the front that was offered."""
        return _same(state.record, self._front)

    def behind(self, record: ArrayRecord) -> RecordState:
        """Return what a strategy sends, in the front's own dtypes.

        Records with the same values become the same state.
        """
        for seen, state in self._seen:
            if seen is record or _same(seen, record):
                return state
        state = RecordState(
            ArrayRecord(
                {name: self._own(name, array) for name, array in record.items()}
            )
        )
        self._seen.append((record, state))
        return state

    def _own(self, name: str, array: Array) -> Array:
        offered = self._as_floats.get(name)
        if offered is None or _same_array(array, offered):
            return self._front.get(name, array)
        like = torch.from_numpy(np.atleast_1d(self._front[name].numpy())).dtype
        value = as_dtype(torch.from_numpy(np.array(array.numpy())), like)
        return Array(value.numpy())


@dataclass(frozen=True)
class NodeSettings:
    """What one node is to be told.

    Parameters
    ----------
    front : RecordState
        The front that it is given.
    proximal_mu : float
        Weight of FedProx's proximal term; 0 for none.
    told : mapping
        What else the strategy's configuration says.
    """

    front: RecordState
    proximal_mu: float
    told: Mapping[str, ConfigRecordValues]


class Sampled:
    """What the wrapped strategy wants of a round.

    Parameters
    ----------
    messages : iterable of Message
        One a device, as the strategy configured them.
    offered : Offered
        The front that it was given to send.
    server_round : int
        The round, from 1.
    who : str
        Name of the strategy, for errors.

    Raises
    ------
    SettingError
        If a message holds what split training cannot carry to a device.
    """

    def __init__(
        self,
        messages: Iterable[Message],
        offered: Offered,
        server_round: int,
        who: str,
    ) -> None:
        self._by_node: dict[int, Message] = {}
        self._settings: dict[int, NodeSettings] = {}
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self._by_node:
                raise SettingError(
                    f"{who} sends two messages to one node; split training holds one "
                    "conversation with a device in a round: send one"
                )
            _require_plain(message, who)
            self._by_node[node] = message
            self._settings[node] = _settings(message.content, offered, server_round)
        fronts = [s.front for s in self._settings.values()]
        self.is_uniform = all(front is fronts[0] for front in fronts)
        self.sends_offered = self.is_uniform and (
            not fronts or offered.is_front(fronts[0])
        )

    @property
    def nodes(self) -> list[int]:
        """Node ids of the sampled devices."""
        return list(self._by_node)

    def of(self, node: int) -> NodeSettings:
        """Return what a node is to be told."""
        return self._settings[node]

    def reply(self, node: int, content: RecordDict) -> Message:
        """Return what Flower takes for a node's answer."""
        return Message(content, reply_to=self._by_node[node])


def as_floats(front: ArrayRecord) -> ArrayRecord:
    """Return a record of the same arrays, those of integers and bools in float64."""
    return ArrayRecord({name: _as_float(array) for name, array in front.items()})


def _as_float(array: Array) -> Array:
    if np.dtype(array.dtype).kind not in "biu":
        return array
    return Array(np.asarray(array.numpy().astype(np.float64)))


def _settings(content: RecordDict, offered: Offered, server_round: int) -> NodeSettings:
    config = next(iter(content.config_records.values()), ConfigRecord())
    told = {
        key: value
        for key, value in config.items()
        if key != PROXIMAL_MU and (key, value) != (SERVER_ROUND, server_round)
    }
    return NodeSettings(
        front=offered.behind(next(iter(content.array_records.values()))),
        proximal_mu=float(cast(float, config.get(PROXIMAL_MU, 0.0))),
        told=told,
    )


def _require_plain(message: Message, who: str) -> None:
    """Refuse a message that is more than a front and a configuration.

    Raises
    ------
    SettingError
        If it is.
    """
    kind = message.metadata.message_type
    if kind not in ("train", "evaluate"):
        raise SettingError(
            f"{who} sends messages of type {kind!r}; devices of split training answer "
            "'train' and 'evaluate'"
        )
    content = message.content
    counts = {
        "ArrayRecord": len(content.array_records),
        "ConfigRecord": len(content.config_records),
        "MetricRecord": len(content.metric_records),
    }
    if counts["ArrayRecord"] != 1 or counts["ConfigRecord"] > 1:
        fits = False
    else:
        fits = not counts["MetricRecord"]
    if not fits:
        found = ", ".join(f"{num} {name}" for name, num in counts.items() if num)
        raise SettingError(
            f"{who} sends a device {found or 'nothing'} ({', '.join(content)}); split "
            "training carries one ArrayRecord, the front, and at most one ConfigRecord"
        )


def _same(one: ArrayRecord, other: ArrayRecord) -> bool:
    return one.keys() == other.keys() and all(
        _same_array(array, other[name]) for name, array in one.items()
    )


def _same_array(one: Array, other: Array) -> bool:
    return one is other or (
        one.dtype == other.dtype and one.shape == other.shape and one.data == other.data
    )
