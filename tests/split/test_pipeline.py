"""pipeline_depth=1 is its definition: each forward runs one update behind."""

import copy
import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim import SGD, Adam, NAdam
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.checkpoint import checkpoint

from flwr_slfac import Lightweight, cut
from flwr_slfac.codec import parse_codec
from flwr_slfac.errors import SettingError, TrainingError
from flwr_slfac.split import (
    Device,
    DeviceHalf,
    LocalLink,
    Lost,
    ServerHalf,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.batches import fetch
from flwr_slfac.split.place import seed_for, seeded
from flwr_slfac.split.protocol import TrainAnswer
from tests.flower.oracle import LossyLink
from tests.split import builders
from tests.split.test_device_half import ForgetfulLink, StutteringLink
from tests.split.test_equivalence import CUTS, FAMILIES, NUM_STEPS
from tests.split.test_unusual_models import FRONTS as UNUSUAL

CPU = torch.device("cpu")
OPTIMIZERS = {
    "momentum": partial(SGD, lr=0.05, momentum=0.9),
    "adam": partial(Adam, lr=1e-3),
    "nadam": partial(NAdam, lr=1e-3, weight_decay=0.1),
}


class AheadLink(LocalLink):
    """Runs each forward before it is asked for, as a stream does."""

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Answer, then run ahead; what was ahead is what is then answered."""
        expected = getattr(self, "ahead", {})
        answers = super().train(requests)
        for key, early in expected.items():
            if early is not None and key in answers and requests[key].begin is None:
                answer = answers[key]
                assert isinstance(answer, Lost) or answer.smashed == early.smashed
        self.ahead = {k: self._halves[k].run_ahead() for k in requests}
        return answers


def by_definition(
    front: nn.Module,
    back: nn.Module,
    loss: Any,
    device: Device,
    make: Any,
    *,
    clip_norm: float | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Train in one loop of plain PyTorch; the front's forwards are one update behind.

    Forward k runs with the weights after updates 0 to k - 2; its gradient, at these
    weights, is what update k changes the newest weights by. Buffers follow forwards.
    """
    front.train()
    back.train()
    tuned, tuned_back = make(front.parameters()), make(back.parameters())
    order = device.batches(0, 1, 0)
    versions = [clones(front)]
    for k in range(order.num_steps):
        with seeded(seed_for(0, 1, 0, k, "data"), CPU):
            x, y = fetch(device.train_set, order.indices(k))
        stale = {
            n: p.clone().requires_grad_() for n, p in versions[max(0, k - 1)].items()
        }
        with seeded(seed_for(0, 1, 0, k, "forward"), CPU):
            out = functional_call(front, stale, (x,))
        seen = out.detach().clone().requires_grad_()
        tuned_back.zero_grad()
        with seeded(seed_for(0, 1, -1, k, "back"), CPU):
            value = loss(back(seen.clone()), y)
        value.backward()
        tuned_back.step()
        gradients = torch.autograd.grad(
            out, list(stale.values()), seen.grad, allow_unused=True
        )
        for parameter, gradient in zip(front.parameters(), gradients, strict=True):
            parameter.grad = gradient
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(front.parameters(), clip_norm)
        tuned.step()
        versions.append(clones(front))
    return front, back


def clones(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the parameters by name."""
    return {n: p.detach().clone() for n, p in module.named_parameters()}


ENGINES = [LocalLink, ForgetfulLink, AheadLink]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("optimizer", "link"), list(zip(OPTIMIZERS, ENGINES, strict=True))
)
def test_depth_one_is_its_definition(
    family: str, optimizer: str, link: type[LocalLink]
) -> None:
    """Every engine ends in the bits of a slow loop that keeps all weights."""
    torch.manual_seed(3)
    build, make_data, loss = FAMILIES[family]
    split = cut(build(), at=CUTS[family][1])
    front, back = copy.deepcopy(split.front), copy.deepcopy(split.back)
    make = OPTIMIZERS[optimizer]
    settings = {"train_set": make_data(), "batch_size": 8, "epochs": 4}
    device = Device(split.front, optimizer=make, **settings)  # type: ignore[arg-type]
    server = ServerHalf(split.back, loss, make)  # type: ignore[arg-type]
    result = train_locally(
        [device], front.state_dict(), server, num_rounds=1, evaluate=False,
        pipeline_depth=1, make_link=link,
    )  # fmt: skip
    assert result.rounds[0].num_steps == NUM_STEPS
    by_definition(front, back, loss, device, make)
    builders.assert_same(dict(result.front), front.state_dict())
    builders.assert_same(server.snapshot(), back.state_dict())


class Recurrent(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.LSTM(6, 6, batch_first=True, num_layers=2, dropout=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of three channels."""
        return self.rows(x[:, 0])[0][:, None].expand(-1, 3, -1, -1)


class TwoOutputs(nn.Module):
    """Two branches that meet in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of three channels."""
        return torch.cat([self.one(x).relu(), self.other(x).sigmoid()], dim=1)


class Normalised(nn.Module):
    """A filter under a spectral norm, whose buffers follow each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(
            nn.Conv2d(1, 3, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of three channels."""
        return self.conv(x).relu()


class Running(nn.Module):
    """A mean of what it saw, changed in place and used by the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.register_buffer("mean", torch.ones(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of three channels."""
        out = self.conv(x)
        self.mean.mul_(0.9).add_(out.detach().mean((0, 2, 3))[:, None, None])
        return out.square() * self.mean.sigmoid()


class Checkpointed(nn.Module):
    """Layers whose activations are computed again in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of three channels."""
        return checkpoint(self.layers, x, use_reentrant=False)


FRONTS = {
    **UNUSUAL,
    "lstm": Recurrent,
    "branches": TwoOutputs,
    "spectral norm": Normalised,
    "running mean": Running,
    "activation checkpoints": Checkpointed,
    "norm and dropout": lambda: builders.halves(dropout=0.3)[0],
}
# functional_call does not reach a backward; a frozen front has a test of its own.
UNDEFINED = ("activation checkpoints", "no weights")


def run(front: nn.Module, link: type[LocalLink] = LocalLink, **settings: Any) -> Any:
    """Train devices of an uneven number of steps for three rounds."""
    _, back = builders.halves(norm=False, dropout=0.3)
    given = {"keep_optimizer": True, **settings.pop("device", {})}
    server = builders.server(back, settings.pop("scheme", "parallel"))
    result = train_locally(
        builders.devices(front, settings.pop("sizes", [40, 20, 8]), **given),
        front.state_dict(),
        server,
        num_rounds=3,
        make_link=link,
        evaluate=False,
        **{"pipeline_depth": 1, **settings},
    )
    return {**result.front, **{f"back.{k}": v for k, v in server.snapshot().items()}}


@pytest.mark.parametrize("kind", FRONTS)
def test_unusual_fronts_are_pipelined_as_defined(kind: str) -> None:
    """Tied, frozen, recurrent, normalised: the definition's bits, in every engine."""
    torch.manual_seed(0)
    front = FRONTS[kind]()
    builders.assert_same(run(front), run(front, AheadLink))
    builders.assert_same(run(front), run(front, ForgetfulLink))
    if kind in UNDEFINED:
        return
    _, back = builders.halves(norm=False, dropout=0.3)
    (device,) = builders.devices(front, [80], clip_norm=0.5)
    server = builders.server(back)
    result = train_locally(
        [device], front.state_dict(), server, num_rounds=1, evaluate=False,
        pipeline_depth=1,
    )  # fmt: skip
    mine, own = copy.deepcopy(front), copy.deepcopy(back)
    by_definition(mine, own, nn.CrossEntropyLoss(), device, builders.sgd, clip_norm=0.5)
    builders.assert_same(dict(result.front), mine.state_dict())
    builders.assert_same(server.snapshot(), own.state_dict())


SETTINGS: dict[str, dict[str, Any]] = {
    "sequential": {"scheme": "sequential"},
    "sflv1": {"scheme": "sflv1"},
    "sflv2": {"scheme": "sflv2"},
    "schedule per step": {
        "device": {
            "scheduler": partial(CosineAnnealingLR, T_max=20),
            "scheduler_per": "step",
            "clip_norm": 0.5,
        }
    },
    "few steps": {"device": {"max_steps": 2}},
    "proximal": {"proximal_mu": 0.1},
    "codecs with a memory": {
        "up": parse_codec("feedback(inner=topk(fraction=0.2))"),
        "down": parse_codec("feedback(inner=topk(fraction=0.2))"),
    },
    "lightweight": {
        "up": parse_codec("waterfill(nrmse=0.2)"),
        "lightweight": Lightweight(
            prune=0.3, gradient_bits=8, update_bits=8, error_feedback=True,
            activation_dropout=0.3, aggregate_every=2, period="round", saved_bits=8,
        ),
    },
    "single weights pruned": {
        "lightweight": Lightweight(prune=0.3, structured=False, gradient_bits=4)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_needs_no_live_object(name: str) -> None:
    """Ahead, from stored bytes, and asked twice: one result, which is not depth 0's."""
    front, _ = builders.halves(dropout=0.3)
    once = run(front, **SETTINGS[name])
    for link in (AheadLink, ForgetfulLink, StutteringLink):
        builders.assert_same(once, run(front, link, **SETTINGS[name]))
    unpipelined = run(front, **SETTINGS[name], pipeline_depth=0)
    assert any(not torch.equal(once[k], unpipelined[k]) for k in once)


@pytest.mark.parametrize(
    "settings", [{"device": {"max_steps": 1}}, {"sizes": [8, 8, 8]}], ids=str
)
def test_rounds_of_one_step_are_those_of_depth_zero(settings: dict[str, Any]) -> None:
    """Where nothing can be ahead nothing is behind."""
    front, _ = builders.halves(dropout=0.3)
    builders.assert_same(
        run(front, **settings), run(front, **settings, pipeline_depth=0)
    )


def test_a_frozen_front_is_that_of_depth_zero() -> None:
    """Weights that are not updated cannot be stale; buffers follow forwards alike."""
    front, _ = builders.halves(dropout=0.3)
    front.requires_grad_(requires_grad=False)
    builders.assert_same(run(front), run(front, pipeline_depth=0))


def test_a_device_lost_between_two_steps_loses_nobody_elses_work() -> None:
    """A device that falls silent at any step: the same bits, ahead or not."""

    class Lossy(LossyLink):
        def __init__(self, halves: Any) -> None:
            super().__init__(halves, {(0, 1): 2, (1, 2): 1}, lambda _, begin: begin)

    class LossyAhead(AheadLink, Lossy):
        pass

    front, _ = builders.halves(dropout=0.3)
    builders.assert_same(run(front, Lossy), run(front, LossyAhead))


def hooked() -> nn.Module:
    """Return a front with a hook on a weight."""
    front = Recurrent()
    front.rows.weight_ih_l0.register_hook(lambda gradient: 2 * gradient)
    return front


class Counting(nn.Module):
    """Counts its forwards in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.count = nn.Conv2d(1, 3, 3, padding=1), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of three channels, larger each time."""
        self.count += 1
        return self.conv(x) * self.count


class Drawing(Counting):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = random.Random(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of three channels."""
        return self.conv(x) * self.noise.random()


class Computed(Counting):
    """Holds a tensor with a graph, which nothing copies."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 2 * self.conv.bias.sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of three channels."""
        return self.conv(x) * self.scale.detach()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (hooked, "hook on the front's 'rows.weight_ih_l0'"),
        (Counting, "changes 'count'"),
        (Drawing, "changes 'noise'"),
        (Computed, "cannot be copied"),
    ],
)
def test_what_two_copies_would_not_do_is_refused(build: Any, reason: str) -> None:
    """A front that is not the sum of its tensors is named before a step is taken."""
    front = build()
    before = copy.deepcopy(front.conv.state_dict()) if hasattr(front, "conv") else {}
    _, back = builders.halves(norm=False)
    server = builders.server(back)
    device = Device(front, optimizer=builders.sgd, train_set=builders.data(16))
    with pytest.raises(SettingError, match=reason):
        train_locally(
            [device], front.state_dict(), server, num_rounds=1, pipeline_depth=1
        )
    builders.assert_same(server.snapshot(), back.state_dict())
    builders.assert_same(before, front.conv.state_dict() if before else {})


@pytest.mark.parametrize("depth", [-1, 2, True, 0.5, None])
def test_other_depths_are_refused(depth: Any) -> None:
    """A depth is 0 or 1."""
    with pytest.raises(SettingError, match="pipeline_depth is"):
        run(builders.halves()[0], pipeline_depth=depth)


def test_a_device_that_is_ahead_has_no_snapshot() -> None:
    """What is ahead is in no stored state, and is not left out silently."""
    front, _ = builders.halves()
    halves: list[DeviceHalf] = []

    class Keeping(AheadLink):
        def __init__(self, made: Any) -> None:
            super().__init__(made)
            halves.extend(made)

        def train(self, requests: Any) -> Any:
            answers = super().train(requests)
            if any(request.step == 0 for request in requests.values()):
                with pytest.raises(TrainingError, match="is ahead"):
                    halves[0].snapshot()
            return answers

    run(front, Keeping)
    assert halves
    assert halves[0].run_ahead() is None
