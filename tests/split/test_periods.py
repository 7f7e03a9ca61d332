"""Fronts averaged within a round are those of a loop written from the definition."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flwr_slfac import Lightweight
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Identity, encode, parse_codec
from flwr_slfac.errors import DeviceError, SettingError, SlfacError, TrainingError
from flwr_slfac.lightweight import DeviceConfig
from flwr_slfac.lightweight.pruning import (
    ChannelMask,
    ElementMask,
    FullMask,
    Mask,
    average_coordinates,
    channel_groups,
    channel_scores,
    choose_channels,
    choose_elements,
    fill_unheld,
    increase,
    prunable_shapes,
    restore_unheld,
    shrink,
)
from flwr_slfac.lightweight.quantization import (
    pack_update,
    quantize_gradients,
    unpack_update,
)
from flwr_slfac.split import (
    Batch,
    Begin,
    Device,
    DeviceHalf,
    LocalLink,
    LocalResult,
    Lost,
    ServerHalf,
    Smashed,
    TrainReply,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.front_features import update_of
from flwr_slfac.split.periods import Periods
from flwr_slfac.split.place import Place
from flwr_slfac.split.protocol import TrainAnswer
from flwr_slfac.states import in_dtypes_of, weighted_average
from tests.split import builders
from tests.split.test_device_half import ForgetfulLink, StutteringLink
from tests.split.test_lightweight import by_partition, net
from tests.transport.loopback import Loopback, answer_with, linked

# Steps of a round: 6, 4 and 5 of batches of 8, the last ones smaller.
SIZES = [44, 32, 36]
SCHEMES = ("sflv1", "sflv2", "parallel")
steps_of_2 = partial(Lightweight, aggregate_every=2, period="step")
SETTINGS = {
    "whole": steps_of_2(),
    "each step": Lightweight(aggregate_every=1, period="step"),
    "quantized": steps_of_2(gradient_bits=8),
    "two bits": steps_of_2(update_bits=2, error_feedback=True),
    "pruned": steps_of_2(prune=0.5),
    "pruned and quantized": steps_of_2(prune=0.5, gradient_bits=8),
    "weights": steps_of_2(prune=0.5, structured=False, update_bits=4),
    "unlike": steps_of_2(prune=by_partition, update_bits=8),
    "unlike, whole": steps_of_2(prune=by_partition),
    "gradually": steps_of_2(prune=0.5, prune_rounds=2, gradient_bits=8),
    "weights, gradually": steps_of_2(prune=0.5, prune_rounds=2, structured=False),
    "renewed": steps_of_2(prune=0.5, criterion="increase", renew_every=1),
    "renewed, two bits": Lightweight(
        prune=0.5,
        criterion="increase",
        update_bits=2,
        error_feedback=True,
        aggregate_every=1,
        renew_every=2,
    ),
    "renewed weights": steps_of_2(
        prune=0.5, structured=False, update_bits=4, renew_every=1
    ),
    "renewed, unlike": steps_of_2(
        prune=by_partition, criterion="increase", gradient_bits=8, renew_every=1
    ),
    "renewed, unlike, whole": Lightweight(
        prune=by_partition, criterion="increase", aggregate_every=1, renew_every=3
    ),
    "controlled": steps_of_2(control_variates=True),
    "controlled, quantized": Lightweight(
        prune=by_partition,
        gradient_bits=8,
        update_bits=32,
        aggregate_every=1,
        control_variates=True,
    ),
    "controlled, weights": steps_of_2(
        prune=0.5, structured=False, control_variates=True
    ),
    "controlled, renewed": Lightweight(
        prune=0.5,
        criterion="increase",
        aggregate_every=1,
        renew_every=3,
        control_variates=True,
    ),
}
CONTROLLED = [name for name in SETTINGS if name.startswith("controlled")]
RENEWED = [name for name in SETTINGS if name.startswith("renewed")]


class LossyLink(LocalLink):
    """Loses devices from a step of a round to its end, by (device, round)."""

    losses: ClassVar[Mapping[tuple[int, int], int]] = {}

    def __init__(self, halves: Sequence[DeviceHalf]) -> None:
        super().__init__(halves)
        self._round = 0

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Call each device that is not lost."""
        begun = [r.begin.server_round for r in requests.values() if r.begin]
        self._round = max(begun, default=self._round)
        lost = {
            k: Lost("unplugged")
            for k, r in requests.items()
            if r.step >= self.losses.get((k, self._round), math.inf)
        }
        reached = {k: r for k, r in requests.items() if k not in lost}
        return {**super().train(reached), **lost}


