"""Devices with cuts of their own train what devices of one common cut train."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import TensorDataset

from flwr_slfac import Device, DeviceCuts, Lightweight, SettingError, cut
from flwr_slfac.codec import (
    Codec,
    Feedback,
    Float16,
    Temporal,
    TopK,
    decode,
    encode,
)
from flwr_slfac.cutting import cut_between
from flwr_slfac.errors import DeviceError
from flwr_slfac.split import Batch, LocalLink, ServerHalf, TrainReply, train_locally
from flwr_slfac.split.batches import fetch
from flwr_slfac.split.protocol import TrainAnswer, TrainRequest
from flwr_slfac.states import weighted_average
from tests import models
from tests.split.builders import assert_same

SCHEMES = ("sequential", "sflv1", "sflv2", "parallel")
COMMON = "layer2"
OWN = {0: "layer0", 1: "layer1.0", 3: "layer1"}
SIZES = [8, 14, 12, 10]
EXAMPLE = torch.zeros(2, 3, 8, 8)
sgd = partial(SGD, lr=0.05, momentum=0.9, nesterov=True)


def images(num: int, seed: int) -> TensorDataset:
    """Return random images with class indices."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 3, 8, 8, generator=generator)
    return TensorDataset(x, torch.randint(0, 5, (num,), generator=generator))


def net() -> nn.Module:
    """Return a small convolutional network in blocks, the same each time."""
    torch.manual_seed(0)
    sizes = [(3, 4, 1), (4, 8, 2), (8, 16, 2), (16, 16, 2)]
    blocks = OrderedDict[str, nn.Module]()
    for i, (a, b, stride) in enumerate(sizes):
        layers = nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()
        blocks[f"layer{i}"] = nn.Sequential(*layers)
    blocks["flat"], blocks["fc"] = nn.Flatten(), nn.Linear(16, 5)
    return nn.Sequential(blocks)


def resnet() -> nn.Module:
    """Return a narrow ResNet-18, the same each time."""
    torch.manual_seed(0)
    return models.resnet18(num_classes=5, width=4)


