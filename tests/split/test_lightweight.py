"""Lightweight training keeps its laws in every scheme."""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import TensorDataset

from flwr_slfac import Lightweight, Traffic, cut
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Identity, parse_codec
from flwr_slfac.errors import DeviceError, SettingError
from flwr_slfac.lightweight import step_cost
from flwr_slfac.lightweight.activations import saved_in_8_bits
from flwr_slfac.lightweight.dropout import Per, Unit
from flwr_slfac.lightweight.pruning import (
    ChannelMask,
    channel_groups,
    channel_scores,
    choose_channels,
    increase,
    shrink,
)
from flwr_slfac.split import (
    Device,
    DeviceHalf,
    Fronts,
    LocalLink,
    LocalResult,
    Rounds,
    ServerHalf,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.local_run import merge_fronts
from flwr_slfac.split.protocol import Begin, TrainAnswer, TrainReply
from tests.models import vgg19_bn
from tests.split import builders
from tests.split.test_device_half import ForgetfulLink

SCHEMES = ("sequential", "sflv1", "sflv2", "parallel")
SIZES = [24, 16, 20]


def by_partition(server_round: int, profile: Mapping[str, object]) -> float:
    """Prune odd devices by half."""
    return 0.5 * (int(str(profile["partition-id"])) % 2)


SETTINGS = {
    "pruned": Lightweight(prune=0.5),
    "masked": Lightweight(prune=0.5, structured=False, criterion="gradient"),
    "grown": Lightweight(prune=0.5, criterion="increase", scope="global"),
    "unlike": Lightweight(prune=by_partition, gradient_bits=8, remask_every=2),
    "quantized": Lightweight(gradient_bits=4, error_feedback=True),
    "dropped": Lightweight(activation_dropout=0.3, dropout_unit="element"),
    "rare": Lightweight(aggregate_every=2, period="round", update_bits=6),
    "all": Lightweight(
        prune=[0.5, 0.25],
        gradient_bits=8,
        activation_dropout=0.25,
        aggregate_every=2,
        period="round",
        saved_bits=8,
    ),
}


class Witness(LocalLink):
    """Notes what begins and what comes back; may wipe a device's memory."""

    begins: list[tuple[int, Begin]]
    replies: list[tuple[int, TrainReply]]
    wiped: ClassVar[Mapping[int, int]] = {}

    def __init__(self, halves: Sequence[DeviceHalf]) -> None:
        super().__init__(halves)
        self.begins, self.replies = [], []
        Witness.last = self

    last: "Witness"

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Note requests that begin and replies that end."""
        for key, request in requests.items():
            if request.begin is None:
                continue
            self.begins.append((key, request.begin))
            if self.wiped.get(request.begin.server_round) == key:
                self._halves[key].kept = None
        answers = super().train(requests)
        for key, answer in answers.items():
            if isinstance(answer, TrainReply) and answer.done:
                self.replies.append((key, answer))
        return answers


def net(width: int = 4) -> tuple[nn.Module, nn.Module]:
    """Return a front of two convolutions and a back, for 6x6 images."""
    torch.manual_seed(0)
    front = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
    )
    back = nn.Sequential(nn.Flatten(), nn.Linear(36 * width, builders.NUM_CLASSES))
    return front, back


def run(
    setting: Lightweight | None,
    scheme: str = "parallel",
    make_link: type[LocalLink] = Witness,
    num_rounds: int = 4,
    **settings: object,
) -> LocalResult:
    """Train three devices."""
    front, back = net()
    return train_locally(
        builders.devices(front, SIZES, keep_optimizer=True),
        front.state_dict(),
        builders.server(back, scheme),  # type: ignore[arg-type]
        num_rounds=num_rounds,
        lightweight=setting,
        make_link=make_link,
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_default_setting_changes_no_bit(scheme: str) -> None:
    """With rho = 0, 32 bits, p = 0 and I = 1 the run is the plain one."""
    plain, light = run(None, scheme), run(Lightweight(), scheme)
    builders.assert_same(dict(plain.front), dict(light.front))
    assert plain.evaluations == light.evaluations
    assert [r.loss for r in plain.rounds] == [r.loss for r in light.rounds]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_scheme_trains_and_needs_no_live_object(
    scheme: str, setting: Lightweight
) -> None:
    """Rebuilt from bytes before each step, a run ends in the same bits; it learns."""
    # The relay's evaluations say nothing of its losses: leave them out.
    once = run(setting, scheme, evaluate=False)
    again = run(setting, scheme, ForgetfulLink, evaluate=False)
    builders.assert_same(dict(once.front), dict(again.front))
    assert once.rounds[-1].loss < once.rounds[0].loss


@pytest.mark.parametrize("structured", [True, False])
def test_a_schedule_per_step_goes_on_under_another_mask(structured: bool) -> None:
    """Masks change from round to round; the device's schedule does not restart."""
    rates: list[float] = []

    class Recording(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])
            super().step()

    front, back = net()
    setting = Lightweight(prune=[0.5, 0.25, 0.5], structured=structured)
    for keep in (True, False):
        rates.clear()
        train_locally(
            builders.devices(
                front,
                [16],
                optimizer=partial(Recording, lr=1.0, momentum=0.9),
                scheduler=partial(StepLR, step_size=1, gamma=0.5),
                scheduler_per="step",
                keep_optimizer=keep,
            ),
            front.state_dict(),
            builders.server(back),
            num_rounds=3,
            lightweight=setting,
            make_link=ForgetfulLink,
            evaluate=False,
        )
        assert rates == pytest.approx([0.5**i for i in range(6)])