def link_of(losses: Mapping[tuple[int, int], int]) -> type[LocalLink]:
    """Return the link that loses so."""
    return type("Link", (LossyLink,), {"losses": losses})


plain_sgd = partial(torch.optim.SGD, lr=0.05)
# So strong a decay that what is held falls behind what is not, and masks change.
decaying = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1.0)


def parts(setting: Lightweight) -> tuple[nn.Module, list[Device], nn.Module]:
    """Return a front, devices of unlike sizes, and a back."""
    front, back = net()
    optimizer = decaying if setting.renew_every else builders.sgd
    if setting.control_variates:
        optimizer = partial(optimizer, momentum=0)
    # Plain SGD has no moments to keep, and control variates begin anew all the same.
    how = {"keep_optimizer": setting.control_variates, "optimizer": optimizer}
    return front, builders.devices(front, SIZES, **how), back


def train(
    setting: Lightweight,
    scheme: str,
    make_link: type[LocalLink] = LocalLink,
    **settings: Any,
) -> tuple[LocalResult, dict[str, Tensor]]:
    """Train two rounds; return the result and the back."""
    front, devices, back = parts(setting)
    server = builders.server(back, scheme)  # type: ignore[arg-type]
    settings = {"num_rounds": 2, "evaluate": False, **settings}
    result = train_locally(
        devices,
        front.state_dict(),
        server,
        lightweight=setting,
        make_link=make_link,
        **settings,
    )
    return result, dict(server.back.state_dict())


def masks_of(
    setting: Lightweight, full: dict[str, Tensor], device: int, server_round: int
) -> Mask:
    """Return what a device holds of a front in a round."""
    share = setting.share(server_round, {"partition-id": device})
    if setting.prune_rounds:
        # One of 8 parts of the way is left after the first of two rounds.
        assert share == (0 if server_round == 1 else 0.5 * 7 / 8)
    if not share:
        return FullMask()
    if not setting.structured:
        return choose_elements(full, list(prunable_shapes(full)), share, "layer", None)
    channels = channel_groups(net()[0], torch.zeros(1, 1, 6, 6))
    scores = channel_scores(channels, full)
    if setting.criterion == "increase":
        first = dict(net()[0].state_dict())
        scores = increase(scores, channel_scores(channels, first))
    return choose_channels(channels, scores, share, "layer")