def train(
    at: Mapping[int, str] | None,
    *,
    model: Any = net,
    common: str = COMMON,
    scheme: Any = "parallel",
    how: Mapping[str, Any] | None = None,
    make_link: type[LocalLink] = LocalLink,
    **settings: Any,
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Train two rounds with cuts of devices' own; None for the common one."""
    how = {"optimizer": sgd, **(how or {})}
    halves = cut(model(), at=common)
    devices = [
        Device(
            cut(model(), at=(at or {}).get(i, common)).front,
            train_set=images(size, i),
            test_set=images(7, 50 + i),
            batch_size=4,
            **how,
        )
        for i, size in enumerate(SIZES)
    ]
    server = ServerHalf(halves.back, CrossEntropyLoss(), sgd, scheme=scheme)
    cuts = None if at is None else DeviceCuts(model(), common, at, **how)
    settings = {"num_rounds": 2, **settings}
    front = halves.front.state_dict()
    result = train_locally(
        devices, front, server, cuts=cuts, make_link=make_link, **settings
    )
    return result, dict(server.back.state_dict())


HOW: dict[str, dict[str, Any]] = {
    "momentum": {},
    "moments kept": {"optimizer": partial(Adam, lr=1e-2), "keep_optimizer": True},
    "schedule by round": {"scheduler": partial(StepLR, step_size=1, gamma=0.5)},
    "schedule by step": {
        "scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=30),
        "scheduler_per": "step",
    },
}


@pytest.mark.parametrize(
    ("scheme", "how"),
    [
        *((scheme, "momentum") for scheme in SCHEMES),
        *(("parallel", how) for how in list(HOW)[1:]),
    ],
)
def test_own_cuts_train_what_the_common_cut_trains(scheme: str, how: str) -> None:
    """With codecs that lose nothing, own cuts end in the common cut's bits."""
    one, back = train(None, scheme=scheme, how=HOW[how])
    other, other_back = train(OWN, scheme=scheme, how=HOW[how])
    assert_same(one.front, other.front)
    assert_same(back, other_back)
    assert one.evaluations == other.evaluations
    assert [r.loss for r in one.rounds] == [r.loss for r in other.rounds]


def test_a_resnet_and_its_inner_cuts() -> None:
    """Cuts inside blocks that hold others, and a module called twice, are as exact."""
    at = {0: "layer1", 1: "bn1", 2: "layer2.0.relu"}
    one, back = train(None, model=resnet, common="layer3", num_rounds=1)
    other, other_back = train(at, model=resnet, common="layer3", num_rounds=1)
    assert_same(one.front, other.front)
    assert_same(back, other_back)


def test_equal_cuts_are_todays() -> None:
    """Where every device is cut at the common cut, the run is today's, to the byte."""
    codecs = {"up": Float16(), "down": Float16()}
    one, back = train(None, **codecs)
    for at in ({}, dict.fromkeys(range(len(SIZES)), COMMON)):
        other, other_back = train(at, **codecs)
        assert_same(one.front, other.front)
        assert_same(back, other_back)
        assert sizes_of(one) == sizes_of(other)


def sizes_of(result: Any) -> list[Any]:
    """Return what crossed, by round, device and direction."""
    rows = result.traffic.rows()
    return [(r.server_round, r.device, r.direction, r.num_bytes) for r in rows]


def test_the_proximal_term_holds_for_all_layers() -> None:
    """FedProx pulls layers on the server as it pulls those on the device."""
    one, _ = train(None, proximal_mu=0.5)
    assert_same(one.front, train(OWN, proximal_mu=0.5)[0].front)
    different, _ = train(OWN)
    assert any(not torch.equal(one.front[n], t) for n, t in different.front.items())


def lossy(tensor: torch.Tensor) -> torch.Tensor:
    """Return what a float16 frame brings of a tensor."""
    frame = encode(tensor, Float16(), role="activation")
    return decode(frame, max_elements=tensor.numel())


def slow_loop(num_rounds: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Train with own cuts as the definition says, `parallel`, float16 both ways."""
    halves = cut(net(), at=COMMON)
    server = ServerHalf(halves.back, CrossEntropyLoss(), sgd)
    state: dict[str, Any] = dict(halves.front.state_dict())
    data = [images(size, i) for i, size in enumerate(SIZES)]
    for server_round in range(1, num_rounds + 1):
        server.begin_round(server_round, 0)
        orders = [
            Device(nn.Identity(), sgd, d, batch_size=4).batches(0, server_round, i)
            for i, d in enumerate(data)
        ]
        parts, optimizers = {}, {}
        for i in range(len(SIZES)):
            model = net()
            parts[i] = [cut(model, at=OWN.get(i, COMMON)).front]
            if i in OWN:
                parts[i].append(cut_between(model, OWN[i], COMMON))
            for part in parts[i]:
                part.load_state_dict({k: state[k] for k in part.state_dict()})
            parameters = [p for part in parts[i] for p in part.parameters()]
            optimizers[i] = sgd(parameters)
        for step in range(max(order.num_steps for order in orders)):
            batches, paths = {}, {}
            for i, order in enumerate(orders):
                if step >= order.num_steps:
                    continue
                x, y = fetch(data[i], order.indices(step))
                out = parts[i][0](x)
                leaf = lossy(out.detach()).requires_grad_()
                lifted = parts[i][1](leaf.clone()) if i in OWN else leaf
                batches[i] = Batch(lifted.detach(), y, len(y))
                paths[i] = out, leaf, lifted
            for i, (gradient, _) in server.step(step, batches).items():
                out, leaf, lifted = paths[i]
                optimizers[i].zero_grad()
                if i in OWN:
                    lifted.backward(gradient)
                    gradient = leaf.grad
                out.backward(lossy(gradient))
                optimizers[i].step()
        states = [
            {k: v for part in parts[i] for k, v in part.state_dict().items()}
            for i in parts
        ]
        mean = weighted_average(states, SIZES)
        state = {k: v.to(state[k].dtype) for k, v in mean.items()}
    return state, dict(server.back.state_dict())


def test_own_cuts_are_the_slow_loops() -> None:
    """With a codec that loses, own cuts end in the bits of the defining loop."""
    result, back = train(OWN, up=Float16(), down=Float16(), evaluate=False)
    state, slow_back = slow_loop(2)
    assert_same(dict(result.front), {n: state[n] for n in result.front})
    assert_same(back, slow_back)


def test_fewer_bytes_cross_than_are_trained_on() -> None:
    """What is counted is what crosses at the device's own cut."""
    result, _ = train({0: "layer0"}, evaluate=False)
    up = [r for r in result.traffic.rows(server_round=1) if r.direction == "up"]
    rows = {row.device: row for row in up}
    values = {"layer0": 4 * 8 * 8, COMMON: 16 * 2 * 2}
    assert rows[0].raw_bytes == 4 * SIZES[0] * values["layer0"]
    assert rows[2].raw_bytes == 4 * SIZES[2] * values[COMMON]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_lost_device_leaves_the_others_as_they_are(scheme: str) -> None:
    """A device that is lost in a round is lost with the layers behind its cut."""

    class Losing(LocalLink):
        def train(self, requests: Any) -> Any:
            answers = super().train(requests)
            for key, request in requests.items():
                if key == 1 and request.step == 2:
                    answers[key] = self._call(key, _refuse)
            return answers

    settings = {"make_link": Losing, "on_device_error": "drop", "scheme": scheme}
    one, back = train(None, **settings)
    other, other_back = train(OWN, **settings)
    assert all(set(r.lost) == {1} for r in other.rounds)
    assert_same(one.front, other.front)
    assert_same(back, other_back)


def _refuse(half: Any) -> Any:
    raise DeviceError("unplugged")


def test_what_does_not_fit_behind_the_cut_is_its_devices_fault() -> None:
    """Smashed data that the layers behind a cut do not take lose their device only."""

    class Wrong(LocalLink):
        def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
            answers = super().train(requests)
            reply = answers.get(0)
            if isinstance(reply, TrainReply) and reply.smashed and requests[0].step:
                other = answers[3]
                assert isinstance(other, TrainReply)
                answers[0] = replace(reply, smashed=other.smashed)
            return answers

    one, _ = train(OWN, make_link=Wrong, on_device_error="drop", num_rounds=1)
    assert "does not go through the layers behind its cut" in one.rounds[0].lost[0]
    assert set(one.rounds[0].lost) == {0}


def test_a_device_that_is_cut_elsewhere_is_named() -> None:
    """A device whose front is not the one that its cut says is refused by name."""
    with pytest.raises(SettingError, match="device 0"):
        _train_mismatched()


def _train_mismatched() -> None:
    halves = cut(net(), at=COMMON)
    devices = [Device(cut(net(), at="layer1").front, sgd, images(8, 0))]
    server = ServerHalf(halves.back, CrossEntropyLoss(), sgd)
    cuts = DeviceCuts(net(), COMMON, {0: "layer0"}, sgd)
    front = halves.front.state_dict()
    train_locally(devices, front, server, num_rounds=1, cuts=cuts)


@pytest.mark.parametrize("scheme", ["sequential", "parallel"])
def test_a_resumed_run_is_the_one_that_was_not_broken(
    tmp_path: Path, scheme: str
) -> None:
    """What middles keep from round to round is saved and restored."""
    settings = {"scheme": scheme, "how": HOW["moments kept"]}
    whole, back = train(OWN, num_rounds=4, **settings)
    train(OWN, num_rounds=2, checkpoint=tmp_path, **settings)
    resumed, again = train(
        OWN, num_rounds=4, checkpoint=tmp_path, resume=True, **settings
    )
    assert_same(whole.front, resumed.front)
    assert_same(back, again)
    with pytest.raises(SettingError, match="cuts"):
        train({0: "layer0"}, num_rounds=5, checkpoint=tmp_path, resume=True, **settings)


class Odd(nn.Module):
    """Layers whose middle starts in place, holds a frozen norm and odd buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.inplace = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.BatchNorm2d(4)
        self.turned = Turned()
        self.fixed = nn.Linear(4, 4)
        self.last = nn.Linear(8 * 8 * 4, 5)
        for parameter in self.fixed.parameters():
            parameter.requires_grad_(False)
        self.frozen.eval()

    def train(self, mode: bool = True) -> "Odd":
        """Leave the frozen norm frozen."""
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frozen(self.norm(self.inplace(self.first(x))))
        return self.last(self.fixed(self.turned(x)).flatten(1))


class Turned(nn.Module):
    """Channels last, by a view; counts in a buffer that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x.permute(0, 2, 3, 1) * (1 + self.calls / 8)


def odd() -> nn.Module:
    """Return the odd model, the same each time."""
    torch.manual_seed(1)
    return Odd()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_odd_layers_behind_the_cut(scheme: str) -> None:
    """In-place starts, frozen norms and weights, layouts and lost buffers are kept."""
    at = {0: "first", 1: "norm", 2: "inplace", 3: "turned"}
    one, back = train(None, model=odd, common="fixed", scheme=scheme)
    other, other_back = train(at, model=odd, common="fixed", scheme=scheme)
    assert_same(one.front, other.front)
    assert_same(back, other_back)


def test_dropout_behind_the_cut_is_drawn_anew_for_each_device() -> None:
    """Noise in a middle is a function of seed, round, device and step."""

    def noisy() -> nn.Module:
        torch.manual_seed(2)
        layers = [nn.Flatten(), nn.Linear(192, 16), nn.Dropout(0.5), nn.Linear(16, 16)]
        return nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(16, 5))

    own = {0: "1", 1: "1"}
    one, _ = train(own, model=noisy, common="4")
    assert_same(one.front, train(own, model=noisy, common="4")[0].front)
    assert one.front.keys() == train({}, model=noisy, common="4")[0].front.keys()


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ({0: "layer3"}, "'layer3' and 'layer2': the first cut does not lie before"),
        ({0: "layer9"}, "device 0 cannot be cut at 'layer9'.*no module"),
        ({0: "fc"}, "device 0 cannot be cut at 'fc'"),
        ({-1: "layer1"}, "device -1"),
        ({"0": "layer1"}, "device '0'"),
        ({True: "layer1"}, "device True"),
    ],
)
def test_wrong_cuts_are_refused_before_training(at: Any, said: str) -> None:
    """A cut that the front does not have, and what is no device, are named."""
    with pytest.raises(SettingError, match=said):
        DeviceCuts(net(), COMMON, at, sgd)


