"""Flower's mods on a device: around the exchange of its front, or of every message.

::

    first step    front and config arrive ─► stored with the node
    ...           steps, which carry smashed data and no front
    last step     mod(message, context, call_next)
                    message:   the front that arrived, the config
                    call_next: the trained front, its metrics
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)

from flwr_slfac.errors import SettingError
from flwr_slfac.flower_parts import CLIPPING_NORM, NUM_EXAMPLES
from flwr_slfac.lightweight import FULL_BITS
from flwr_slfac.split import Begin, DeviceHalf
from flwr_slfac.transport import Reply, Request, as_record, exchange_of

Answer = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, Answer], Message]

# They measure messages: around the messages that cross, not around the front alone.
_MEASURING = (arrays_size_mod, message_size_mod)
_CLIPPING = (adaptiveclipping_mod, fixedclipping_mod)
_RECEIVED, _TOLD, _ROUND = "slfac-received", "slfac-told", "slfac-round"


class FrontMods:
    """Mods around the exchange of the front in a round of training.

    Parameters
    ----------
    mods : sequence of Mod
        Outermost first.
    """

    def __init__(self, mods: Sequence[Mod]) -> None:
        self._mods = tuple(mods)

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return not self._mods

    def begin(self, begin: Begin, config: Mapping[str, Any], context: Context) -> None:
        """Check that the mods can act on this round; store what they will be given.

        Raises
        ------
        SettingError
            If they cannot, or the strategy counts on one that is not here.
        """
        self._require_clipping(config)
        if not self._mods:
            return
        if begin.config.update_bits < FULL_BITS:
            raise SettingError(
                f"mods change the front that a device sends, and update_bits="
                f"{begin.config.update_bits} sends it quantized after them, past what "
                "they clip; set update_bits=32 in Lightweight, or leave the mods out"
            )
        if begin.config.period_steps:
            raise SettingError(
                "mods change the front that a device sends at the end of a round, and "
                "Lightweight(period='step') sends it within the round, too, past them; "
                "set period='round', or leave the mods out"
            )
        if begin.front is not None:
            front = as_record(begin.front).copy()
            self._require_clippable(front)
            context.state[_RECEIVED] = front
        context.state[_TOLD] = ConfigRecord(dict(config))
        context.state[_ROUND] = ConfigRecord({"round": begin.server_round})

    def finish(
        self, half: DeviceHalf, message: Message, context: Context, trained: ArrayRecord
    ) -> tuple[ArrayRecord, dict[str, Any]]:
        """Return the front that is to be sent, and metrics to send with it.

        Parameters
        ----------
        half : DeviceHalf
            Who trained it.
        message : Message
            The round's last one, which this answers.
        context : Context
            Holds what `begin` stored.
        trained : ArrayRecord
            The front after the round.

        Raises
        ------
        SettingError
            If a mod does what cannot be carried.
        """
        if not self._mods:
            return trained, {}
        server_round = int(context.state.config_records.pop(_ROUND)["round"])  # type: ignore[arg-type]
        batches = half.device.batches(0, server_round, half.partition)
        num_examples = sum(batches.sizes)
        received = context.state.array_records.pop(_RECEIVED)
        config = context.state.config_records.pop(_TOLD)
        content = RecordDict({"arrays": received.copy(), "config": config.copy()})
        incoming = Message(content, metadata=_as_type("train", message.metadata))  # type: ignore[call-overload]

        def call_next(message: Message, _: Context) -> Message:
            given = RecordDict({"arrays": received, "config": config})
            if message.content != given:
                raise SettingError(
                    "a mod changes what the device receives, and the device has "
                    "trained already when mods run; change it on the server"
                )
            metrics = MetricRecord({NUM_EXAMPLES: num_examples})
            reply = RecordDict({"arrays": trained.copy(), "metrics": metrics})
            return Message(reply, reply_to=message)

        reply = _wrapped(call_next, self._mods)(incoming, context)
        front, added = _read(reply, trained, num_examples)
        if not any(mod in _CLIPPING for mod in self._mods):
            _require_clipped(front, received, config)
        return front, added

    def _require_clipping(self, config: Mapping[str, Any]) -> None:
        clips = [mod for mod in self._mods if mod in _CLIPPING]
        if CLIPPING_NORM in config and not self._may_clip:
            raise SettingError(
                "the server's strategy adds noise for updates that each device clips, "
                f"and this device has no mod that clips ({CLIPPING_NORM}="
                f"{config[CLIPPING_NORM]:g}); pass client_app(device, "
                "mods=[fixedclipping_mod]) or, for adaptive clipping, "
                "mods=[adaptiveclipping_mod], from flwr.clientapp.mod"
            )
        if clips and CLIPPING_NORM not in config:
            raise SettingError(
                f"{clips[0].__name__} clips to the norm that the server's strategy "
                f"sends, and it sends no {CLIPPING_NORM!r}; use "
                "DifferentialPrivacyClientSideFixedClipping or "
                "DifferentialPrivacyClientSideAdaptiveClipping there, or leave the mod "
                "out"
            )

    @property
    def _may_clip(self) -> bool:
        """Whether a mod clips to the server's norm, or may, being none of Flower's."""
        return any(not isinstance(mod, LocalDpMod) for mod in self._mods)

    def _require_clippable(self, front: ArrayRecord) -> None:
        """Refuse weights that Flower's clipping leaves as they are."""
        scalars = [
            name
            for name, array in front.items()
            if not array.shape and np.issubdtype(np.dtype(array.dtype), np.floating)
        ]
        if scalars and any(mod in _CLIPPING for mod in self._mods):
            raise SettingError(
                f"Flower's clipping leaves tensors without dimensions as they are, and "
                f"the front has {', '.join(scalars)}; give them the shape (1,)"
            )


