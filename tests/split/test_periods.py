"""Fronts averaged within a round are those of a loop written from the definition."""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from flwr_slfac import Lightweight
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
    Device,
    DeviceHalf,
    LocalLink,
    LocalResult,
    Lost,
    ServerHalf,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.place import Place
from flwr_slfac.split.protocol import TrainAnswer
from flwr_slfac.states import in_dtypes_of, weighted_average
from tests.split import builders
from tests.split.test_lightweight import by_partition, net

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
}


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


def parts() -> tuple[nn.Module, list[Device], nn.Module]:
    """Return a front, devices of unlike sizes, and a back."""
    front, back = net()
    return front, builders.devices(front, SIZES, keep_optimizer=False), back


def train(
    setting: Lightweight,
    scheme: str,
    make_link: type[LocalLink] = LocalLink,
    **settings: Any,
) -> tuple[LocalResult, dict[str, Tensor]]:
    """Train two rounds; return the result and the back."""
    front, devices, back = parts()
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


def masks_of(setting: Lightweight, full: dict[str, Tensor], device: int) -> Mask:
    """Return what a device holds of a front in the first choice."""
    share = setting.share(1, {"partition-id": device})
    if not share:
        return FullMask()
    if not setting.structured:
        return choose_elements(full, list(prunable_shapes(full)), share, "layer", None)
    channels = channel_groups(net()[0], torch.zeros(1, 1, 6, 6))
    return choose_channels(channels, channel_scores(channels, full), share, "layer")


class SlowDevice:
    """A device of the slow loop: a network of its own, and what the server sent."""

    def __init__(self, number: int, device: Device, mask: Mask) -> None:
        self.number, self.mask, self.residual = number, mask, {}
        full = copy.deepcopy(net()[0])
        is_small = isinstance(mask, ChannelMask)
        self.network = shrink(full, mask) if is_small else full
        self.device = device
        self.reference: dict[str, Tensor] = {}
        self.num_examples = self.num_period = 0

    def load(self, part: Mapping[str, Tensor]) -> None:
        """Take what the server sent; what is not held is zero."""
        self.reference = {k: v.clone() for k, v in part.items()}
        if isinstance(self.mask, ElementMask):
            own = self.network.state_dict()
            zeros = {n: torch.zeros_like(t) for n, t in own.items()}
            part = self.mask.put_state(part, zeros)
        self.network.load_state_dict(dict(part))

    def begin(self, part: Mapping[str, Tensor], server_round: int) -> None:
        """Start a round."""
        self.load(part)
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
    front, devices, back = parts()
    server = builders.server(back, scheme)  # type: ignore[arg-type]
    full = {k: v.clone() for k, v in front.state_dict().items()}
    residuals: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(devices))}
    for server_round in (1, 2):
        slow = [
            SlowDevice(i, d, masks_of(setting, full, i)) for i, d in enumerate(devices)
        ]
        for each in slow:
            each.residual = dict(residuals[each.number])
            each.begin(each.mask.take_state(full), server_round)
        ends, last = one_round(setting, server, slow, server_round, losses, full)
        ends = {i: ends[i] for i in sorted(ends)}
        # What a lost device did in the round is forgotten on it.
        residuals.update({i: slow[i].residual for i in ends})
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
