"""The device's door to Flower: a ClientApp that answers the server's steps."""

import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from flwr_slfac.errors import SettingError, SlfacError, TrainingError
from flwr_slfac.split import Device, DeviceHalf
from flwr_slfac.transport import (
    NodeState,
    answer_describe,
    answer_evaluate,
    answer_partition,
    answer_train,
    refusal,
)

Work = Callable[[DeviceHalf, RecordDict], RecordDict]


def client_app(
    device: Callable[[Context], Device], *, live_cache: int = 32
) -> ClientApp:
    """Make the ClientApp of a device.

    Parameters
    ----------
    device : callable
        From Flower's Context to the `Device` of this node: builds the front, loads the
        node's data. It is called once per process and node, again when the process
        changes.
    live_cache : int (default: 32)
        How many devices a process keeps alive between messages, the graph of their last
        forward included. Where a device is not alive its forward is run again, with
        the same result; 0 saves memory and costs one more forward per step.

    Returns
    -------
    ClientApp
        Named in ``[tool.flwr.app.components]`` as ``clientapp``.

    Raises
    ------
    SettingError
        If `live_cache` is below 0.
    """
    if live_cache < 0:
        raise SettingError(f"live_cache is {live_cache}; it must be 0 or more")
    workers = _Workers(device, live_cache)
    app = ClientApp()

    @app.train("step")
    def train_step(message: Message, context: Context) -> Message:
        return workers.answer(message, context, answer_train)

    @app.evaluate("step")
    def evaluate_step(message: Message, context: Context) -> Message:
        return workers.answer(message, context, answer_evaluate)

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        return workers.answer(message, context, answer_describe)

    @app.query("partition")
    def partition(message: Message, context: Context) -> Message:
        return Message(answer_partition(_partition_id(context)), reply_to=message)

    return app


class _Workers:
    """The devices alive in this process, least recently used first."""

    def __init__(self, device: Callable[[Context], Device], size: int) -> None:
        self._device = device
        self._size = size
        self._name = uuid.uuid4().hex
        self._alive: OrderedDict[tuple[int, int], NodeState] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        # Flower's simulation sends a copy of the ClientApp with every message.
        return _workers_here, (self._name, self._device, self._size)

    def answer(self, message: Message, context: Context, work: Work) -> Message:
        """Run a request on the node's device and keep the state that follows."""
        key = (context.run_id, context.node_id)
        # Out of the cache while it works: if it raises, what it left is not reused.
        node = self._alive.pop(key, None)
        try:
            node = self._bring_to_life(node, context)
            content = work(node.half, message.content)
        except TrainingError:
            # Its state of this round is gone, or it fell out of step: the round can go
            # on without this device, so to the server it is one that raised.
            raise
        except SlfacError as error:
            answer = refusal(error, _partition_id(context))
            return Message(answer, reply_to=message)
        node.write(context)
        if self._size:
            self._alive[key] = node
            while len(self._alive) > self._size:
                self._alive.popitem(last=False)
        return Message(content, reply_to=message)

    def _bring_to_life(self, node: NodeState | None, context: Context) -> NodeState:
        """Return the node's device in the state that is stored for it."""
        if node is not None and node.is_current(context):
            return node
        node = node or NodeState(self._build(context))
        node.read(context)
        return node

    def _build(self, context: Context) -> DeviceHalf:
        device = self._device(context)
        if not isinstance(device, Device):
            raise SettingError(
                f"the function given to client_app returned {type(device).__name__}, "
                "not a flwr_slfac.Device"
            )
        return DeviceHalf(device, _partition_id(context))


# Of each ClientApp that arrived in this process, the devices that live here.
_ARRIVED: dict[str, _Workers] = {}


def _workers_here(
    name: str, device: Callable[[Context], Device], size: int
) -> _Workers:
    """Return the workers that an earlier copy of this ClientApp left here."""
    if name not in _ARRIVED:
        _ARRIVED[name] = _Workers(device, size)
    return _ARRIVED[name]


def _partition_id(context: Context) -> int:
    """Return the node's partition id, or its node id where it has none."""
    return int(context.node_config.get("partition-id", context.node_id))
