"""Samples that both sides remember from round to round, and how they begin anew."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from flwr_slfac import Lightweight, SettingError
from flwr_slfac.codec import Codec, SampleMemory, Temporal, Uniform, Waterfill, decode
from flwr_slfac.codec.temporal.header import Header, Samples
from flwr_slfac.codec.wire import unpack_frame
from flwr_slfac.errors import AllDevicesLostError, DeviceError
from flwr_slfac.split import (
    Dropout,
    LocalLink,
    LocalResult,
    Lost,
    TrainReply,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.batches import OrderRule
from flwr_slfac.split.place import Place
from tests.split import builders

temporal = Temporal(Waterfill(nrmse=0.2))
SIZES = [24, 20, 16]


class Watching(LocalLink):
    """Notes the frames of each device and round; devices may be lost or forget.

    Parameters
    ----------
    halves
        Of the devices.
    lost : mapping of (int, int) to int
        The step from which a device's answers are lost, by device and round.
    forgets : set of (int, int)
        Devices that begin a round without what they kept.
    """

    def __init__(
        self,
        halves: Any,
        lost: Mapping[tuple[int, int], int] | None = None,
        forgets: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        super().__init__(halves)
        self.lost, self.forgets = lost or {}, forgets
        self.now = 0
        self.told: dict[tuple[int, int], str] = {}
        self.orders: dict[tuple[int, int], tuple[int, ...]] = {}
        self.frames: dict[tuple[int, int], list[bytes]] = {}

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, Any]:
        """Call the devices, and lose answers."""
        for key, request in requests.items():
            if request.begin is not None:
                self.now = request.begin.server_round
                for recall in request.begin.cut_features:
                    self.told[key, self.now] = getattr(recall, "version", "")
                if (key, self.now) in self.forgets:
                    self._halves[key].kept = None
        answers: dict[int, Any] = super().train(requests)
        for key, answer in answers.items():
            if requests[key].step >= self.lost.get((key, self.now), 10**6):
                answers[key] = Lost("unplugged")
            elif isinstance(answer, TrainReply) and answer.smashed is not None:
                if order := answer.smashed.order:
                    self.orders[key, self.now] = order
                frames = self.frames.setdefault((key, self.now), [])
                frames.append(answer.smashed.activations)
        return answers

    def begun_anew(self) -> list[tuple[int, int]]:
        """Return the devices and rounds of frames that count on nothing before."""
        return [
            place
            for place, frames in sorted(self.frames.items())
            for frame in frames
            if not said(frame).version
        ]


def said(frame: bytes) -> Samples:
    """Return what the header of a frame of maps says of samples."""
    outer = unpack_frame(frame, max_elements=10**6)
    header = Header.of_bytes(outer.sections[0], outer.shape[0], outer.shape[1])
    assert header.samples is not None
    return header.samples


def train(
    up: Codec = temporal, num_rounds: int = 3, norm: bool = True, **settings: Any
) -> tuple[LocalResult, Watching]:
    """Train three devices; return the result and the link."""
    front, back = builders.halves(norm=norm)
    links: list[Watching] = []
    names = ("lost", "forgets")
    link = {name: settings.pop(name) for name in names if name in settings}

    def make_link(halves: Any) -> Watching:
        links.append(Watching(halves, **link))
        return links[0]

    device = settings.pop("device", {})
    result = train_locally(
        builders.devices(front, SIZES, **device),
        front.state_dict(),
        builders.server(back, settings.pop("scheme", "parallel")),
        num_rounds=num_rounds,
        up=up,
        make_link=make_link,
        on_device_error="drop",
        **settings,
    )
    return result, links[0]


@pytest.mark.parametrize("scheme", ["parallel", "sequential", "sflv1"])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_run_begins_once(scheme: str, depth: int) -> None:
    """Each device's first frame counts on nothing, all others on those before."""
    _, link = train(scheme=scheme, pipeline_depth=depth)
    assert link.begun_anew() == [(device, 1) for device in range(3)]


def still(num_rounds: int, **device: Any) -> LocalResult:
    """Train with fronts that do not change."""
    settings = {"optimizer": partial(SGD, lr=0.0), **device}
    return train(num_rounds=num_rounds, norm=False, device=settings)[0]


def up_bytes(result: LocalResult, server_round: int) -> int:
    """Return the bytes of activations in a round's training."""
    rows = result.traffic.rows(server_round=server_round, phase="train")
    return sum(row.num_bytes for row in rows if row.direction == "up")