class SlowDevice:
    """A device of the slow loop: a network of its own, and what the server sent."""

    def __init__(self, number: int, device: Device, mask: Mask) -> None:
        self.number, self.device = number, device
        self.put_on(mask)
        self.reference: dict[str, Tensor] = {}
        self.num_examples = self.num_period = 0

    def put_on(self, mask: Mask) -> None:
        """Hold another part."""
        self.mask, self.residual = mask, {}
        full = copy.deepcopy(net()[0])
        is_small = isinstance(mask, ChannelMask)
        self.network = shrink(full, mask) if is_small else full

    def renew(self, mask: Mask, last: dict[str, Tensor]) -> None:
        """Begin anew from the mean under another mask."""
        self.put_on(mask)
        self.load(mask.take_state(last))
        self.control, self.rates = {}, 0.0
        self.optimizer = self.device.optimizer(list(self.network.parameters()))

    def load(self, part: Mapping[str, Tensor]) -> None:
        """Take what the server sent; what is not held is zero."""
        self.reference = {k: v.clone() for k, v in part.items()}
        if isinstance(self.mask, ElementMask):
            own = self.network.state_dict()
            zeros = {n: torch.zeros_like(t) for n, t in own.items()}
            part = self.mask.put_state(part, zeros)
        self.network.load_state_dict(dict(part))

    def take_mean(self, part: Mapping[str, Tensor]) -> None:
        """Go on from a mean, and learn from it how far this device had strayed."""
        named = dict(self.network.named_parameters())
        before = {n: p.detach().clone() for n, p in named.items()}
        self.load(part)
        for name, p in named.items():
            strayed = (before[name] - p.detach()) / self.rates
            self.control[name] = self.control.get(name, 0) + strayed
        self.rates = 0.0

    def begin(self, part: Mapping[str, Tensor], server_round: int) -> None:
        """Start a round."""
        self.load(part)
        self.control, self.rates = {}, 0.0
        self.optimizer = self.device.optimizer(list(self.network.parameters()))
        self.order = self.device.batches(0, server_round, self.number)
        self.place = Place(0, server_round, self.number)
        self.num_examples = self.num_period = 0

    def forward(self, step: int) -> Batch:
        """Return the smashed data of a step, in the channels of the whole front."""
        images, labels = self.device.train_set.tensors  # type: ignore[attr-defined]
        chosen = self.order.indices(step)
        self.network.train()
        self.out = self.network(images[chosen])
        seen = self.out.detach()
        if isinstance(self.mask, ChannelMask):
            self.kept = self.mask.cut.index  # type: ignore[attr-defined]
            seen = seen.new_zeros(len(chosen), 4, 6, 6)
            seen[:, self.kept] = self.out.detach()
        self.num_examples += len(chosen)
        self.num_period += len(chosen)
        return Batch(seen.requires_grad_(), labels[chosen], len(chosen))

    def backward(self, gradient: Tensor, setting: Lightweight, step: int) -> None:
        """Take the step."""
        if isinstance(self.mask, ChannelMask):
            gradient = gradient[:, self.kept]
        self.optimizer.zero_grad()
        self.out.backward(gradient)
        named = dict(self.network.named_parameters())
        if isinstance(self.mask, ElementMask):
            for name, kept in self.mask.masks.items():
                named[name].grad.masked_fill_(~kept, 0)  # type: ignore[union-attr]
        if setting.gradient_bits < 32:
            noise = self.place.at(step).generator("gradient")
            quantize_gradients(self.network.parameters(), setting.gradient_bits, noise)
        if setting.control_variates:
            for name, term in self.control.items():
                named[name].grad += term
            self.rates += 0.05
        self.optimizer.step()

    def sent(self, setting: Lightweight, step: int) -> dict[str, Tensor]:
        """Return what the server makes of what the device sends after a step."""
        state = {k: v.clone() for k, v in self.network.state_dict().items()}
        if isinstance(self.mask, ElementMask):
            state = self.mask.take_state(state)
        bits = setting.device_config.update_bits
        if bits == 32:
            return state
        data = pack_update(
            state,
            self.reference,
            bits,
            self.place.at(step).generator("update"),
            bucket=setting.bucket,
            residual=self.residual if setting.error_feedback else None,
        )
        return unpack_update(data, self.reference)


def caught_up(
    sent: dict[str, Tensor], reference: Mapping[str, Tensor], now: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a device's front as if it had started from all that the server had."""
    return {
        n: (t.double() + (now[n].double() - reference[n].double())).to(t.dtype)
        for n, t in sent.items()
    }


def slow_loop(
    setting: Lightweight, scheme: str, losses: Mapping[tuple[int, int], int]
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Mask]]:
    """Return front, back and the last masks after two rounds, from the definition."""
    front, devices, back = parts(setting)
    server = builders.server(back, scheme)  # type: ignore[arg-type]
    full = {k: v.clone() for k, v in front.state_dict().items()}
    # With the mask that it was lost under: under another it is forgotten.
    residuals: dict[tuple[int, bytes], dict[str, Tensor]] = {}
    for server_round in (1, 2):
        slow = [
            SlowDevice(i, d, masks_of(setting, full, i, server_round))
            for i, d in enumerate(devices)
        ]
        for each in slow:
            key = each.number, each.mask.to_bytes()
            each.residual = dict(residuals.get(key, {}))
            each.begin(each.mask.take_state(full), server_round)
        ends, last = one_round(setting, server, slow, server_round, losses, full)
        ends = {i: ends[i] for i in sorted(ends)}
        # What a lost device did in the round is forgotten on it.
        for i in ends:
            residuals = {key: lost for key, lost in residuals.items() if key[0] != i}
            residuals[i, slow[i].mask.to_bytes()] = slow[i].residual
        weights = [slow[i].num_examples for i in ends]
        masks = [slow[i].mask for i in ends]
        whole = list(ends.values())
        if not all(mask.is_full for mask in masks):
            whole = fill_unheld(whole, weights, masks, last)
        full = restore_unheld(
            in_dtypes_of(weighted_average(whole, weights), full), weights, masks, last
        )
        server.end_round({i: slow[i].num_examples for i in ends})
    return full, dict(server.back.state_dict()), masks


def is_time_to_renew(setting: Lightweight, step: int) -> bool:
    """Say whether the mean before a step is one after which masks are chosen."""
    if not setting.renew_every or not setting.aggregate_every:
        return False
    return step % (setting.aggregate_every * setting.renew_every) == 0