def test_a_front_that_asks_for_values_has_a_cost() -> None:
    """What a step costs is counted, too, where the forward makes or reads tensors."""

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            x = x * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
            return self.layers(x) if float(x.sum()) > -1e9 else x

    front, x = Asking(), torch.randn(2, 1, 6, 6)
    state = torch.get_rng_state()
    cost = step_cost(front, front, x, saved_bits=8)
    plain = step_cost(front.layers, front.layers, x, saved_bits=8)
    assert cost == plain
    assert cost.forward_flops > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("how", ["clipped", "quantized"])
def test_gradients_of_pruned_weights_count_for_nothing(how: str) -> None:
    """Neither the norm that is clipped nor a quantizer's scale sees pruned weights.

    The pruned weight's gradient is a thousand times that of the others.
    """

    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.0, 2.0, 0.1, 3.0]]))

        def forward(self, x: Tensor) -> Tensor:
            factor = torch.tensor([1.0, 0.5, 1000.0, 0.25])
            return x * (self.weight * factor).sum()

    bits = 4 if how == "quantized" else 32
    setting = Lightweight(
        prune=0.25, structured=False, gradient_bits=bits, update_bits=32
    )
    torch.manual_seed(0)
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    device = Device(
        Loud(),
        partial(torch.optim.SGD, lr=1.0),
        TensorDataset(x, y),
        batch_size=4,
        shuffle=False,
        clip_norm=0.5 if how == "clipped" else None,
    )
    server = ServerHalf(nn.Identity(), nn.MSELoss(), partial(torch.optim.SGD, lr=0.0))
    result = train_locally(
        [device],
        Loud().state_dict(),
        server,
        num_rounds=1,
        lightweight=setting,
        evaluate=False,
    )
    own = Loud()
    kept = torch.tensor([[True, True, False, True]])
    with torch.no_grad():
        own.weight.mul_(kept)
    before = own.weight.detach().clone()
    nn.functional.mse_loss(own(x), y).backward()
    assert own.weight.grad is not None
    gradient = own.weight.grad * kept
    if how == "clipped":
        gradient = gradient / gradient.norm() * 0.5
    step = before - result.front["weight"]
    assert float(step[0, 2]) == 0
    # A quantizer of 4 bits has 7 levels, the largest gradient being the last.
    largest = gradient.abs().max()
    tolerance = 1e-5 if how == "clipped" else float(largest) / 7
    torch.testing.assert_close(step, gradient, rtol=1e-4, atol=tolerance)
    assert int(step.count_nonzero()) == 3


