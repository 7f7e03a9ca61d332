"""The devices that live in a process, and what they do for a request."""

import copy
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from flwr_slfac.errors import SettingError, SlfacError, TrainingError
from flwr_slfac.flower_parts import CLIPPING_NORM, PROXIMAL_MU, SERVER_ROUND
from flwr_slfac.front_mods import FrontMods
from flwr_slfac.split import Begin, Device, DeviceHalf, TrainReply, TrainRequest
from flwr_slfac.transport import (
    Exchange,
    NodeState,
    Reply,
    Request,
    answer,
    answer_partition,
    refusal,
    with_front,
)
from flwr_slfac.transport.stream import (
    UNREACHABLE,
    DeviceEnd,
    UnreachableError,
    of_content,
)

Configure = Callable[[Device, Mapping[str, Any]], None]
# Around the answers that cross a stream: what measures messages.
Measure = Callable[[Callable[[Request], Reply], Message, Context, Request], Reply]

_TOLD = "slfac-config"
_SERVER = "slfac-server"


@dataclass(frozen=True)
class Recipe:
    """How devices are made.

    Parameters
    ----------
    device, configure
        As in `client_app`.
    mods : FrontMods
        Around the exchange of a front.
    """

    device: Callable[[Context], Device]
    configure: Configure | None
    mods: FrontMods


class Worker:
    """The device of one node, as long as this process keeps it alive.

    Parameters
    ----------
    recipe : Recipe
        How it is made.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        # With the device as it was built, before any configuration.
        self._alive: tuple[Device, NodeState] | None = None

    def answer(self, request: Request, message: Message, context: Context) -> Reply:
        """Carry out a request.

        Parameters
        ----------
        request : TrainRequest, EvaluateRequest or DescribeRequest
            What is asked.
        message : Message
            What brought it.
        context : Context
            Of the node; what the device keeps is read from its state.

        Raises
        ------
        SlfacError
            If the device refuses; what it left is not gone on with.
        """
        # Not alive while it works: if it raises, what it left is not reused.
        alive, self._alive = self._alive, None
        if request.begin is not None:
            trains = isinstance(request, TrainRequest)
            self._begin(request.begin, context, trains=trains)
        built, node = self._bring_to_life(
            alive, context, begins=request.begin is not None
        )
        reply = answer(node.half, request)
        if not self._recipe.mods.is_empty:
            finish = partial(self._recipe.mods.finish, node.half, message, context)
            reply = with_front(reply, finish)
        self._alive = built, node
        return reply

    def run_ahead(self) -> Reply | None:
        """Return the answer to the next request, if that can be said now.

        Raises
        ------
        SlfacError
            As `answer`.
        """
        alive, self._alive = self._alive, None
        if alive is None:
            return None
        reply = alive[1].half.run_ahead()
        self._alive = alive
        return reply

    def keep(self, context: Context) -> None:
        """Store what the device goes on with in the node's state."""
        if self._alive is not None:
            self._alive[1].write(context)

    def _begin(self, begin: Begin, context: Context, *, trains: bool) -> None:
        """Take note of what a round's first request tells."""
        config = {SERVER_ROUND: begin.server_round, **begin.told}
        if begin.proximal_mu:
            config[PROXIMAL_MU] = begin.proximal_mu
        unknown = [key for key in begin.told if key != CLIPPING_NORM]
        if unknown and self._recipe.configure is None:
            raise SettingError(
                f"the server's configuration says {', '.join(unknown)}, which this "
                "device does not read; pass client_app(device, configure=...), a "
                "function that applies it to the Device, or leave it out of "
                "train_config and evaluate_config"
            )
        if self._recipe.configure is not None:
            context.state[_TOLD] = ConfigRecord(config)
        if trains:
            self._recipe.mods.begin(begin, config, context)

    def _bring_to_life(
        self, alive: tuple[Device, NodeState] | None, context: Context, *, begins: bool
    ) -> tuple[Device, NodeState]:
        """Return the node's device in the state that is stored for it."""
        configures = self._recipe.configure is not None
        if alive is not None and not (begins and configures):
            built, node = alive
            if node.is_current(context):
                return alive
        built = self._build(context) if alive is None else alive[0]
        if alive is None or configures:
            half = DeviceHalf(self._configured(built, context), partition_id(context))
            node = NodeState(half)
        node.read(context)
        return built, node

    def _configured(self, built: Device, context: Context) -> Device:
        """Return the device as the round's configuration asks."""
        told = context.state.config_records.get(_TOLD)
        if self._recipe.configure is None or told is None:
            return built
        device = copy.copy(built)
        self._recipe.configure(device, dict(told))
        # Checks the settings as when it was built.
        return replace(device)

    def _build(self, context: Context) -> Device:
        device = self._recipe.device(context)
        if not isinstance(device, Device):
            raise SettingError(
                f"the function given to client_app returned {type(device).__name__}, "
                "not a flwr_slfac.Device"
            )
        return device