def one_round(
    setting: Lightweight,
    server: ServerHalf,
    slow: list[SlowDevice],
    server_round: int,
    losses: Mapping[tuple[int, int], int],
    last: dict[str, Tensor],
) -> tuple[dict[int, dict[str, Tensor]], dict[str, Tensor]]:
    """Return what devices end a round with, and the last mean of their fronts."""
    server.begin_round(server_round, 0)
    active = {d.number: d for d in slow}
    ends: dict[int, dict[str, Tensor]] = {}
    for step in range(100):
        for number in list(active):
            each = active[number]
            if step >= losses.get((number, server_round), 1000):
                del active[number]
            elif step == each.order.num_steps:
                now = each.mask.take_state(last)
                sent = each.sent(setting, step - 1)
                ends[number] = caught_up(sent, each.reference, now)
                del active[number]
        if not active:
            return ends, last
        if step and step % setting.aggregate_every == 0:
            before = last
            fronts = [
                caught_up(
                    d.sent(setting, step - 1), d.reference, d.mask.take_state(before)
                )
                for d in active.values()
            ]
            weights = [float(d.num_period) for d in active.values()]
            last = average_coordinates(
                fronts, weights, [d.mask for d in active.values()], before
            )
            for each in active.values():
                each.num_period = 0
                if is_time_to_renew(setting, step):
                    mask = masks_of(setting, last, each.number, server_round)
                    if mask.to_bytes() != each.mask.to_bytes():
                        each.renew(mask, last)
                        continue
                mean = each.mask.take_state(last)
                bits = setting.device_config.update_bits
                if bits < 32:
                    data = pack_update(
                        mean,
                        each.reference,
                        bits,
                        torch.Generator(),
                        bucket=setting.bucket,
                        residual={},
                    )
                    mean = unpack_update(data, each.reference)
                if setting.control_variates:
                    each.take_mean(mean)
                else:
                    each.load(mean)
        answers = server.step(step, {n: d.forward(step) for n, d in active.items()})
        for number, (gradient, _) in answers.items():
            active[number].backward(gradient, setting, step)
    raise AssertionError("a round without end")