def test_a_front_that_rests_costs_headers_only() -> None:
    """From the second round on."""
    result = still(3)
    first, second, third = (up_bytes(result, n) for n in (1, 2, 3))
    num_frames = sum(size / 8 for size in SIZES) + 1
    assert first > 200 * num_frames
    assert max(second, third) < 100 * num_frames


def test_epochs_within_a_round_predict_each_other() -> None:
    """The second pass of the first round costs headers only."""
    once, twice = still(1), still(1, epochs=2)
    assert up_bytes(twice, 1) < 1.5 * up_bytes(once, 1)


def test_a_round_that_stops_early_goes_on_in_the_data() -> None:
    """With `max_steps` an epoch is several rounds, and predicts the next one."""
    result = still(6, max_steps=1)
    assert up_bytes(result, 5) < up_bytes(result, 1) / 2


def test_a_device_that_was_lost_goes_on_from_the_round_before() -> None:
    """What both sides learned in the round of its loss is forgotten by both."""
    _, link = train(num_rounds=4, lost={(1, 2): 1, (2, 3): 1})
    assert link.begun_anew() == [(device, 1) for device in range(3)]
    assert len(link.frames[1, 2]) == 1
    # The same version twice: before the round of the loss, and before the next one.
    assert link.told[1, 3] == link.told[1, 2] != link.told[1, 4]


def test_a_last_reply_that_is_lost_makes_the_device_begin_anew() -> None:
    """The device keeps more than the server; it is told so, and forgets it."""
    _, link = train(num_rounds=4, lost={(1, 2): 3})
    assert link.begun_anew() == [(0, 1), (1, 1), (1, 3), (2, 1)]


def test_a_device_that_forgot_begins_anew() -> None:
    """Alone; no other device does, and nobody is lost."""
    result, link = train(num_rounds=4, forgets=frozenset({(1, 3)}))
    assert link.begun_anew() == [(0, 1), (1, 1), (1, 3), (2, 1)]
    assert not any(outcome.lost for outcome in result.rounds)


def test_nodes_that_swap_partitions_begin_anew() -> None:
    """The server's samples are a partition's, a device's memory is its node's."""

    class Swapping(Watching):
        def devices(self, keys: list[int]) -> dict[int, int]:
            if self.now == 1 and len(self.frames) == len(SIZES):
                one, other = self._halves[0], self._halves[1]
                one.kept, other.kept = other.kept, one.kept
                self.now = 2
            return super().devices(keys)

    front, back = builders.halves()
    links: list[Swapping] = []

    def make_link(halves: Any) -> Swapping:
        links.append(Swapping(halves))
        return links[0]

    train_locally(
        builders.devices(front, SIZES),
        front.state_dict(),
        builders.server(back),
        num_rounds=3,
        up=temporal,
        evaluate=False,
        make_link=make_link,
    )
    first = [(device, 1) for device in range(3)]
    assert links[0].begun_anew() == sorted([*first, (0, 2), (1, 2)])


@pytest.mark.parametrize("max_bytes", [1, 100, 3000])
def test_a_memory_that_holds_next_to_nothing_changes_nothing(max_bytes: int) -> None:
    """Samples that are dropped at once are sent whole, by the same codec."""
    small = Temporal(Uniform(4), max_bytes=max_bytes)
    result, link = train(up=small, norm=False)
    assert link.begun_anew() == [(device, 1) for device in range(3)]
    if max_bytes < 3000:
        plain, _ = train(up=Uniform(4), norm=False)
        for name, value in plain.front.items():
            assert torch.equal(result.front[name], value)


def test_a_device_that_sits_rounds_out_is_remembered() -> None:
    """Its samples wait on both sides."""
    lost = {(1, n): 0 for n in (2, 3)}
    _, link = train(num_rounds=4, lost=lost)
    assert link.begun_anew() == [(device, 1) for device in range(3)]


def test_a_frame_of_another_memory_loses_the_device() -> None:
    """What a device says against better knowledge is its fault, never taken."""

    class Stubborn(Watching):
        def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, Any]:
            answers = super().train(requests)
            mine = answers.get(1)
            if self.now == 2 and mine and requests[1].step == 0:
                old = self.frames[1, 1][-1]
                smashed = replace(mine.smashed, activations=old)
                answers[1] = type(mine)(1, mine.num_steps, smashed)
            return answers

    front, back = builders.halves()
    run = partial(
        train_locally,
        builders.devices(front, [24, 24]),
        front.state_dict(),
        builders.server(back),
        num_rounds=2,
        up=temporal,
        make_link=Stubborn,
    )
    result = run(on_device_error="drop")
    assert "let both sides begin anew" in result.rounds[1].lost[1]
    with pytest.raises(DeviceError, match="begin anew"):
        run(on_device_error="raise")


