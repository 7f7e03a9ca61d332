"""The device's door to Flower: a ClientApp that answers the server's steps."""

from collections.abc import Callable, Sequence
from functools import partial

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flwr_slfac.errors import SettingError
from flwr_slfac.front_mods import Mod, measured, split_mods
from flwr_slfac.split import Device
from flwr_slfac.transport import DESCRIBE, EVALUATE, TRAIN, answer_partition
from flwr_slfac.workers import Configure, Recipe, Workers, partition_id


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
        ``message_size_mod`` and ``arrays_size_mod`` run around every message instead,
        in a stream around what would be one.
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
    workers = Workers(Recipe(device, configure, front_mods), live_cache)
    app = ClientApp(mods=measuring)

    @app.train("step")
    def train_step(message: Message, context: Context) -> Message:
        return workers.answer(message, context, TRAIN)

    @app.train("stream")
    def train_stream(message: Message, context: Context) -> Message:
        return workers.stream(message, context, partial(measured, measuring))

    @app.evaluate("step")
    def evaluate_step(message: Message, context: Context) -> Message:
        return workers.answer(message, context, EVALUATE)

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        return workers.answer(message, context, DESCRIBE)

    @app.query("partition")
    def partition(message: Message, context: Context) -> Message:
        return Message(answer_partition(partition_id(context)), reply_to=message)

    return app