def test_pruned_channels_are_zero_and_do_not_travel() -> None:
    """A device downloads, runs and uploads half the channels; the others are zero."""
    result = run(Lightweight(prune=0.5), num_rounds=1)
    _, begin = Witness.last.begins[0]
    _, reply = Witness.last.replies[0]
    for state in (begin.front, reply.front):
        assert state is not None
        assert tuple(state["0.weight"].shape) == (2, 1, 3, 3)
        assert tuple(state["3.weight"].shape) == (2, 2, 3, 3)
    assert int((result.front["0.weight"].flatten(1).norm(dim=1) == 0).sum()) == 2
    weight = result.front["3.weight"]
    assert int((weight.flatten(1).norm(dim=1) == 0).sum()) == 2
    assert int((weight.transpose(0, 1).flatten(1).norm(dim=1) == 0).sum()) == 2
    # Activations of full shape reach the back, half of their channels crossed.
    plain = run(None, num_rounds=1)
    for direction in ("up", "down"):
        light, full = (
            r.traffic.rows(directions=[direction], phase="train")  # type: ignore[list-item]
            for r in (result, plain)
        )
        assert sum(c.num_bytes for c in light) < 0.55 * sum(c.num_bytes for c in full)
        assert [c.raw_bytes for c in light] == [c.raw_bytes for c in full]


def test_single_weights_are_zero_and_do_not_travel() -> None:
    """An unstructured mask sends kept weights only, and the rest is exactly zero."""
    result = run(Lightweight(prune=0.5, structured=False), num_rounds=1)
    _, begin = Witness.last.begins[0]
    _, reply = Witness.last.replies[0]
    assert begin.front is not None
    assert reply.front is not None
    for name, size in (("0.weight", 36), ("3.weight", 144)):
        assert begin.front[name].shape == reply.front[name].shape == (size // 2,)
        assert int((result.front[name] == 0).sum()) == size // 2


def test_pruned_weights_come_back_as_they_were() -> None:
    """Where nobody held a weight it stays, out of sight, until the share falls."""
    front, _ = net()
    first = dict(front.state_dict())
    # At a rate of zero nothing moves: what comes back is what was there at first.
    _, back = net()
    result = train_locally(
        builders.devices(front, SIZES, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)),
        first,
        builders.server(back),
        num_rounds=2,
        lightweight=Lightweight(prune=[0.5, 0.0]),
    )
    for name, tensor in first.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(result.front[name], tensor)


def test_masks_follow_the_weights() -> None:
    """A channel whose weights grow takes the place of another."""
    front, _ = net()
    channels = channel_groups(front, torch.zeros(1, 1, 6, 6))
    state = {k: v.clone() for k, v in front.state_dict().items()}
    before = choose_channels(channels, channel_scores(channels, state), 0.5)
    gone = int((~before.masks["0"]).nonzero()[0])
    state["0.weight"][gone] *= 100
    after = choose_channels(channels, channel_scores(channels, state), 0.5)
    assert bool(after.masks["0"][gone])


def test_growth_counts_what_training_added() -> None:
    """With no growth the order is drawn; a channel that grew stays, however small."""
    front, _ = net(8)
    channels = channel_groups(front, torch.zeros(1, 1, 6, 6))
    first = channel_scores(channels, front.state_dict())
    drawn = choose_channels(channels, increase(first, first), 0.5)
    again = choose_channels(channels, increase(first, first), 0.5)
    assert torch.equal(drawn.masks["0"], again.masks["0"])
    widest = choose_channels(channels, first, 0.5)
    assert not torch.equal(drawn.masks["0"], widest.masks["0"])
    gone = int((~drawn.masks["0"]).nonzero()[0])
    grown = {name: scores.clone() for name, scores in first.items()}
    grown["0"][gone] *= 1.01
    after = choose_channels(channels, increase(grown, first), 0.5)
    assert bool(after.masks["0"][gone])