def _require_clipped(
    front: ArrayRecord, received: ArrayRecord, config: Mapping[str, Any]
) -> None:
    """Refuse a front further from the one received than the server counts on."""
    if CLIPPING_NORM not in config:
        return
    moved = [
        array.numpy() - received[name].numpy()
        for name, array in front.items()
        if np.issubdtype(np.dtype(array.dtype), np.floating)
    ]
    norm = float(np.sqrt(sum(np.sum(np.square(m, dtype=np.float64)) for m in moved)))
    # What rounding of float32 adds to a norm that was clipped exactly.
    if norm > config[CLIPPING_NORM] * (1 + 1e-4):
        raise SettingError(
            f"the server's strategy counts on updates of norm "
            f"{config[CLIPPING_NORM]:g} at most, and after the mods this one has "
            f"{norm:g}; add fixedclipping_mod or adaptiveclipping_mod of "
            "flwr.clientapp.mod"
        )


def _as_type(message_type: str, metadata: Metadata) -> Metadata:
    """Return the metadata of a message of a type to and from the same nodes."""
    return Metadata(
        run_id=metadata.run_id,
        message_id=metadata.message_id,
        src_node_id=metadata.src_node_id,
        dst_node_id=metadata.dst_node_id,
        reply_to_message_id=metadata.reply_to_message_id,
        group_id=metadata.group_id,
        created_at=metadata.created_at,
        ttl=metadata.ttl,
        message_type=message_type,
    )


def split_mods(mods: Sequence[Mod]) -> tuple[list[Mod], FrontMods]:
    """Return the mods around messages, and those around the front."""
    measuring: list[Mod] = [mod for mod in mods if mod in _MEASURING]
    return measuring, FrontMods([mod for mod in mods if mod not in _MEASURING])


def measured(
    mods: Sequence[Mod],
    answer: Callable[[Request], Reply],
    message: Message,
    context: Context,
    request: Request,
) -> Reply:
    """Answer a request that came over a stream, with mods that measure messages.

    Parameters
    ----------
    mods : sequence of Mod
        They are given the Flower message that the request would be.
    answer : callable
        Answers it.
    message, context
        Of the message that opened the stream.
    request : TrainRequest, EvaluateRequest or DescribeRequest
        What came.
    """
    if not mods:
        return answer(request)
    kind = exchange_of(request)
    about = _as_type(kind.message_type, message.metadata)
    asked = Message(kind.write_request(request), metadata=about)  # type: ignore[call-overload]

    def call_next(asked: Message, _: Context) -> Message:
        reply = answer(kind.read_request(asked.content))
        return Message(kind.write_reply(reply), reply_to=asked)

    return kind.read_reply(_wrapped(call_next, mods)(asked, context).content)


def _wrapped(answer: Answer, mods: Sequence[Mod]) -> Answer:
    for mod in reversed(mods):
        answer = partial(_call, mod, answer)
    return answer


def _call(mod: Mod, answer: Answer, message: Message, context: Context) -> Message:
    return mod(message, context, answer)


def _read(
    reply: Message, trained: ArrayRecord, num_examples: int
) -> tuple[ArrayRecord, dict[str, Any]]:
    """Return the front and the metrics in what the outermost mod returned."""
    if reply.has_error():
        raise SettingError(f"a mod failed: {reply.error.reason}")
    content = reply.content
    if len(content) != 2 or len(content.array_records) != 1:
        raise SettingError(
            f"a mod sends {', '.join(content) or 'nothing'}; a device sends its front "
            "in one ArrayRecord and one MetricRecord"
        )
    front = next(iter(content.array_records.values()))
    metrics = dict(next(iter(content.metric_records.values()), MetricRecord()))
    shapes = {name: tuple(array.shape) for name, array in front.items()}
    if shapes != {name: tuple(array.shape) for name, array in trained.items()}:
        raise SettingError(
            "a mod changes the names or shapes of the front's tensors, which the "
            "server could not average; mods may change their values"
        )
    if metrics.pop(NUM_EXAMPLES, None) != num_examples:
        raise SettingError(
            f"a mod changes {NUM_EXAMPLES!r}, which the server counts itself; leave it "
            "as it is"
        )
    return front, metrics