class Workers:
    """The devices alive in this process, least recently used first.

    Parameters
    ----------
    recipe : Recipe
        How they are made.
    size : int
        How many are kept alive between messages.
    """

    def __init__(self, recipe: Recipe, size: int) -> None:
        self._recipe, self._size = recipe, size
        self._name = uuid.uuid4().hex
        self._alive: OrderedDict[tuple[int, int], Worker] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        # Flower's simulation sends a copy of the ClientApp with every message.
        return _workers_here, (self._name, self._recipe, self._size)

    def answer(self, message: Message, context: Context, kind: Exchange) -> Message:
        """Run a request on the node's device and keep the state that follows."""
        key = (context.run_id, context.node_id)
        worker = self._alive.pop(key, None) or Worker(self._recipe)
        try:
            request = kind.read_request(message.content)
            content = kind.write_reply(worker.answer(request, message, context))
        except TrainingError:
            # Its state of this round is gone, or it fell out of step: the round can go
            # on without this device, so to the server it is one that raised.
            raise
        except SlfacError as error:
            return Message(refusal(error, partition_id(context)), reply_to=message)
        worker.keep(context)
        self._put_back(key, worker)
        return Message(content, reply_to=message)

    def stream(self, message: Message, context: Context, measure: Measure) -> Message:
        """Answer requests over a stream until the server lets the device go."""
        key = (context.run_id, context.node_id)
        worker = self._alive.pop(key, None) or Worker(self._recipe)
        opening = of_content(message.content)
        if _SERVER in context.node_config:
            own = str(context.node_config[_SERVER])
            opening = replace(opening, addresses=(own,))

        def respond(request: Request) -> Reply:
            reply = worker.answer(request, message, context)
            # What raises later in the session goes on from here, as between messages.
            if isinstance(reply, TrainReply) and reply.done:
                worker.keep(context)
            return reply

        partition = partition_id(context)
        measured = partial(measure, respond, message, context)
        try:
            DeviceEnd(opening, partition, measured, worker.run_ahead).run()
        except UnreachableError as error:
            said = RecordDict({"split": ConfigRecord({UNREACHABLE: str(error)})})
            return Message(said, reply_to=message)
        self._put_back(key, worker)
        return Message(answer_partition(partition), reply_to=message)

    def _put_back(self, key: tuple[int, int], worker: Worker) -> None:
        if not self._size:
            return
        self._alive[key] = worker
        while len(self._alive) > self._size:
            self._alive.popitem(last=False)


# Of each ClientApp that arrived in this process, the devices that live here.
_ARRIVED: dict[str, Workers] = {}


def _workers_here(name: str, recipe: Recipe, size: int) -> Workers:
    """Return the workers that an earlier copy of this ClientApp left here."""
    if name not in _ARRIVED:
        _ARRIVED[name] = Workers(recipe, size)
    return _ARRIVED[name]


def partition_id(context: Context) -> int:
    """Return the node's partition id, or its node id where it has none."""
    return int(context.node_config.get("partition-id", context.node_id))