def test_each_coordinate_is_the_mean_over_its_holders() -> None:
    """End to end: the slow loop over devices and coordinates, from the definition."""
    result = run(Lightweight(prune=by_partition), num_rounds=1)
    front, _ = net()
    previous = front.state_dict()
    channels = channel_groups(front, torch.zeros(1, 1, 6, 6))
    scores = channel_scores(channels, previous)
    mask = choose_channels(channels, scores, 0.5)
    totals = {n: torch.zeros(t.shape).double() for n, t in previous.items()}
    weights = {n: torch.zeros(t.shape).double() for n, t in previous.items()}
    for device, reply in Witness.last.replies:
        assert reply.front is not None
        for name, value in reply.front.items():
            full = torch.zeros(previous[name].shape).double()
            held = torch.ones(previous[name].shape, dtype=torch.bool)
            if device % 2:
                full = mask.put(name, value.double(), full)
                held = mask.held(name, tuple(full.shape))
            else:
                full = value.double()
            totals[name] += SIZES[device] * full
            weights[name] += SIZES[device] * held
    for name, total in totals.items():
        mean = total / weights[name]
        mean = mean if previous[name].is_floating_point() else mean.round()
        torch.testing.assert_close(
            result.front[name].double(), mean, rtol=1e-5, atol=1e-6
        )


def test_fronts_cross_only_where_they_are_aggregated() -> None:
    """With I = 2 over five rounds: down in 1, 3, 5 and up in 2, 4 and the last."""
    run(Lightweight(aggregate_every=2, period="round"), num_rounds=5)
    down = {(k, b.server_round) for k, b in Witness.last.begins if b.front is not None}
    assert down == {(k, r) for k in range(3) for r in (1, 3, 5)}
    up = [k for k, reply in Witness.last.replies if reply.front is not None]
    assert sorted(up) == sorted([*range(3)] * 3)


def test_the_global_front_is_that_of_the_last_aggregation() -> None:
    """In between nothing changes it; devices are tested with their own fronts."""
    result = run(Lightweight(aggregate_every=3, period="round"), num_rounds=3)
    assert [r.aggregates for r in result.rounds] == [False, False, True]
    assert len({e["loss"] for e in result.evaluations}) == 3


def test_a_device_that_lost_its_front_gets_the_global_one() -> None:
    """A device whose memory was wiped asks, is sent the front, and goes on."""

    class Wiping(Witness):
        wiped: ClassVar = {2: 1}

    result = run(
        Lightweight(aggregate_every=3, period="round"), make_link=Wiping, num_rounds=3
    )
    sent = [
        (key, begin.server_round)
        for key, begin in Witness.last.begins
        if begin.front is not None
    ]
    assert sent == [(0, 1), (1, 1), (2, 1), (1, 2)]
    assert all(len(r.finished) == 3 for r in result.rounds)


def test_updates_are_small_and_close() -> None:
    """At 8 bits the update is near the trained front, in a third of its bytes."""
    result = run(Lightweight(update_bits=8), num_rounds=1)
    plain = run(None, num_rounds=1)
    for name, tensor in plain.front.items():
        torch.testing.assert_close(result.front[name], tensor, atol=5e-3, rtol=0.05)
    rows = result.traffic.rows(directions=["model-up"])
    assert len(rows) == 3
    assert all(0 < row.num_bytes < row.raw_bytes for row in rows)


