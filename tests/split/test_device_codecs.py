"""Devices with codecs of their own train as the definition says, and are charged so."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from torch.nn import CrossEntropyLoss

from flwr_slfac import (
    Device,
    DeviceCodecs,
    Lightweight,
    SettingError,
    SplitFed,
    client_app,
)
from flwr_slfac.codec import Identity, decode, encode, parse_codec
from flwr_slfac.split import Batch, ServerHalf, train_locally
from flwr_slfac.split.batches import fetch
from flwr_slfac.states import weighted_average
from tests.grid_in_process import GridInProcess, process_of_a_run
from tests.resumable import Case, assert_same_run
from tests.split import builders
from tests.split.builders import assert_same

SIZES = [16, 24, 8]
SCHEMES = ("sequential", "sflv1", "sflv2", "parallel")
COARSE = "waterfill(nrmse=0.5)", "waterfill(nrmse=0.6)"


def by_round(server_round: int, device: int) -> tuple[str, str | None] | None:
    """Choose codecs that lose something, others in every round, none for device 1."""
    if device == 1:
        return None
    return ("float16", "bfloat16") if server_round == 1 else ("bfloat16", None)


def train(codecs: DeviceCodecs | None, **settings: Any) -> tuple[Any, Any]:
    """Train two rounds; return the result and the back's weights."""
    front, back = builders.halves(norm=False)
    scheme = settings.pop("scheme", "parallel")
    server = ServerHalf(back, CrossEntropyLoss(), builders.sgd, scheme=scheme)
    devices = builders.devices(front, settings.pop("sizes", SIZES))
    settings = {"num_rounds": 2, "codecs": codecs, **settings}
    result = train_locally(devices, front.state_dict(), server, **settings)
    return result, dict(back.state_dict())


def sent(tensor: torch.Tensor, codec: Any) -> torch.Tensor:
    """Return what a frame brings of a tensor."""
    codec = parse_codec(codec) if codec else Identity()
    return decode(encode(tensor, codec, role="activation"))


def slow_loop() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Train two rounds as the definition says, `parallel`, codecs by `by_round`."""
    front, back = builders.halves(norm=False)
    server = ServerHalf(back, CrossEntropyLoss(), builders.sgd)
    state: dict[str, Any] = dict(front.state_dict())
    for server_round in (1, 2):
        server.begin_round(server_round, 0)
        devices = builders.devices(front, SIZES)
        orders = [d.batches(0, server_round, i) for i, d in enumerate(devices)]
        for device in devices:
            device.front.load_state_dict(state)
        optimizers = [builders.sgd(d.front.parameters()) for d in devices]
        for step in range(max(order.num_steps for order in orders)):
            batches, outs = {}, {}
            for i, device in enumerate(devices):
                if step < orders[i].num_steps:
                    x, y = fetch(device.train_set, orders[i].indices(step))
                    outs[i] = device.front(x)
                    up, _ = by_round(server_round, i) or (None, None)
                    batches[i] = Batch(sent(outs[i].detach(), up), y, len(y))
            for i, (gradient, _) in server.step(step, batches).items():
                _, down = by_round(server_round, i) or (None, None)
                optimizers[i].zero_grad()
                outs[i].backward(sent(gradient, down))
                optimizers[i].step()
        mean = weighted_average([d.front.state_dict() for d in devices], SIZES)
        state = {k: v.to(state[k].dtype) for k, v in mean.items()}
    return state, dict(server.back.state_dict())


def test_own_codecs_are_the_slow_loops() -> None:
    """Codecs by device, round and direction end in the bits of the defining loop."""
    result, back = train(DeviceCodecs(by_round), evaluate=False)
    state, slow_back = slow_loop()
    assert_same(dict(result.front), state)
    assert_same(back, slow_back)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_codecs_are_those_of_all(scheme: str) -> None:
    """Where own codecs are those of all, nothing changes, to the byte."""
    up, down = map(parse_codec, COARSE)
    one, back = train(None, up=up, down=down, scheme=scheme)
    own = DeviceCodecs(dict.fromkeys(range(len(SIZES)), COARSE))
    other, other_back = train(own, scheme=scheme)
    assert_same(one.front, other.front)
    assert_same(back, other_back)
    assert bytes_of(one) == bytes_of(other)
    assert one.evaluations == other.evaluations


def bytes_of(result: Any, *directions: Any, **where: Any) -> list[int]:
    """Return the bytes that crossed, by round, device, phase and direction."""
    rows = result.traffic.rows(directions=directions or None, **where)
    return [row.num_bytes for row in rows]


def test_each_device_is_charged_for_its_own_frames() -> None:
    """A device's frames, test batches too, are of its codec; no other's change."""
    plain, _ = train(None, num_rounds=1)
    up, down = map(parse_codec, COARSE)
    coarse, _ = train(None, num_rounds=1, up=up, down=down)
    mixed, _ = train(DeviceCodecs({0: COARSE}), num_rounds=1)
    for phase in ("train", "evaluate"):
        for device, alike in ((0, coarse), (1, plain), (2, plain)):
            where = {"phase": phase, "device": device}
            own, expected = (
                sum(bytes_of(r, "up", "down", **where)) for r in (mixed, alike)
            )
            # Of device 0 only the first step's activations are the same in both.
            assert own == expected if device else abs(own / expected - 1) < 0.1


OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "lightweight": lambda: {
        "lightweight": Lightweight(prune=0.3, gradient_bits=8, aggregate_every=2)
    },
    "pipeline": lambda: {"pipeline_depth": 1},
}


@pytest.mark.parametrize("name", OTHERS)
def test_own_codecs_go_with(name: str) -> None:
    """With lightweight training or a pipeline, equal codecs change nothing either."""
    up, down = map(parse_codec, COARSE)
    one, back = train(None, up=up, down=down, **OTHERS[name]())
    own = DeviceCodecs(lambda server_round, device: COARSE)
    other, other_back = train(own, up=up, down=down, **OTHERS[name]())
    assert_same(one.front, other.front)
    assert_same(back, other_back)


def over_flower(codecs: DeviceCodecs | None) -> tuple[Any, dict[str, torch.Tensor]]:
    """Train two rounds over Flower's messages."""
    front, back = builders.halves(norm=False)
    split = SplitFed(
        FedAvg(),
        back=back,
        loss=CrossEntropyLoss(),
        optimizer=builders.sgd,
        up="identity",
        down="identity",
        codecs=codecs,
    )

    def device(context: Any) -> Device:
        own, _ = builders.halves(norm=False)
        return builders.devices(own, SIZES)[int(context.node_config["partition-id"])]

    with process_of_a_run():
        grid = GridInProcess(client_app(device), len(SIZES))
        first = ArrayRecord(front.state_dict())
        result = split.start(grid, first, num_rounds=2)
    return split, {**result.arrays.to_torch_state_dict(), **split.back_state()}


