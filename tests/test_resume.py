"""A run that is broken off and resumed is the run that was not."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid, strategy
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

from flwr_slfac import Lightweight
from tests.resumable import Case, assert_same_checkpoint, assert_same_run
from tests.split import builders
from tests.split.test_lightweight import net

light = partial(Lightweight, prune=0.4, gradient_bits=8)


class Decaying(strategy.FedAvg):
    """Lowers a rate in the configuration, as Flower's documentation shows."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.rate = float(config.get("rate", 0.5)) * 0.5
        config["rate"] = self.rate
        sent = ConfigRecord({})
        return super().configure_train(server_round, arrays, sent, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        state = arrays.to_torch_state_dict()
        moved = {n: t * (1 + self.rate / 100) for n, t in state.items()}
        return ArrayRecord(moved), metrics


class Moments:
    """What a strategy of a user's own remembers, in an object."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.rng = np.random.default_rng(3)


class Remembering(strategy.FedAvg):
    """Adds to its fronts noise and part of their sum so far."""

    def __init__(self) -> None:
        super().__init__()
        self.moments = Moments()

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        own = self.moments
        state = {n: t.double().numpy() for n, t in arrays.to_torch_state_dict().items()}
        for name, value in state.items():
            own.sums[name] = own.sums.get(name, 0) + value
            noise = own.rng.normal(size=value.shape) * 1e-3
            state[name] = np.asarray(value + noise + 1e-3 * own.sums[name])
        torches = {n: torch.from_numpy(v) for n, v in state.items()}
        return ArrayRecord(torches), metrics


class Exact(torch.optim.Optimizer):
    """Descent with momentum, the momentum in float64."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            moment = state.get("moment", torch.zeros_like(weight, dtype=torch.float64))
            state["moment"] = 0.9 * moment + weight.grad.double() / 3
            weight -= (0.05 * state["moment"]).to(weight.dtype)


class CountingNet(nn.Module):
    """A back with a counter that no state dict has, and complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(108, 4)
        self.phase = nn.Parameter(torch.ones(108, dtype=torch.complex64))
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            self.count += 1
        turned = (x.flatten(1) * self.phase).real
        return self.linear(turned) * (1 + self.calls / 100 + self.count / 50)


class Centred(nn.CrossEntropyLoss):
    """A loss that follows the mean of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if outputs.requires_grad:  # tests come in the order of node ids
            self.mean += 0.1 * (outputs.detach().mean() - self.mean)
        return super().forward(outputs * (1 + self.mean), targets)


def counting() -> tuple[nn.Module, nn.Module]:
    """Return a front, and a back with what is hard to save."""
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU())
    return front, CountingNet()


def steep(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return a loss at which float16 overflows until its scale has shrunk."""
    return 100 * nn.functional.cross_entropy(outputs, targets)


def noisy() -> strategy.Strategy:
    """Return adaptive clipping with noise on the server, by NumPy's own generator."""
    inner = strategy.FedAvg()
    return strategy.DifferentialPrivacyServerSideAdaptiveClipping(
        inner, noise_multiplier=0.01, num_sampled_clients=3
    )


CASES = {
    "parallel": Case(partial(strategy.FedAvg, fraction_train=0.7)),
    "sequential": Case(settings={"scheme": "sequential"}),
    "sflv1": Case(settings={"scheme": "sflv1"}),
    "sflv2": Case(settings={"scheme": "sflv2"}),
    "FedAdam": Case(partial(strategy.FedAdam, eta=0.01)),
    "FedYogi": Case(partial(strategy.FedYogi, eta=0.01)),
    "FedAvgM": Case(
        partial(strategy.FedAvgM, server_momentum=0.9),
        model=partial(builders.halves, norm=False),
    ),
    "FedTrimmedAvg": Case(strategy.FedTrimmedAvg),
    "adaptive clipping": Case(noisy),
    "own strategy": Case(Remembering),
    "config that changes": Case(Decaying),
    "schedule by step": Case(
        settings={
            "scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=100),
            "scheduler_per": "step",
        }
    ),
    "schedule by round": Case(
        settings={
            "optimizer": partial(Adam, lr=0.01, amsgrad=True),
            "scheduler": partial(MultiStepLR, milestones=[1, 3]),
            "clip_norm": 1.0,
        }
    ),
    "schedule of copies": Case(
        settings={
            "scheme": "sflv1",
            "scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=100),
            "scheduler_per": "step",
        }
    ),
    "exact moments": Case(settings={"optimizer": Exact}),
    "float16": Case(settings={"autocast": torch.float16, "loss": steep}),
    "bfloat16": Case(settings={"autocast": torch.bfloat16}),
    "what is hard to save": Case(settings={"scheme": "sflv2"}, model=counting),
    "loss with a memory": Case(settings={"scheme": "sflv2", "loss": Centred}),
    "residuals on the server": Case(
        settings={"down": "feedback(inner=topk(fraction=0.1))", "up": "waterfill"}
    ),
    "slfac": Case(settings={"up": "slfac(theta=0.8)", "down": "slfac"}),
    "lightweight": Case(settings={"lightweight": light()}, model=net),
    "lightweight relay": Case(
        settings={"lightweight": light(structured=False), "scheme": "sequential"},
        model=net,
    ),
    "lightweight sflv1": Case(
        settings={
            "lightweight": light(activation_dropout=0.3, remask_every=3),
            "scheme": "sflv1",
        },
        model=net,
    ),
    "masks by gradient": Case(
        settings={"lightweight": light(criterion="gradient")},
        model=partial(net, 12),
    ),
    "masks by increase": Case(
        settings={"lightweight": light(criterion="increase")}, model=net
    ),
    "unlike shares": Case(
        settings={
            "lightweight": Lightweight(
                prune=lambda _, profile: 0.4 * (profile["partition-id"] % 2)
            )
        },
        model=net,
    ),
    "fronts that stay": Case(
        settings={"lightweight": light(aggregate_every=2, period="round")},
        model=net,
        num_rounds=6,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_run_that_was_not_broken_off(
    name: str, tmp_path: Path
) -> None:
    """Weights, traffic, reports, costs, metrics and the last checkpoint are the same.

    So is what comes of a run that is not saved at all.
    """
    case = CASES[name]
    whole = case.run(tmp_path / "whole")
    assert_same_run(whole, case.run())
    folder = tmp_path / "run"
    case.run(folder, breaks_off_in=3, resume=True)
    resumed = case.run(folder, resume=True, torch_seed=1)
    assert_same_run(whole, resumed)
    assert_same_checkpoint(tmp_path / "whole", folder)
    assert resumed.central_rounds[0] == 3
    again = case.run(folder, resume=True)
    assert_same_run(whole, again)
    assert again.central_rounds == []


def test_samples_begin_anew_where_devices_forgot_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server remembers, the nodes are new: nobody is lost, and the log says so."""
    case = Case(settings={"up": "temporal(inner=waterfill(nrmse=0.2))"})
    case.run(tmp_path, breaks_off_in=3, resume=True)
    resumed = case.run(tmp_path, resume=True)
    assert [report.lost for report in resumed.split.reports] == [{}] * 4
    assert "what their codecs remember start anew on devices 0, 1, 2" in caplog.text
    through = case.run()
    for rows in zip(
        *(
            run.split.traffic.rows(server_round=3, phase="train", directions=("up",))
            for run in (through, resumed)
        ),
        strict=True,
    ):
        # Nothing of before predicts; as many frames cross.
        assert rows[0].num_messages == rows[1].num_messages
        assert rows[0].num_bytes != rows[1].num_bytes