@pytest.mark.parametrize("losses", [{}, {(2, 1): 3, (0, 2): 1}], ids=["all", "lost"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_round_is_the_slow_loop(
    name: str, scheme: str, losses: Mapping[tuple[int, int], int]
) -> None:
    """Front and back are those of a loop from the definition, bit for bit."""
    setting = SETTINGS[name]
    result, back = train(setting, scheme, link_of(losses))
    expected, other_back, masks = slow_loop(setting, scheme, losses)
    builders.assert_same(back, other_back)
    for mask in masks:
        builders.assert_same(
            mask.take_state(dict(result.front)), mask.take_state(expected)
        )


@pytest.mark.parametrize("make_link", [ForgetfulLink, StutteringLink])
@pytest.mark.parametrize(
    "name", ["whole", "two bits", "weights", "unlike", *RENEWED, *CONTROLLED]
)
def test_no_live_object_is_needed_and_requests_may_repeat(
    name: str, make_link: type[LocalLink]
) -> None:
    """Devices built from bytes, or asked twice, end a run in the same bits."""
    once, back = train(SETTINGS[name], "sflv2")
    again, other_back = train(SETTINGS[name], "sflv2", make_link)
    builders.assert_same(dict(once.front), dict(again.front))
    builders.assert_same(back, other_back)


class TwiceLink(LocalLink):
    """Asks for fronts within a round twice, and has their means taken up twice."""

    num_fronts = 0

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Deliver what a period ends and begins with two times."""
        answers = super().train(requests)
        twice = {
            k: r
            for k, r in requests.items()
            if r.front is not None or r.update is not None or brings_front(answers[k])
        }
        again = super().train(twice)
        for key, answer in again.items():
            first = answers[key]
            assert isinstance(first, TrainReply)
            assert isinstance(answer, TrainReply)
            assert (first.update, first.smashed) == (answer.update, answer.smashed)
            TwiceLink.num_fronts += brings_front(answer)
        return {**answers, **again}


def brings_front(answer: TrainAnswer) -> bool:
    """Say whether an answer brings a front within a round."""
    assert isinstance(answer, TrainReply)
    return not answer.done and answer.smashed is None


def test_the_end_of_a_period_may_be_asked_for_twice() -> None:
    """The same update comes again, a mean is taken up once; the residual with it."""
    once, _ = train(SETTINGS["two bits"], "parallel")
    TwiceLink.num_fronts = 0
    again, _ = train(SETTINGS["two bits"], "parallel", TwiceLink)
    builders.assert_same(dict(once.front), dict(again.front))
    # Steps 6, 4 and 5: means after 2 and 4 of them, of those who go on, in two rounds.
    assert TwiceLink.num_fronts == 2 * (3 + 2)


@pytest.mark.parametrize("name", RENEWED)
def test_the_renewal_of_a_mask_may_be_asked_for_twice(name: str) -> None:
    """A mask is put on once, and what was sent under it comes again."""
    once, _ = train(SETTINGS[name], "parallel")
    again, _ = train(SETTINGS[name], "parallel", TwiceLink)
    builders.assert_same(dict(once.front), dict(again.front))


class SeeingLink(LocalLink):
    """Keeps the masks that devices were sent, by round and step."""

    masks: ClassVar[dict[tuple[int, int, int], bytes]] = {}
    _round = 0

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Take note of masks."""
        for key, request in requests.items():
            if request.begin:
                self._round = request.begin.server_round
                self.masks[self._round, 0, key] = request.begin.mask
            if request.mask:
                assert request.front is not None
                assert request.update is None
                self.masks[self._round, request.step, key] = request.mask
        return super().train(requests)


@pytest.mark.parametrize("name", RENEWED)
def test_masks_change_within_a_round(name: str) -> None:
    """They are sent where they are renewed and are others, and their bytes entered."""
    setting = SETTINGS[name]
    link = type("Link", (SeeingLink,), {"masks": {}})
    result, _ = train(setting, "parallel", link)
    masks = link.masks
    within = {place for place in masks if place[1]}
    assert within
    assert all(is_time_to_renew(setting, step) for _, step, _ in within)
    for number, step, device in within:
        before = max(s for r, s, d in masks if (r, d) == (number, device) and s < step)
        assert masks[number, step, device] != masks[number, before, device]
    if setting.device_config.update_bits == 32:
        entered = result.traffic.num_bytes(directions=["model-down"])
        assert entered == sum(map(len, masks.values()))


def test_who_comes_to_hold_the_same_goes_on_from_what_it_was_given() -> None:
    """Of two devices whose masks meet in a renewal, each is sent its own difference."""
    first = {n: t.clone() for n, t in net()[0].state_dict().items()}
    names = list(prunable_shapes(first))
    small, large = (
        choose_elements(first, names, share, "layer", None) for share in (0.7, 0.2)
    )
    periods = Periods(update_of(DeviceConfig(structured=False, update_bits=2)))
    before = {0: (small, small.to_bytes()), 1: (large, large.to_bytes())}
    now = {0: before[1], 1: before[1]}
    given = {d: mask.take_state(first) for d, (mask, _) in before.items()}
    for masks, moved in ((before, 0.0), (now, 0.37), (now, 0.51)):
        periods.full = {
            n: t + moved * torch.rand_like(t) if t.is_floating_point() else t
            for n, t in first.items()
        }
        means = periods.hand_out(before, masks, first)
        for device, mean in means.items():
            if update := mean.fields.get("update"):
                own = unpack_update(update, given[device])
                builders.assert_same(dict(mean.part), dict(own))
            given[device] = mean.part
        before = masks
    assert not all(torch.equal(given[0][n], given[1][n]) for n in given[0])


def test_the_newest_masks_stay_in_force() -> None:
    """Where masks outlive a round, the next one begins with those chosen within it."""
    setting = replace(SETTINGS["renewed"], remask_every=2)
    link = type("Link", (SeeingLink,), {"masks": {}})
    train(setting, "parallel", link)
    newest = max((r, s) for r, s, _ in link.masks if r == 1)
    assert newest[1] > 0
    (mask,) = {m for (r, s, _), m in link.masks.items() if (r, s) == newest}
    assert {link.masks[2, 0, device] for device in range(len(SIZES))} == {mask}


def test_a_mask_is_put_on_with_the_front_under_it_or_not_at_all() -> None:
    """A device refuses a mask without its front, and one that is no mask of it."""
    setting = SETTINGS["renewed weights"]
    front, devices, _ = parts(setting)
    for mask, named in ((b"garbage", "mask"), (b"", "in full")):
        half = DeviceHalf(devices[0], 0)
        config = setting.device_config
        begin = Begin(1, 0, front.state_dict(), Identity(), RELEASE, config=config)
        half.train(TrainRequest(0, begin))
        half.train(TrainRequest(1, gradient=gradient_frame()))
        half.train(TrainRequest(2, gradient=gradient_frame()))
        with pytest.raises(SlfacError, match=named):
            half.train(TrainRequest(2, front=front.state_dict(), mask=mask))
    half = DeviceHalf(devices[0], 0)
    half.train(TrainRequest(0, begin))
    half.train(TrainRequest(1, gradient=gradient_frame()))
    half.train(TrainRequest(2, gradient=gradient_frame()))
    with pytest.raises(TrainingError, match="quantized"):
        half.train(TrainRequest(2, update=b"update", mask=b"mask"))


def gradient_frame() -> bytes:
    """Return a gradient of what the front of `parts` sends."""
    return encode(torch.ones(8, 4, 6, 6), Identity())


def test_masks_are_renewed_where_there_are_masks_and_means() -> None:
    """Without pruning or periods of steps, or beside memories of samples: refused."""
    for more in (
        {"aggregate_every": 2},
        {"prune": 0.5},
        {"prune": 0.5, "aggregate_every": 2, "period": "round"},
    ):
        with pytest.raises(SettingError, match="renew_every=1 renews"):
            Lightweight(renew_every=1, **more)
    with pytest.raises(SettingError, match="renew_every"):
        steps_of_2(prune=0.5, renew_every=0)
    with pytest.raises(SettingError, match="temporal"):
        train(SETTINGS["renewed"], "parallel", Untouched, up=parse_codec("temporal"))


def test_a_mean_a_step_is_the_step_of_the_joined_batch() -> None:
    """With I = 1, plain SGD and one back, devices train as one does on all batches."""
    sgd = partial(torch.optim.SGD, lr=0.05)
    front, back = builders.halves(norm=False)
    sizes = [24, 12]
    both = builders.devices(front, sizes, optimizer=sgd, batch_size=8, shuffle=False)
    both[1].batch_size = 4
    setting = Lightweight(aggregate_every=1, period="step")
    result = train_locally(
        both,
        front.state_dict(),
        builders.server(back, optimizer=sgd),
        num_rounds=1,
        lightweight=setting,
        evaluate=False,
    )
    whole = nn.Sequential(copy.deepcopy(front), copy.deepcopy(back))
    optimizer = sgd(whole.parameters())
    data = [d.train_set.tensors for d in both]  # type: ignore[attr-defined]
    for step in range(3):
        parts = [
            [t[step * size : (step + 1) * size] for t in tensors]
            for tensors, size in zip(data, (8, 4), strict=True)
        ]
        x, y = (torch.cat(both) for both in zip(*parts, strict=True))
        optimizer.zero_grad()
        nn.functional.cross_entropy(whole(x), y).backward()
        optimizer.step()
        # At the end of the round the strategy weighs by the round's examples: the same.
    torch.testing.assert_close(dict(result.front), dict(whole[0].state_dict()))


def model_bytes(setting: Lightweight, **settings: Any) -> dict[str, int]:
    """Return the bytes of fronts within a round, over streams, by direction."""
    front = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
    )
    back = nn.Sequential(nn.Flatten(), nn.Linear(36 * 32, builders.NUM_CLASSES))
    devices = builders.devices(front, [88, 88], **settings)
    with ExitStack() as stack:

        def over_streams(halves: Sequence[DeviceHalf]) -> Loopback:
            answers = {half.partition: answer_with(half) for half in halves}
            link, _ = stack.enter_context(linked(answers))
            return Loopback(halves, link)

        result = train_locally(
            devices,
            front.state_dict(),
            builders.server(back),
            num_rounds=1,
            lightweight=setting,
            evaluate=False,
            make_link=over_streams,
        )
    return {
        d: result.traffic.num_bytes(directions=[d])
        for d in ("model-up", "model-down", "up")
    }


def test_eight_bits_take_a_quarter_of_the_bytes() -> None:
    """Within rounds at I = 5, fronts in 8 bits take <= 0.30 x their float32's bytes.

    What a round begins with comes down whole either way, and is left out.
    """
    steps_of_5 = partial(Lightweight, aggregate_every=5, period="step")
    once = model_bytes(Lightweight())
    whole = model_bytes(steps_of_5())
    coded = model_bytes(steps_of_5(update_bits=8))
    down = once["model-down"]
    ratio = (coded["model-up"] + coded["model-down"] - down) / (
        whole["model-up"] + whole["model-down"] - down
    )
    assert ratio <= 0.30
    assert coded["up"] == whole["up"]
    # 11 steps: two means within the round, and the round's end.
    assert whole["model-up"] == pytest.approx(3 * once["model-up"], rel=0.05)
    assert whole["model-down"] == pytest.approx(3 * down, rel=0.05)


@pytest.mark.parametrize(
    ("setting", "steps", "rounds"),
    [
        (Lightweight(), 0, 1),
        (Lightweight(aggregate_every=5), 5, 1),
        (Lightweight(aggregate_every=1), 1, 1),
        (Lightweight(aggregate_every=5, period="round"), 0, 5),
        (Lightweight(period="round"), 0, 1),
    ],
)
def test_a_period_is_of_steps_unless_rounds_are_asked_for(
    setting: Lightweight, steps: int, rounds: int
) -> None:
    """Without a length there is no mean within a round, and one at the end of each."""
    assert (setting.period_steps, setting.period_rounds) == (steps, rounds)
    assert setting.device_config.period_steps == steps
    aggregated = [r for r in range(1, 8) if setting.aggregates(r, 7)]
    assert aggregated == sorted({*range(rounds, 8, rounds), 7})


def test_what_means_cannot_go_with_is_refused_before_training() -> None:
    """A relay and a pipeline are refused by name; so are sizes that are none."""
    for scheme, more, named in (
        ("sequential", {}, "relay"),
        ("parallel", {"pipeline_depth": 1}, "pipeline_depth=1"),
    ):
        with pytest.raises(SettingError, match=named):
            train(SETTINGS["whole"], scheme, Untouched, **more)
    with pytest.raises(SettingError, match="aggregate_every"):
        Lightweight(aggregate_every=0, period="step")
    with pytest.raises(SettingError, match="period"):
        Lightweight(period="epoch")  # type: ignore[arg-type]


class Untouched(LocalLink):
    """A link that nothing may cross."""

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Fail."""
        raise AssertionError("a device was asked")


LIES: dict[str, Callable[[TrainReply], TrainReply]] = {
    "smashed data": lambda r: replace(r, smashed=Smashed(b"", b"", 8), update=None),
    "a last reply": lambda r: replace(r, done=True),
    "nothing": lambda r: replace(r, update=None),
    "garbage": lambda r: replace(r, update=b"garbage"),
    "a whole front": lambda r: replace(r, update=None, front={"w": torch.zeros(1)}),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_device_that_lies_about_its_front_is_lost_alone(
    lie: Callable[[TrainReply], TrainReply],
) -> None:
    """The others end in the bits of a round that lost it there; or the run ends."""

    class Lying(LocalLink):
        def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
            answers = super().train(requests)
            if requests.get(1, TrainRequest(0)).step == 2 and brings_front(answers[1]):
                answers[1] = lie(answers[1])  # type: ignore[arg-type]
            return answers

    setting = SETTINGS["quantized"]
    result, back = train(setting, "sflv2", Lying, on_device_error="drop", num_rounds=1)
    assert list(result.rounds[0].lost) == [1]
    losses = {(1, 1): 2}
    other, other_back = train(setting, "sflv2", link_of(losses), num_rounds=1)
    builders.assert_same(dict(result.front), dict(other.front))
    builders.assert_same(back, other_back)
    with pytest.raises(DeviceError):
        train(setting, "sflv2", Lying)


def test_a_device_lost_with_its_mean_has_brought_its_front() -> None:
    """Who vanishes when the mean comes is lost; the others have what it had brought."""

    class Vanishing(LocalLink):
        def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
            gone = {
                k: Lost("unplugged")
                for k, r in requests.items()
                if k == 1 and r.step == 2 and r.update is not None
            }
            reached = {k: r for k, r in requests.items() if k not in gone}
            return {**super().train(reached), **gone}

    setting = SETTINGS["quantized"]
    fronts = [
        train(setting, "parallel", link, num_rounds=1)[0]
        for link in (Vanishing, link_of({(1, 1): 2}), LocalLink)
    ]
    assert [list(r.rounds[0].lost) for r in fronts] == [[1], [1], []]
    states = [r.front["3.weight"] for r in fronts]
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_mean_that_was_not_awaited_is_refused() -> None:
    """At another step, or before the update, a device says that it is out of step."""
    front, devices, _ = parts(SETTINGS["whole"])
    half = DeviceHalf(devices[0], 0)
    config = SETTINGS["whole"].device_config
    begin = Begin(1, 0, front.state_dict(), Identity(), RELEASE, config=config)
    half.train(TrainRequest(0, begin))
    with pytest.raises(TrainingError, match="asked for step 1"):
        half.train(TrainRequest(1, front=front.state_dict()))


def test_a_run_is_as_before_where_no_mean_comes_due() -> None:
    """A period longer than the round changes no bit of it."""
    long = Lightweight(prune=0.5, aggregate_every=6, period="step")
    once, back = train(long, "parallel")
    again, other_back = train(Lightweight(prune=0.5), "parallel")
    builders.assert_same(dict(once.front), dict(again.front))
    builders.assert_same(back, other_back)
    assert [r.loss for r in once.rounds] == [r.loss for r in again.rounds]


@pytest.mark.parametrize("name", ["whole", "two bits"])
def test_fedprox_pulls_within_a_period(name: str) -> None:
    """Devices stay nearer with a pull than without; it needs no live object."""
    free, _ = train(SETTINGS[name], "parallel", num_rounds=1)
    pulled, _ = train(SETTINGS[name], "parallel", num_rounds=1, proximal_mu=5.0)
    again, _ = train(
        SETTINGS[name], "parallel", ForgetfulLink, num_rounds=1, proximal_mu=5.0
    )
    builders.assert_same(dict(pulled.front), dict(again.front))
    first = net()[0].state_dict()
    far, near = (
        sum(
            float((r.front[n] - t).square().sum()) for n, t in first.items() if "3" in n
        )
        for r in (free, pulled)
    )
    assert 0 < near < far


def test_fedprox_pulls_to_the_last_mean() -> None:
    """At the mean itself the proximal term is zero, so with I = 1 it is none at all."""
    setting = Lightweight(aggregate_every=1, period="step")
    free, _ = train(setting, "parallel", num_rounds=1)
    pulled, _ = train(setting, "parallel", num_rounds=1, proximal_mu=5.0)
    builders.assert_same(dict(free.front), dict(pulled.front))


def unlike_quadratics(setting: Lightweight) -> float:
    """Return how far a front ends from the best one for devices of unlike data.

    Each pulls one weight to its own target, and with another strength.
    """
    front, back = nn.Linear(1, 1, bias=False), nn.Identity()
    with torch.no_grad():
        front.weight.fill_(0.0)
    inputs, targets = (1.0, 3.0), (2.0, -1.0)
    devices = [
        Device(
            copy.deepcopy(front),
            optimizer=partial(torch.optim.SGD, lr=0.02),
            train_set=TensorDataset(torch.full((400, 1), x), torch.full((400, 1), y)),
            batch_size=4,
        )
        for x, y in zip(inputs, targets, strict=True)
    ]
    server = ServerHalf(back, nn.MSELoss(), builders.sgd, scheme="parallel")
    result = train_locally(
        devices,
        front.state_dict(),
        server,
        num_rounds=1,
        lightweight=setting,
        evaluate=False,
    )
    best = sum(x * y for x, y in zip(inputs, targets, strict=True)) / sum(
        x * x for x in inputs
    )
    return abs(float(result.front["weight"]) - best)


def test_control_variates_end_where_all_data_would() -> None:
    """Means of devices of unlike data settle elsewhere without them, and not with."""
    free = unlike_quadratics(Lightweight(aggregate_every=10))
    held = unlike_quadratics(Lightweight(aggregate_every=10, control_variates=True))
    assert free > 0.1
    assert held < 1e-3


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"optimizer": torch.optim.Adam}, "Adam"),
        ({"optimizer": builders.sgd}, "momentum"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1, maximize=True)}, "maximize"),
        (
            {"optimizer": partial(torch.optim.SGD, lr=0.1), "clip_norm": 1.0},
            "clip_norm",
        ),
    ],
)
def test_steps_that_are_no_gradients_have_no_control_variates(
    how: dict[str, Any], named: str
) -> None:
    """A device that takes others refuses before its first step, by name."""
    front, back = net()
    with pytest.raises(SettingError, match=named):
        train_locally(
            builders.devices(front, SIZES, **how),
            front.state_dict(),
            builders.server(back),
            num_rounds=1,
            lightweight=SETTINGS["controlled"],
        )


def test_control_variates_go_with_exact_means_only() -> None:
    """Without means, with rounded ones, or beside a proximal term: refused by name."""
    with pytest.raises(SettingError, match="aggregate_every"):
        Lightweight(control_variates=True)
    with pytest.raises(SettingError, match="update_bits=32"):
        steps_of_2(gradient_bits=8, control_variates=True)
    with pytest.raises(SettingError, match="proximal_mu"):
        train(SETTINGS["controlled"], "parallel", proximal_mu=0.1)
