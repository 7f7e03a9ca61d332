"""A run in one process that is broken off and resumed is the run that was not."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR

from flwr_slfac import CheckpointError, Lightweight, SettingError, load_checkpoint
from flwr_slfac.codec import Feedback, Temporal, TopK, Uniform, Waterfill
from flwr_slfac.split import LocalLink, LocalResult, TrainRequest, train_locally
from tests.split.builders import assert_same, devices, halves, server
from tests.split.test_lightweight import net

ROUNDS = 4


class PowerCutError(Exception):
    """Ends a run in the middle of a round."""


def breaking_in(server_round: int) -> type[LocalLink]:
    """Return a link that breaks in a round's second step; 0 for one that does not."""

    class Breaking(LocalLink):
        now = 0

        def train(self, requests: Mapping[int, TrainRequest]) -> Any:
            for request in requests.values():
                if request.begin is not None:
                    self.now = request.begin.server_round
                elif self.now == server_round:
                    raise PowerCutError
            return super().train(requests)

    return Breaking


def run(
    case: Mapping[str, Any], folder: Path | None, breaks_in: int = 0, **settings: Any
) -> tuple[LocalResult, nn.Module]:
    """Train a case; every object is made anew, as in another process."""
    torch.manual_seed(0)
    front, back = case.get("model", halves)()
    half = server(back, case.get("scheme", "parallel"), **case.get("server", {}))
    result = train_locally(
        devices(front, [20, 12, 16], **case.get("device", {})),
        front.state_dict(),
        half,
        make_link=breaking_in(breaks_in),
        checkpoint=folder,
        **{"num_rounds": ROUNDS, **case.get("run", {}), **settings},
    )
    return result, half.back


def told(result: LocalResult) -> list[Any]:
    """Return all that a run told, fronts and seconds left out."""
    rows = [
        {k: v for k, v in asdict(row).items() if k != "seconds"}
        for row in result.traffic.rows()
    ]
    rounds = [
        (r.num_steps, r.aggregates, r.handed_on, r.lost, repr(r.loss), r.costs)
        for r in result.rounds
    ]
    return [rows, rounds, [repr(e) for e in result.evaluations]]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "relay": {"scheme": "sequential"},
    "copies": {"scheme": "sflv1", "server": {"optimizer": partial(Adam, lr=1e-2)}},
    "moments": {
        "device": {"optimizer": partial(Adam, lr=1e-2), "keep_optimizer": True}
    },
    "schedule by step": {
        "device": {
            "scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=60),
            "scheduler_per": "step",
        }
    },
    "feedback both ways": {
        "run": {"up": Feedback(TopK(0.2)), "down": Feedback(TopK(0.2))}
    },
    "samples": {"run": {"up": Temporal(Waterfill(nrmse=0.2))}},
    "choices": {
        "run": {"up": Waterfill(nrmse=0.2, bits=1.0), "down": Waterfill(bits=2)}
    },
    "samples in a relay": {
        "scheme": "sequential",
        "run": {"up": Temporal(Uniform(4), bits=8)},
    },
    "dropout": {"model": partial(halves, dropout=0.3)},
    "no evaluation": {"run": {"evaluate": False}},
    "fedprox": {"run": {"proximal_mu": 0.1}},
    "period of steps": {
        "model": net,
        "run": {
            "lightweight": Lightweight(
                prune=0.4, update_bits=4, error_feedback=True, aggregate_every=1
            )
        },
    },
    "control variates": {
        "model": net,
        "run": {
            "lightweight": Lightweight(
                prune=0.4, aggregate_every=1, control_variates=True
            )
        },
        "device": {"optimizer": partial(SGD, lr=0.05)},
    },
    "renewed masks": {
        "model": net,
        "run": {
            "lightweight": Lightweight(
                prune=0.4,
                structured=False,
                update_bits=4,
                error_feedback=True,
                aggregate_every=1,
                renew_every=1,
                remask_every=3,
            )
        },
    },
    "lightweight": {
        "model": net,
        "run": {
            "lightweight": Lightweight(
                prune=0.4, gradient_bits=8, update_bits=8, activation_dropout=0.2
            )
        },
    },
    "pruned gradually": {
        "model": net,
        "run": {
            "lightweight": Lightweight(
                prune=0.5, prune_rounds=3, criterion="increase", update_bits=8
            )
        },
    },
    "fronts that stay": {
        "model": net,
        "run": {
            "lightweight": Lightweight(
                gradient_bits=8, aggregate_every=2, period="round"
            )
        },
    },
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("breaks_in", [2, 4])
def test_a_resumed_run_is_the_one_that_was_not_broken_off(
    name: str, breaks_in: int, tmp_path: Path
) -> None:
    """Weights, traffic, losses, metrics; what devices keep is restored as well."""
    case = CASES[name]
    expected, back = run(case, None)
    with pytest.raises(PowerCutError):
        run(case, tmp_path, breaks_in)
    resumed, its_back = run(case, tmp_path, resume=True)
    assert_same(dict(expected.front), dict(resumed.front))
    assert_same(back.state_dict(), its_back.state_dict())
    assert told(resumed) == told(expected)
    saved = load_checkpoint(tmp_path)
    assert saved.server_round == ROUNDS
    assert_same(dict(saved.front), dict(expected.front))


def test_a_run_that_ended_is_not_run_again(tmp_path: Path) -> None:
    """Resumed after its last round it says what it came to."""
    first, back = run({}, tmp_path)
    again, its_back = run({}, tmp_path, resume=True)
    assert_same(dict(first.front), dict(again.front))
    assert_same(back.state_dict(), its_back.state_dict())
    assert told(again) == told(first)


def test_other_runs_are_refused_by_name(tmp_path: Path) -> None:
    """Another seed, codec, number of devices, or a folder that is taken."""
    run({}, tmp_path, num_rounds=1)
    with pytest.raises(SettingError, match="holds checkpoints of another run"):
        run({}, tmp_path)
    with pytest.raises(SettingError, match="seed was 0 and is 5"):
        run({"run": {"seed": 5}}, tmp_path, resume=True)
    with pytest.raises(SettingError, match="up was 'identity' and is 'topk"):
        run({"run": {"up": TopK(0.5)}}, tmp_path, resume=True)
    with pytest.raises(SettingError, match="evaluate was True and is False"):
        run({"run": {"evaluate": False}}, tmp_path, resume=True)
    with pytest.raises(SettingError, match="give a folder, or None"):
        run({}, "")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="resume=True needs checkpoint="):
        run({}, None, resume=True)


def test_what_a_device_keeps_and_cannot_be_stored_is_named(tmp_path: Path) -> None:
    """The run ends at its first checkpoint, not when it is resumed."""

    class Odd(Adam):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            for state in self.state.values():
                state["odd"] = object()

    case = {"device": {"optimizer": partial(Odd, lr=1e-2), "keep_optimizer": True}}
    with pytest.raises(CheckpointError, match=r"devices.*builtins\.object"):
        run(case, tmp_path)
