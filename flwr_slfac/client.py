"""The device's door to Flower: a ClientApp that answers the server's steps."""

import copy
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from flwr_slfac.errors import SettingError, SlfacError, TrainingError
from flwr_slfac.flower_parts import CLIPPING_NORM, PROXIMAL_MU, SERVER_ROUND
from flwr_slfac.front_mods import FrontMods, Mod, split_mods
from flwr_slfac.split import Device, DeviceHalf
from flwr_slfac.transport import (
    NodeState,
    answer_describe,
    answer_evaluate,
    answer_partition,
    answer_train,
    begin_of,
    change_front,
    refusal,
)

Work = Callable[[DeviceHalf, RecordDict], RecordDict]
Configure = Callable[[Device, Mapping[str, Any]], None]

_TOLD = "slfac-config"


def client_app(
    device: Callable[[Context], Device],
    *,
    configure: Configure | None = None,
    mods: Sequence[Mod] = (),
    live_cache: int = 32,
) -> ClientApp:
    """Make the ClientApp of a device.

    Parameters
    ----------
    device : callable
        From Flower's Context to the `Device` of this node: builds the front, loads the
        node's data. It is called once per process and node, again when the process
        changes.
    configure : callable, optional
        Called with the `Device` and the strategy's configuration at the start of each
        training and each evaluation: ``train_config`` or ``evaluate_config``, and what
        the strategy adds (``server-round``). It changes attributes of the device, such
        as its optimizer or epochs, for that round only. Without it a device refuses
        configuration that it does not know.
    mods : sequence of Flower's mods
        Those of ``flwr.clientapp.mod``, and others: run once a round of training,
        around the front that arrives and the one that is sent back, outermost first.
        ``message_size_mod`` and ``arrays_size_mod`` run around every message instead.
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
    measuring, front_mods = split_mods(mods)
    workers = _Workers(device, configure, front_mods, live_cache)
    app = ClientApp(mods=measuring)

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

    def __init__(
        self,
        device: Callable[[Context], Device],
        configure: Configure | None,
        mods: FrontMods,
        size: int,
    ) -> None:
        self._device, self._configure, self._mods = device, configure, mods
        self._size = size
        self._name = uuid.uuid4().hex
        # Each with its device as it was built, before any configuration.
        self._alive: OrderedDict[tuple[int, int], tuple[Device, NodeState]] = (
            OrderedDict()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Flower's simulation sends a copy of the ClientApp with every message.
        parts = self._device, self._configure, self._mods, self._size
        return _workers_here, (self._name, *parts)

    def answer(self, message: Message, context: Context, work: Work) -> Message:
        """Run a request on the node's device and keep the state that follows."""
        key = (context.run_id, context.node_id)
        # Out of the cache while it works: if it raises, what it left is not reused.
        alive = self._alive.pop(key, None)
        try:
            begins = self._begin(message, context, work)
            built, node = self._bring_to_life(alive, context, begins=begins)
            content = work(node.half, message.content)
            change_front(
                content, partial(self._mods.finish, node.half, message, context)
            )
        except TrainingError:
            # Its state of this round is gone, or it fell out of step: the round can go
            # on without this device, so to the server it is one that raised.
            raise
        except SlfacError as error:
            answer = refusal(error, _partition_id(context))
            return Message(answer, reply_to=message)
        node.write(context)
        if self._size:
            self._alive[key] = built, node
            while len(self._alive) > self._size:
                self._alive.popitem(last=False)
        return Message(content, reply_to=message)

    def _begin(self, message: Message, context: Context, work: Work) -> bool:
        """Take note of what a round's first request tells; say whether it is one."""
        begin = begin_of(message.content)
        if begin is None:
            return False
        config = {SERVER_ROUND: begin.server_round, **begin.told}
        if begin.proximal_mu:
            config[PROXIMAL_MU] = begin.proximal_mu
        unknown = [key for key in begin.told if key != CLIPPING_NORM]
        if unknown and self._configure is None:
            raise SettingError(
                f"the server's configuration says {', '.join(unknown)}, which this "
                "device does not read; pass client_app(device, configure=...), a "
                "function that applies it to the Device, or leave it out of "
                "train_config and evaluate_config"
            )
        if self._configure is not None:
            context.state[_TOLD] = ConfigRecord(config)
        if work is answer_train:
            self._mods.begin(begin, config, context)
        return True

    def _bring_to_life(
        self, alive: tuple[Device, NodeState] | None, context: Context, *, begins: bool
    ) -> tuple[Device, NodeState]:
        """Return the node's device in the state that is stored for it."""
        configures = self._configure is not None
        if alive is not None and not (begins and configures):
            built, node = alive
            if node.is_current(context):
                return alive
        built = self._build(context) if alive is None else alive[0]
        if alive is None or configures:
            half = DeviceHalf(self._configured(built, context), _partition_id(context))
            node = NodeState(half)
        node.read(context)
        return built, node

    def _configured(self, built: Device, context: Context) -> Device:
        """Return the device as the round's configuration asks."""
        told = context.state.config_records.get(_TOLD)
        if self._configure is None or told is None:
            return built
        device = copy.copy(built)
        self._configure(device, dict(told))
        # Checks the settings as when it was built.
        return replace(device)

    def _build(self, context: Context) -> Device:
        device = self._device(context)
        if not isinstance(device, Device):
            raise SettingError(
                f"the function given to client_app returned {type(device).__name__}, "
                "not a flwr_slfac.Device"
            )
        return device


# Of each ClientApp that arrived in this process, the devices that live here.
_ARRIVED: dict[str, _Workers] = {}


def _workers_here(
    name: str,
    device: Callable[[Context], Device],
    configure: Configure | None,
    mods: FrontMods,
    size: int,
) -> _Workers:
    """Return the workers that an earlier copy of this ClientApp left here."""
    if name not in _ARRIVED:
        _ARRIVED[name] = _Workers(device, configure, mods, size)
    return _ARRIVED[name]


def _partition_id(context: Context) -> int:
    """Return the node's partition id, or its node id where it has none."""
    return int(context.node_config.get("partition-id", context.node_id))
