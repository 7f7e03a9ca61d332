"""A stream carries exactly what a call in one process hands over."""

import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from torch.optim import SGD

from flwr_slfac import Lightweight
from flwr_slfac.codec import parse_codec
from flwr_slfac.split import LocalResult, train_locally
from flwr_slfac.states import State
from flwr_slfac.transport.stream import StreamLink
from tests.split import builders
from tests.transport.loopback import (
    Loopback,
    ThreadOpener,
    ahead_of,
    answer_with,
    linked,
)

SETTINGS = {
    "parallel": {},
    "sflv1": {"scheme": "sflv1"},
    "sflv2": {"scheme": "sflv2"},
    "relay": {"scheme": "sequential"},
    "waterfill": {"up": "waterfill(nrmse=0.2)", "down": "waterfill(nrmse=0.5)"},
    "temporal": {"up": "temporal(inner=waterfill(nrmse=0.2))"},
    "lightweight": {
        "lightweight": Lightweight(
            prune=0.4, gradient_bits=8, update_bits=8, activation_dropout=0.3,
            aggregate_every=2, period="round",
        ),
    },
}  # fmt: skip
SETTINGS.update(
    {f"pipelined {k}": {**v, "pipeline_depth": 1} for k, v in SETTINGS.items()}
)
steps_of_1 = partial(Lightweight, aggregate_every=1, period="step")
SETTINGS["period of steps"] = {"lightweight": steps_of_1(prune=0.4, update_bits=8)}
SETTINGS["renewed masks"] = {
    "lightweight": steps_of_1(
        prune=0.4, structured=False, update_bits=8, renew_every=1
    ),
    # So strong a decay that masks do change.
    "device": {"optimizer": partial(SGD, lr=0.05, weight_decay=1.0)},
}
SETTINGS["control variates"] = {
    "lightweight": steps_of_1(prune=0.4, gradient_bits=8, update_bits=32,
                              control_variates=True),
    "device": {"optimizer": partial(SGD, lr=0.05)},
}  # fmt: skip
SETTINGS["period of steps, whole"] = {"scheme": "sflv1", "lightweight": steps_of_1()}


def train(
    setting: dict, *, streams: bool
) -> tuple[LocalResult, State, ThreadOpener | None]:
    """Train three devices for three rounds."""
    front, back = builders.halves()
    devices = builders.devices(front, [24, 16, 20], **setting.get("device", {}))
    server = builders.server(back, setting.get("scheme", "parallel"))
    openers: list[ThreadOpener] = []
    links: list[StreamLink] = []
    with ExitStack() as stack:

        def over_streams(halves):  # type: ignore[no-untyped-def]
            answers = {half.partition: answer_with(half) for half in halves}
            ahead = {half.partition: ahead_of(half) for half in halves}
            link, opener = stack.enter_context(linked(answers, ahead=ahead))
            openers.append(opener)
            links.append(link)
            return Loopback(halves, link)

        run = partial(train_locally, make_link=over_streams)
        result = (run if streams else train_locally)(
            devices,
            front.state_dict(),
            server,
            num_rounds=3,
            up=parse_codec(setting.get("up", "identity")),
            down=parse_codec(setting.get("down", "identity")),
            lightweight=setting.get("lightweight"),
            pipeline_depth=setting.get("pipeline_depth", 0),
        )
        for node, held in links[0]._held.items() if links else ():
            rows = result.traffic.rows(device=node - 1000)
            # Every byte of every envelope, both ways, and not one twice.
            assert sum(row.num_bytes for row in rows) == held.session.num_bytes
            assert all(row.num_bytes > 0 for row in rows)
    return result, server.snapshot(), openers[0] if openers else None


@pytest.mark.parametrize("name", SETTINGS)
def test_streams_end_in_the_weights_of_one_process(name: str) -> None:
    """Weights, metrics, frames of one process; every byte counted; one session each."""
    local, back, _ = train(SETTINGS[name], streams=False)
    carried, back_too, opener = train(SETTINGS[name], streams=True)
    builders.assert_same(local.front, carried.front)
    builders.assert_same(back, back_too)
    assert local.evaluations == carried.evaluations
    assert opener is not None
    assert len(opener.openings) == 3
    assert not opener.errors
    for own in local.traffic.rows(directions=("up", "down", "targets")):
        (theirs,) = carried.traffic.rows(
            server_round=own.server_round, device=own.device, phase=own.phase,
            directions=[own.direction],
        )  # fmt: skip
        crossed = own.num_messages, own.num_bytes
        assert crossed == (theirs.num_messages, theirs.num_bytes)


def test_no_thread_or_port_of_ours_is_left() -> None:
    """When the link is closed the service's thread and the devices' have ended."""
    train({}, streams=True)
    names = [thread.name for thread in threading.enumerate()]
    assert "slfac-stream" not in names
    assert not [name for name in names if "ThreadOpener" in name]


def test_bytes_of_an_answer_ahead_are_entered_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the server is so slow that each next answer is always here."""
    read = StreamLink._read

    def slow(self: StreamLink, *args: Any, **settings: Any) -> Any:
        time.sleep(0.03)
        return read(self, *args, **settings)

    monkeypatch.setattr(StreamLink, "_read", slow)
    # Every byte that crossed is compared there.
    train(SETTINGS["pipelined parallel"], streams=True)
