"""A residual stays with its channels."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from flwr_slfac import Lightweight
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Feedback, Identity, TopK
from flwr_slfac.lightweight.pruning import FullCutMask, PartialCutMask
from flwr_slfac.split import Begin, DeviceHalf, Fronts, LocalLink, Place, Rounds
from flwr_slfac.split.crossing import DeviceEnd, ServerEnd
from flwr_slfac.split.lasting import recalled, remembered
from flwr_slfac.traffic import Traffic
from tests.split import builders

still = partial(SGD, lr=0.0)
coarse = Feedback(TopK(fraction=0.1))


class Recording(LocalLink):
    """Notes the frames of a round, both ways."""

    def __init__(self, halves: Any) -> None:
        super().__init__(halves)
        self.frames: list[bytes] = []

    def train(self, requests: Any) -> Any:
        """Note gradients and activations."""
        answers = super().train(requests)
        self.frames += [r.gradient for r in requests.values() if r.gradient]
        self.frames += [a.smashed.activations for a in answers.values() if a.smashed]
        return answers


def front_with(large: list[int]) -> nn.Module:
    """Return a front of four channels of which two are important."""
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        front[0].weight[large] *= 10
    return front


def second_round(
    first: nn.Module | None, second: nn.Module, **ways: Any
) -> list[bytes]:
    """Return the frames of a round, after one with another front, or none."""
    torch.manual_seed(1)
    back = nn.Sequential(nn.Flatten(), nn.Linear(144, builders.NUM_CLASSES))
    fronts = Fronts(Lightweight(prune=0.5), relay=False)
    server = builders.server(back, optimizer=still)
    rounds = Rounds(server, ways.get("down", Identity()), Traffic(), 10**6, fronts)
    device = builders.devices(second, [8], optimizer=still)[0]
    link = Recording([DeviceHalf(device, 0)])
    begin = Begin(1, 0, None, ways.get("up", Identity()), RELEASE)
    for server_round, front in ((1, first), (2, second)):
        if front is None:
            continue
        link.frames.clear()
        whole = fronts.take(front.state_dict())
        begin = replace(begin, server_round=server_round, front=whole)
        rounds.train(link, [0], begin)
    return list(link.frames)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_residual_of_other_channels_is_dropped(way: str) -> None:
    """When as many other channels are sent, the round is that of a new device.

    With the same channels the residual goes on.
    """
    ways = {way: coarse}
    one, other = front_with([0, 1]), front_with([2, 3])
    assert second_round(one, other, **ways) == second_round(None, other, **ways)
    assert second_round(other, other, **ways) != second_round(None, other, **ways)


def test_what_is_remembered_is_recalled_for_the_same_channels() -> None:
    """Memory is marked with its channels; an empty one is not kept at all."""
    memory = {"feedback.residual": torch.ones(2)}
    some, others = (
        PartialCutMask(1, 4, torch.tensor(index)) for index in ([0, 1], [2, 3])
    )
    every = PartialCutMask(1, 4, torch.arange(4))
    for one in (some, others, every, FullCutMask()):
        kept = remembered(memory, one)
        assert remembered({}, one) == {}
        for two in (some, others, every, FullCutMask()):
            whole = (every, *[m for m in (one, two) if isinstance(m, FullCutMask)])
            same = one is two or (one in whole and two in whole)
            assert recalled(kept, two) == (memory if same else {})


def test_it_stays_with_them_where_a_mask_is_renewed_within_a_round() -> None:
    """Both ends forget it where channels change, and keep it where they do not."""
    even, odd = (PartialCutMask(1, 4, torch.arange(i, 4, 2)) for i in (0, 1))
    place, lost = Place(0, 1, 0), {"residual": torch.ones(8, 2)}
    for now, kept in ((even, lost), (odd, {}), (FullCutMask(), {})):
        device = DeviceEnd(coarse, [], place, lost)
        device.renew(even, now)
        assert device.lasting.keys() == kept.keys()
        server = ServerEnd(None, place, even, None, dict(lost))  # type: ignore[arg-type]
        server.renew(now)
        assert server.down.keys() == kept.keys()