def test_lightweight_training_is_refused_with_own_cuts() -> None:
    """Masks and quantized updates are of one front for all, and so refused."""
    with pytest.raises(SettingError, match="cuts="):
        train(OWN, lightweight=Lightweight(prune=0.3))


def test_the_limit_knows_the_largest_cut() -> None:
    """With an example, smashed data of a shallow cut are not taken for too many."""

    def wide() -> nn.Module:
        torch.manual_seed(3)
        layers = [nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 1, 8), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(1, 5))

    halves = cut(wide(), at="2", example=EXAMPLE)
    cuts = DeviceCuts(wide(), "2", {0: "0"}, sgd, example=EXAMPLE)
    devices = [Device(cut(wide(), at=at).front, sgd, images(8, 0)) for at in "02"]
    server = ServerHalf(halves.back, CrossEntropyLoss(), sgd)
    front = halves.front.state_dict()
    result = train_locally(devices, front, server, num_rounds=1, cuts=cuts)
    assert set(result.rounds[0].finished) == {0, 1}


def test_a_middle_that_cannot_take_one_example_says_so() -> None:
    """A device whose last batch is one example is refused for a norm behind its cut."""
    flat = [nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)]
    halves = cut(nn.Sequential(*flat), at="2")
    own = cut(copy.deepcopy(nn.Sequential(*flat)), at="1").front
    server = ServerHalf(halves.back, CrossEntropyLoss(), sgd)
    cuts = DeviceCuts(nn.Sequential(*flat), "2", {0: "1"}, sgd)
    with pytest.raises(SettingError, match="drop_last"):
        train_locally(
            [Device(own, sgd, images(5, 0), batch_size=4)],
            halves.front.state_dict(),
            server,
            num_rounds=1,
            cuts=cuts,
        )