@pytest.mark.parametrize("codec", ["identity", "waterfill(nrmse=0.2)", "slfac"])
def test_dropped_channels_cost_no_byte(codec: str) -> None:
    """With dropout at the cut less crosses, both ways."""
    settings = {"up": parse_codec(codec), "down": parse_codec(codec)}
    plain = run(None, num_rounds=1, **settings)
    light = run(Lightweight(activation_dropout=0.25), num_rounds=1, **settings)
    for direction in ("up", "down"):
        sizes = [
            r.traffic.num_bytes(directions=[direction], phase="train")  # type: ignore[list-item]
            for r in (light, plain)
        ]
        assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("up", "down", "kind"),
    [
        ("identity", "float16", ("element", "example")),
        ("slfac", "slfac", ("channel", "example")),
        ("identity", "slfac", ("channel", "example")),
        ("waterfill(nrmse=0.2)", "slfac", ("channel", "batch")),
        ("identity", "waterfill(nrmse=0.2)", ("channel", "batch")),
    ],
)
def test_what_is_dropped_suits_both_codecs(
    up: str, down: str, kind: tuple[Unit, Per]
) -> None:
    """It is the finest that neither codes together; what the user says stays."""
    settings = {"up": parse_codec(up), "down": parse_codec(down)}
    unit, per = kind
    chosen = Lightweight(activation_dropout=0.25, dropout_unit=unit, dropout_per=per)
    open_ = run(Lightweight(activation_dropout=0.25), num_rounds=1, **settings)
    said = run(chosen, num_rounds=1, **settings)
    builders.assert_same(dict(open_.front), dict(said.front))
    assert chosen.fit(parse_codec("identity")) == chosen
    assert chosen.fit(parse_codec("powerquant(bits=4)")) == chosen


@pytest.mark.parametrize("unit", ["channel", "element"])
def test_maps_of_one_dimension_are_pruned_and_dropped(unit: Unit) -> None:
    """Pruning takes the first dimension of a map for its channels, dropout the last."""
    torch.manual_seed(0)
    front = nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 4, 3, padding=1), nn.ReLU())
    back = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, builders.NUM_CLASSES))
    result = train_locally(
        builders.devices(front, SIZES),
        front.state_dict(),
        builders.server(back, "parallel"),
        num_rounds=2,
        lightweight=Lightweight(prune=0.5, activation_dropout=0.3, dropout_unit=unit),
    )
    assert all(math.isfinite(r.loss) for r in result.rounds)


def test_costs_tell_what_each_reduction_saves() -> None:
    """A half pruned, 8-bit device: fewer operations, parameters, activations."""
    result = run(Lightweight(prune=0.5, saved_bits=8), num_rounds=1)
    cost = result.rounds[0].costs[0]
    convolution = 2 * 8 * 36 * 9  # a batch of 8, maps of 6x6, windows of 3x3
    assert cost.plain_forward_flops == convolution * (1 * 4 + 4 * 4)
    assert cost.forward_flops == convolution * (1 * 2 + 2 * 2)
    # The gradients of weights, and of all inputs but the image.
    assert cost.plain_backward_flops == convolution * (1 * 4 + 2 * 4 * 4)
    assert cost.plain_parameter_bytes == 4 * (36 + 4 + 8 + 144 + 4)
    assert cost.parameter_bytes == 4 * (18 + 2 + 4 + 36 + 2)
    assert cost.pruned_activation_bytes < 0.7 * cost.plain_activation_bytes


def test_costs_count_what_the_graph_holds() -> None:
    """Counted without values: the bytes that a real forward's graph holds."""
    front = cut(vgg19_bn(width=8), at="features.13").front
    images = torch.randn(4, 3, 32, 32)
    with saved_in_8_bits(front, enabled=False) as held:
        front(images)
    with saved_in_8_bits(front) as coded:
        front(images)
    cost = step_cost(front, front, images, 8)
    assert cost.plain_activation_bytes == held.num_bytes
    assert cost.activation_bytes == coded.num_bytes < 0.3 * held.num_bytes


