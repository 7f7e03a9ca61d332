"""The device's door to Flower: a ClientApp that answers the server's steps."""

import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from flwr_slfac.errors import SettingError, SlfacError, TrainingError
from flwr_slfac.split import Device, DeviceHalf
from flwr_slfac.transport.delivery import REFUSED
from flwr_slfac.transport.packing import pack_state, unpack_state
from flwr_slfac.transport.records import (
    FRAMES,
    SPLIT,
    from_description,
    from_evaluate_reply,
    from_train_reply,
    get_frame,
    put_frame,
    to_evaluate_request,
    to_train_request,
)
from flwr_slfac.transport.snapshots import pack_snapshot, unpack_snapshot

_STATE, _STATE_FRAMES = "slfac", "slfac-frames"


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
    """
    if live_cache < 0:
        raise SettingError(f"live_cache is {live_cache}; it must be 0 or more")
    workers = _Workers(device, live_cache)
    app = ClientApp()

    @app.train("step")
    def train_step(message: Message, context: Context) -> Message:
        def work(half: DeviceHalf) -> RecordDict:
            return from_train_reply(half.train(to_train_request(message.content)))

        return workers.answer(message, context, work)

    @app.evaluate("step")
    def evaluate_step(message: Message, context: Context) -> Message:
        def work(half: DeviceHalf) -> RecordDict:
            request = to_evaluate_request(message.content)
            return from_evaluate_reply(half.evaluate(request))

        return workers.answer(message, context, work)

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        def work(half: DeviceHalf) -> RecordDict:
            channels = bool(message.content.config_records[SPLIT]["channels"])
            return from_description(half.describe(channels=channels))

        return workers.answer(message, context, work)

    @app.query("partition")
    def partition(message: Message, context: Context) -> Message:
        record = ConfigRecord({"device": _partition_id(context)})
        return Message(RecordDict({SPLIT: record}), reply_to=message)

    return app


class _Live:
    """A device that is alive in this process, and the stored state it stands for."""

    def __init__(self, half: DeviceHalf) -> None:
        self.half = half
        self.token = ""
        # What the device keeps, and the same packed: it changes once a round only.
        self._kept: dict[str, Any] | None = None
        self._packed: bytes | None = None

    def read(self, context: Context) -> None:
        """Take up the state that is stored for this node."""
        self.token = _read_token(context)
        stored = RecordDict({})
        if self.token:
            stored = RecordDict({SPLIT: context.state.config_records[_STATE]})
            if (frames := context.state.array_records.get(_STATE_FRAMES)) is not None:
                stored[FRAMES] = frames
        self._packed = get_frame(stored, "kept") if self.token else None
        self._kept = None if self._packed is None else unpack_state(self._packed)
        self.half.kept = self._kept
        data = get_frame(stored, "round") if self.token else None
        self.half.restore(None if data is None else unpack_snapshot(data))

    def write(self, context: Context) -> None:
        """Store in the node's state what the device needs next."""
        context.state.config_records.pop(_STATE, None)
        context.state.array_records.pop(_STATE_FRAMES, None)
        if self.half.kept is not self._kept:
            self._kept = self.half.kept
            self._packed = None if self._kept is None else pack_state(self._kept)
        snapshot = self.half.snapshot()
        data = None if snapshot is None else pack_snapshot(snapshot)
        parts = {"round": data, "kept": self._packed}
        present = {name: part for name, part in parts.items() if part is not None}
        # With nothing to remember, a thousand idle devices hold nothing.
        self.token = uuid.uuid4().hex if present else ""
        if not present:
            return
        content = RecordDict({SPLIT: ConfigRecord({"token": self.token})})
        for name, part in present.items():
            put_frame(content, name, part)
        context.state[_STATE] = content.config_records[SPLIT]
        frames = content.array_records.get(FRAMES)
        if isinstance(frames, ArrayRecord):
            context.state[_STATE_FRAMES] = frames


class _Workers:
    """The devices alive in this process, least recently used first."""

    def __init__(self, device: Callable[[Context], Device], size: int) -> None:
        self._device = device
        self._size = size
        self._name = uuid.uuid4().hex
        self._alive: OrderedDict[tuple[int, int], _Live] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        # Flower's simulation sends a copy of the ClientApp with every message.
        return _workers_here, (self._name, self._device, self._size)

    def answer(
        self,
        message: Message,
        context: Context,
        work: Callable[[DeviceHalf], RecordDict],
    ) -> Message:
        """Run a request on the node's device and keep the state that follows."""
        key = (context.run_id, context.node_id)
        # Out of the cache while it works: if it raises, what it left is not reused.
        live = self._alive.pop(key, None)
        try:
            live = self._bring_to_life(live, context)
            content = work(live.half)
        except TrainingError:
            # Its state of this round is gone, or it fell out of step: the round can go
            # on without this device, so to the server it is one that raised.
            raise
        except SlfacError as error:
            refusal = f"{type(error).__name__}: {error}"
            record = ConfigRecord({REFUSED: refusal, "device": _partition_id(context)})
            return Message(RecordDict({SPLIT: record}), reply_to=message)
        live.write(context)
        if self._size:
            self._alive[key] = live
            while len(self._alive) > self._size:
                self._alive.popitem(last=False)
        return Message(content, reply_to=message)

    def _bring_to_life(self, live: _Live | None, context: Context) -> _Live:
        """Return the node's device in the state that is stored for it."""
        if live is not None and live.token == _read_token(context):
            return live
        live = live or _Live(self._build(context))
        live.read(context)
        return live

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


def _read_token(context: Context) -> str:
    record = context.state.config_records.get(_STATE)
    return "" if record is None else str(record["token"])