def test_over_flower_it_is_the_same() -> None:
    """Over Flower's messages own codecs end in the bits of one process."""
    local, back = train(DeviceCodecs(by_round))
    split, weights = over_flower(DeviceCodecs(by_round))
    assert_same({**local.front, **back}, weights)
    assert bytes_of(local, "up", "down") == bytes_of(split, "up", "down")


def test_a_resumed_run_goes_on_with_them(tmp_path: Path) -> None:
    """A run with own codecs is resumed bit for bit, and not with other ones."""
    case = Case(settings={"codecs": DeviceCodecs(by_round)})
    whole = case.run()
    case.run(tmp_path, breaks_off_in=3)
    assert_same_run(whole, case.run(tmp_path, resume=True))
    with pytest.raises(SettingError, match=r"codecs was .*by_round.* and is"):
        case.run(tmp_path, resume=True, codecs=DeviceCodecs({0: COARSE}))


REMEMBERS = "temporal(inner=uniform)", "feedback(inner=topk)"


@pytest.mark.parametrize(
    ("of", "settings", "said"),
    [
        ({True: COARSE}, {}, "partition id"),
        ({0: "float16"}, {}, "give a pair"),
        (lambda server_round, device: ("a", "b", "c"), {}, "give a pair"),
        ({0: ("flaot16", None)}, {}, "did you mean 'float16'"),
        ({0: (REMEMBERS[1], None)}, {}, "remembers"),
        ({0: (None, REMEMBERS[0])}, {}, "remembers"),
        ({}, {"up": REMEMBERS[0]}, "remembers"),
        ({}, {"down": REMEMBERS[1]}, "remembers"),
    ],
)
def test_what_cannot_be_is_named(of: Any, settings: dict[str, str], said: str) -> None:
    """Codecs that are none, or remember values from round to round, are refused."""
    with pytest.raises(SettingError, match=said):
        train(DeviceCodecs(of), **{k: parse_codec(v) for k, v in settings.items()})


def test_a_choice_that_fails_ends_the_run() -> None:
    """What the function raises reaches its author, not the devices."""
    own = DeviceCodecs(partial(_fails, ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        train(own, on_device_error="drop")


def _fails(error: type[Exception], server_round: int, device: int) -> None:
    raise error