def test_costs_leave_the_models_as_they_are() -> None:
    """Measuring moves no weight, buffer or random number."""
    front, _ = net()
    before = copy.deepcopy(front.state_dict())
    state = torch.random.get_rng_state()
    cost = step_cost(front, front, torch.randn(4, 1, 6, 6), 32)
    builders.assert_same(before, front.state_dict())
    torch.randn(4, 1, 6, 6)
    assert cost.forward_flops == cost.plain_forward_flops > 0
    assert state.shape == torch.random.get_rng_state().shape


BAD = {
    "rho of one": ({"prune": 1.0}, "ratio"),
    "rho below zero": ({"prune": -0.1}, "ratio"),
    "rho a text": ({"prune": "half"}, "prune"),
    "a bad schedule": ({"prune": [0.3, 1.5]}, "ratio"),
    "one bit": ({"gradient_bits": 1}, "gradient_bits"),
    "nine bits": ({"update_bits": 9}, "update_bits"),
    "saved in four": ({"saved_bits": 4}, "saved_bits"),
    "all dropped": ({"activation_dropout": 1.0}, "activation_dropout"),
    "an odd unit": ({"dropout_unit": "row"}, "unit"),
    "never": ({"aggregate_every": 0}, "aggregate_every"),
    "an odd criterion": ({"criterion": "luck"}, "criterion"),
    "growth of weights": ({"criterion": "increase", "structured": False}, "increase"),
    "scales of weights": ({"criterion": "scale", "structured": False}, "scale"),
}


@pytest.mark.parametrize(("fields", "word"), BAD.values(), ids=BAD.keys())
def test_bad_settings_are_refused_at_once(fields: dict[str, object], word: str) -> None:
    """The message names what is wrong."""
    with pytest.raises(SettingError, match=word):
        Lightweight(**fields)  # type: ignore[arg-type]


def test_a_share_out_of_range_from_a_function_is_refused() -> None:
    """What the user's function returns is checked before training."""
    with pytest.raises(SettingError, match="ratio"):
        run(Lightweight(prune=lambda server_round, profile: 1.5))


def test_a_front_that_cannot_be_pruned_is_named() -> None:
    """Grouped convolutions are named in the error, before a step is taken."""
    front = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1, groups=4))
    _, back = net()
    with pytest.raises(SettingError, match=r"`1`|'1'"):
        train_locally(
            builders.devices(front, SIZES),
            front.state_dict(),
            builders.server(back),
            num_rounds=1,
            lightweight=Lightweight(prune=0.5),
        )


class Forger(LocalLink):
    """Answers with an update of noise."""

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Replace every update."""
        answers = super().train(requests)
        forged = {
            k: TrainReply(**{**vars(a), "update": b"noise"})
            for k, a in answers.items()
            if isinstance(a, TrainReply) and a.update is not None
        }
        return {**answers, **forged}


def test_a_forged_update_names_its_device() -> None:
    """Bytes that are no update end the round with the device's name."""
    with pytest.raises(DeviceError, match=r"device [012]"):
        run(Lightweight(gradient_bits=8), make_link=Forger)


def test_profiles_reach_the_function() -> None:
    """The function is given what each device says of itself."""
    seen: dict[int, object] = {}

    def share(server_round: int, profile: Mapping[str, object]) -> float:
        seen[int(str(profile["partition-id"]))] = profile["memory"]
        return 0.0 if profile["memory"] == 8 else 0.5

    front, back = net()
    devices = builders.devices(front, SIZES)
    for number, device in enumerate(devices):
        device.profile = {"memory": 2**number * 4}
    result = train_locally(
        devices,
        front.state_dict(),
        builders.server(back),
        num_rounds=1,
        lightweight=Lightweight(prune=share),
        make_link=Witness,
    )
    assert seen == {0: 4, 1: 8, 2: 16}
    shapes = {
        key: tuple(begin.front["0.weight"].shape)  # type: ignore[index]
        for key, begin in Witness.last.begins
    }
    assert [shapes[k][0] for k in range(3)] == [2, 4, 2]
    assert bool((result.front["0.weight"].flatten(1).norm(dim=1) > 0).all())