@pytest.mark.parametrize(
    ("up", "down"),
    [(Feedback(TopK(0.3)), Feedback(TopK(0.3))), (Temporal(Float16()), Float16())],
)
def test_codecs_with_a_memory_keep_it_at_the_own_cut(up: Codec, down: Codec) -> None:
    """What a codec keeps of a device has the shape of its own cut."""
    result, _ = train(OWN, up=up, down=down, num_rounds=3, evaluate=False)
    assert all(not r.lost for r in result.rounds)
    losses = [r.loss for r in result.rounds]
    assert losses[-1] < losses[0]


def test_layers_that_diverge_behind_the_cut_do_not_enter_the_mean() -> None:
    """A last step that takes a middle to infinity loses its device."""

    def infinite(parameters: Any) -> torch.optim.Optimizer:
        return SGD(parameters, lr=float("inf"))

    halves = cut(net(), at=COMMON)
    at = {0: "layer0"}
    fronts = [cut(net(), at=at.get(i, COMMON)).front for i in range(2)]
    devices = [Device(f, sgd, images(4, i), batch_size=4) for i, f in enumerate(fronts)]
    server = ServerHalf(halves.back, CrossEntropyLoss(), sgd)
    result = train_locally(
        devices,
        halves.front.state_dict(),
        server,
        num_rounds=1,
        cuts=DeviceCuts(net(), COMMON, at, infinite),
        on_device_error="drop",
    )
    assert "NaN or infinity" in result.rounds[0].lost[0]
    assert all(bool(t.isfinite().all()) for t in result.front.values())