def net() -> tuple[nn.Module, nn.Module]:
    """Return halves whose front's channels can be pruned."""
    torch.manual_seed(0)
    front = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
    )
    return front, nn.Sequential(nn.Flatten(), nn.Linear(144, builders.NUM_CLASSES))


def test_other_channels_begin_anew() -> None:
    """Under a mask with other channels nothing of before predicts."""
    front, back = net()
    links: list[Watching] = []

    def run(prune: Any) -> list[tuple[int, int]]:
        def make_link(halves: Any) -> Watching:
            links.append(Watching(halves))
            return links[-1]

        train_locally(
            builders.devices(front, [16]),
            front.state_dict(),
            builders.server(back),
            num_rounds=3,
            up=temporal,
            lightweight=Lightweight(prune=prune, update_bits=8),
            make_link=make_link,
        )
        return links[-1].begun_anew()

    assert run([0.0, 0.5, 0.5])[:2] == [(0, 1), (0, 2)]


@pytest.mark.parametrize("aggregate_every", [1, 2, 3])
@pytest.mark.parametrize("period", ["round", "step"])
def test_lightweight_training_goes_on(aggregate_every: int, period: str) -> None:
    """Fronts that stay on devices, or meet within a round, change nothing here."""
    setting = Lightweight(
        gradient_bits=8, aggregate_every=aggregate_every, period=period
    )
    result, link = train(num_rounds=4, lightweight=setting)
    assert link.begun_anew() == [(device, 1) for device in range(3)]
    assert not any(outcome.lost for outcome in result.rounds)


def test_test_data_stand_alone() -> None:
    """Frames of an evaluation are the inner codec's, and touch no memory."""
    with_it, link = train()
    without, other = train(evaluate=False)
    assert link.frames == other.frames
    rows = with_it.traffic.rows(phase="evaluate", directions=("up",))
    assert rows
    assert not without.traffic.rows(phase="evaluate")


def test_a_threshold_of_similarity_trains() -> None:
    """Samples that are left out get gradients like others; a rest costs headers."""
    like = Temporal(Waterfill(nrmse=0.2), threshold=0.9)
    result, link = train(up=like, num_rounds=4)
    assert link.begun_anew() == [(device, 1) for device in range(3)]
    assert result.rounds[-1].loss < result.rounds[0].loss
    settings = {"optimizer": partial(SGD, lr=0.0)}
    rests, _ = train(up=like, norm=False, device=settings)
    assert up_bytes(rests, 3) < up_bytes(rests, 1) / 3


def test_memory_is_bounded_on_both_sides() -> None:
    """By the setting: samples beyond it are sent whole."""
    small = Temporal(Uniform(4), max_bytes=2000)
    _, link = train(up=small)
    for half in link._halves.values():
        assert half.kept is not None
        samples = SampleMemory(half.kept["memory"])
        assert 0 < samples.num_bytes <= 2000
    large = Temporal(Uniform(4), max_bytes=2**27)
    _, link = train(up=large)
    assert link.begun_anew() == [(device, 1) for device in range(3)]


def test_what_cannot_be_carried_is_refused_before_training() -> None:
    """Gradients with a memory of samples, and features that move places."""
    with pytest.raises(SettingError, match="down='temporal' remembers samples"):
        train(down=temporal)
    with pytest.raises(SettingError, match="'temporal' predicts"):
        train(cut_features=[Dropout(0.2)])
    with pytest.raises(SettingError, match="'temporal' predicts"):
        train(lightweight=Lightweight(activation_dropout=0.2))


def test_frames_of_a_device_decode_in_their_order_alone() -> None:
    """All frames of a run, one after the other, by a decoder of anybody's."""
    _, link = train(num_rounds=3)
    for device in range(3):
        memory: dict[str, torch.Tensor] = {}
        for server_round in (1, 2, 3):
            rule = OrderRule.of_numbers(link.orders[device, server_round])
            order = rule.at(Place(0, server_round, device))
            for step, frame in enumerate(link.frames[device, server_round]):
                samples = order.indices(step).tolist()
                decode(frame, memory=memory, samples=samples)
            # What counts on the stream ends with the round.
            memory = {k: v for k, v in memory.items() if not k.startswith("stream.")}


def test_all_devices_lost_is_said() -> None:
    """With nobody left the run ends, and not in an error of the memory."""
    with pytest.raises(AllDevicesLostError):
        train(num_rounds=2, lost={(device, 2): 0 for device in range(3)})