def test_every_tensor_is_finite() -> None:
    """All reductions at once, in bfloat16 codecs too, leave numbers."""
    result = run(SETTINGS["all"], up=parse_codec("bfloat16"))
    values: list[Tensor] = list(result.front.values())
    assert all(bool(torch.isfinite(v.float()).all()) for v in values)


class Scattering(nn.Module):
    """A back that is given the kept channels only."""

    def __init__(self, mask: ChannelMask, back: nn.Module) -> None:
        super().__init__()
        self.mask, self.back = mask, back

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.mask.cut.scatter(x))


def test_a_pruned_run_is_that_of_the_smaller_network() -> None:
    """Pruning every device alike is plain training of what `shrink` returns."""
    front, back = net()
    channels = channel_groups(front, torch.zeros(1, 1, 6, 6))
    scores = channel_scores(channels, front.state_dict())
    mask = choose_channels(channels, scores, 0.5)
    small = shrink(front, mask)
    scheduler = partial(StepLR, step_size=1, gamma=0.5)
    plain = train_locally(
        builders.devices(small, SIZES, scheduler=scheduler),
        small.state_dict(),
        builders.server(Scattering(mask, back)),
        num_rounds=4,
    )
    pruned = train_locally(
        builders.devices(front, SIZES, scheduler=scheduler),
        front.state_dict(),
        builders.server(back),
        num_rounds=4,
        lightweight=Lightweight(prune=0.5, remask_every=100),
    )
    for name, tensor in mask.take_state(pruned.front).items():
        torch.testing.assert_close(tensor, plain.front[name])
    for light, full in zip(pruned.rounds, plain.rounds, strict=True):
        assert light.loss == pytest.approx(full.loss, rel=1e-4)


def test_only_who_missed_an_aggregation_gets_the_front_again() -> None:
    """Devices that were not sampled keep theirs, up to the next aggregation."""
    front, back = net()
    setting = Lightweight(aggregate_every=3, period="round")
    fronts = Fronts(setting, relay=False)
    fronts.replace(front.state_dict())
    server = builders.server(back)
    rounds = Rounds(server, Identity(), Traffic(), 10**6, fronts)
    halves = [DeviceHalf(d, i) for i, d in enumerate(builders.devices(front, SIZES))]
    link = Witness(halves)
    sampled = {1: (0, 1), 2: (1, 2), 3: (0, 2), 4: (0, 1), 5: (0, 1), 6: (1, 2)}
    for server_round, keys in sampled.items():
        begin = Begin(server_round, 0, fronts.full, Identity(), RELEASE)
        outcome = rounds.train(link, keys, begin)
        assert outcome.aggregates == (server_round in (3, 6))
        if outcome.aggregates:
            fronts.advance(merge_fronts(outcome))
    sent = [(b.server_round, k) for k, b in link.begins if b.front is not None]
    # Round 2: device 1 goes on. 4: all begin afresh. 6: device 2 missed round 4 and 5.
    assert sent == [(1, 0), (1, 1), (2, 2), (4, 0), (4, 1), (6, 2)]


def test_masks_are_counted_in_training_and_in_evaluation() -> None:
    """Each phase tells a device its mask, and every byte of it is in the traffic."""
    front, back = builders.halves()
    result = train_locally(
        builders.devices(front, [16, 16]),
        front.state_dict(),
        builders.server(back),
        num_rounds=1,
        lightweight=Lightweight(prune=0.5),
    )
    sizes = {
        (row.phase, row.device): row.num_bytes
        for row in result.traffic.rows(directions=("model-down",))
    }
    assert sizes.keys() == {(p, d) for p in ("train", "evaluate") for d in (0, 1)}
    assert len(set(sizes.values())) == 1
    assert min(sizes.values()) > 0
