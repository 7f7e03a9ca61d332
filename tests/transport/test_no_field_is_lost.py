"""Whatever the protocol says crosses whole, as records and over a stream."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from flwr_slfac.codec import Uniform
from flwr_slfac.lightweight import DeviceConfig, StepCost
from flwr_slfac.split import (
    KEPT,
    Begin,
    EvaluateReply,
    EvaluateRequest,
    Smashed,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.split.features import Dropout
from flwr_slfac.transport import records
from flwr_slfac.transport.stream.blobs import StateCache
from flwr_slfac.transport.stream.replies import pack_reply, unpack_reply
from flwr_slfac.transport.stream.requests import pack_request, unpack_request

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}
# Nothing here is what it is by default.
BEGIN = Begin(
    server_round=3,
    seed=7,
    front=STATE,
    up=Uniform(bits=3),
    release="0.1.0",
    min_batch=2,
    proximal_mu=0.5,
    config=DeviceConfig(gradient_bits=8),
    cut_features=(Dropout(0.25, "channel", "batch"),),
    mask=b"mask",
    version=4,
    aggregate=False,
    told={"lr": 0.5, "names": ["a", "b"]},
    pipeline_depth=1,
)
SMASHED = Smashed(b"activations", b"targets", 5, (5, 2, 3), (0, 2, 1), (9, 5, 1))
COST = StepCost(**{f.name: i + 1 for i, f in enumerate(fields(StepCost))})
MESSAGES = {
    "train request": TrainRequest(
        2, BEGIN, b"gradient", (1, 0), STATE, b"update", b"mask"
    ),
    "evaluate request": EvaluateRequest(3, 2**20, BEGIN),
    "train reply": TrainReply(
        device=1,
        num_steps=9,
        smashed=SMASHED,
        done=True,
        front=STATE,
        update=b"update",
        wants_front=True,
        cost=COST,
        metrics={"seen": 3, "each": [0.5, 1.5]},
        compute_s=0.25,
        codec_s=0.125,
        kept=tuple(KEPT),
    ),
    "evaluate reply": EvaluateReply(1, 4, [SMASHED, replace(SMASHED)], 0.25, 0.125),
}
# What the link adds at the other end.
ADDED = ("carried",)


def over_stream(message: Any) -> Any:
    """Pack and unpack for a stream."""
    if isinstance(message, (TrainRequest, EvaluateRequest)):
        return unpack_request(pack_request(message, StateCache()))
    return unpack_reply(pack_reply(message))


def over_records(message: Any) -> Any:
    """Write and read Flower's records."""
    kind = type(message).__name__
    name = "".join(f"_{c.lower()}" if c.isupper() else c for c in kind).lstrip("_")
    content = getattr(records, f"from_{name}")(message)
    return getattr(records, f"to_{name}")(content)


def plain(value: Any) -> Any:
    """Return what can be compared: states as lists, dataclasses as dicts."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if hasattr(value, "keys"):
        return {k: plain(value[k]) for k in value}
    if isinstance(value, (Begin, Smashed)):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("carry", [over_stream, over_records])
@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_arrives(carry: Callable[[Any], Any], name: str) -> None:
    """Each field has another value than its default, and is the same at the end."""
    sent = MESSAGES[name]
    arrived = carry(sent)
    for field in fields(sent):
        if field.name in ADDED:
            continue
        value = getattr(sent, field.name)
        assert value != field.default, f"{field.name} has no test"
        assert plain(getattr(arrived, field.name)) == plain(value), field.name
    for inner in (BEGIN, SMASHED):
        for field in fields(inner):
            own = getattr(inner, field.name)
            assert own is not field.default, f"{field.name} has no test"
