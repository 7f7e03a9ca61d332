"""pipeline_depth=1 is its definition: each forward runs one update behind."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim import SGD, Adam, NAdam

from flwr_slfac import cut
from flwr_slfac.split import (
    Device,
    LocalLink,
    ServerHalf,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.batches import fetch
from flwr_slfac.split.place import seed_for, seeded
from flwr_slfac.split.protocol import TrainAnswer
from tests.split import builders
from tests.split.test_device_half import ForgetfulLink
from tests.split.test_equivalence import CUTS, FAMILIES, NUM_STEPS

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
                assert answers[key].smashed == early.smashed  # type: ignore[union-attr]
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


@pytest.mark.parametrize("link", [LocalLink, ForgetfulLink, AheadLink])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_depth_one_is_its_definition(
    family: str, optimizer: str, link: type[LocalLink]
) -> None:
    """Every engine ends in the bits of a slow loop that keeps all versions."""
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
