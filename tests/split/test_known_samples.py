"""Samples that no byte names, as both sides derive them from the seed."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch

from flwr_slfac import Device
from flwr_slfac.codec import Temporal, Uniform, Waterfill
from flwr_slfac.errors import DecodeError, DeviceError
from flwr_slfac.split import Begin, known_samples, recalled_samples, train_locally
from flwr_slfac.split.batches import BatchOrder, OrderRule
from flwr_slfac.split.features import Recall
from flwr_slfac.split.known_samples import KnownSamples, known_order, order_mark
from flwr_slfac.split.place import Place
from tests.split import builders
from tests.split.test_recalled_samples import Watching, said, train, up_bytes

SETTINGS: dict[str, dict[str, Any]] = {
    "an epoch a round": {},
    "epochs": {"epochs": 3},
    "rounds cut short": {"epochs": 2, "max_steps": 3},
    "whole batches only": {"drop_last": True},
    "in their order": {"shuffle": False},
    "one batch": {"batch_size": 40},
    "single examples": {"batch_size": 1, "max_steps": 4},
}


def named(link: Watching) -> set[bool]:
    """Return whether frames name their samples: all, none or some."""
    return {said(f).ids is not None for each in link.frames.values() for f in each}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("scheme", "depth"), [("parallel", 0), ("sequential", 1), ("sflv2", 1)]
)
def test_no_frame_names_a_sample_and_nothing_else_changes(
    name: str, scheme: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights as with named samples, bit for bit, in fewer bytes."""
    how = {"scheme": scheme, "pipeline_depth": depth, "norm": False}
    run = partial(train, **how, device=SETTINGS[name])
    known, link = run()
    assert named(link) == {False}
    assert link.begun_anew() == [(device, 1) for device in range(3)]
    monkeypatch.setattr(recalled_samples, "order_mark", lambda: "another")
    told, link = run()
    assert named(link) == {True}
    assert not link.orders
    for key, value in told.front.items():
        assert torch.equal(known.front[key], value)
    for server_round in (1, 2, 3):
        assert up_bytes(known, server_round) < up_bytes(told, server_round)


def test_rounds_that_a_device_sits_out_count() -> None:
    """The order is a function of the round, not of what came before."""
    _, link = train(num_rounds=4, lost={(1, 2): 0, (2, 2): 1, (0, 3): 2})
    assert named(link) == {False}
    assert link.begun_anew() == [(device, 1) for device in range(3)]


class OwnOrder(BatchOrder):
    """Batches backwards, whatever the base says."""

    def indices(self, step: int) -> torch.Tensor:
        """Return those of a batch from the end."""
        return super().indices(self.num_steps - 1 - step)


@dataclass
class Backwards(Device):
    """A device with an order of its own."""

    def batches(self, seed: int, server_round: int, device: int) -> BatchOrder:
        """Return an order that the server does not know."""
        return OwnOrder(24, 8, seed=seed, server_round=server_round, device=device)


@dataclass
class Astray(Device):
    """A device whose order follows from another seed than it is told."""

    def batches(self, seed: int, server_round: int, device: int) -> BatchOrder:
        """Return an order that the server derives otherwise."""
        return BatchOrder(24, 8, seed=seed + 1, server_round=server_round)


def run_on(kind: type[Device], **settings: Any) -> tuple[Any, Watching]:
    """Train one device of a kind for two rounds."""
    front, back = builders.halves(norm=False)
    (plain,) = builders.devices(front, [24])
    device = kind(front, plain.optimizer, plain.train_set, batch_size=8)
    links: list[Watching] = []

    def make_link(halves: Any) -> Watching:
        links.append(Watching(halves))
        return links[0]

    result = builders_train([device], front, back, make_link=make_link, **settings)
    return result, links[0]


def builders_train(devices: list[Device], front: Any, back: Any, **how: Any) -> Any:
    """Train devices for two rounds."""
    return train_locally(
        devices,
        front.state_dict(),
        builders.server(back),
        num_rounds=2,
        up=Temporal(Waterfill(nrmse=0.2)),
        evaluate=False,
        **how,
    )


def test_an_order_of_ones_own_is_named() -> None:
    """What the server cannot derive travels, and prediction goes on."""
    _, link = run_on(Backwards)
    assert named(link) == {True}
    assert link.begun_anew() == [(0, 1)]


def test_an_order_that_is_derived_otherwise_is_noticed() -> None:
    """At the first frame that counts on a memory; no sample is taken for another."""
    with pytest.raises(DeviceError, match="of other samples"):
        run_on(Astray)


def test_more_samples_than_are_remembered_are_named() -> None:
    """The server holds no order that is larger than its memory of samples."""
    order = BatchOrder(100, 8)
    for max_bytes, told in ((2400, order.rule.numbers), (2399, ()), (1, ())):
        up = Temporal(Uniform(4), max_bytes=max_bytes)
        begin = Begin(1, 0, None, up, "0.1.0")
        begin = replace(begin, cut_features=(Recall("", order_mark()),))
        assert known_order(begin, order) == told
    _, link = train(up=Temporal(Uniform(4), max_bytes=23 * 24))
    assert named(link) == {False, True}


def test_a_server_that_says_nothing_of_orders_is_told_names() -> None:
    """Nor one that shuffles otherwise; what an own feature says does not count."""
    order, up = BatchOrder(10, 4), Temporal(Uniform(4))
    for features in ((), (Recall(""),), (Recall("", order_mark()), Recall("", "x"))):
        begin = Begin(1, 0, None, up, "0.1.0", cut_features=features)
        assert known_order(begin, order) == ()
    assert known_order(Begin(1, 0, None, Uniform(4), "0.1.0"), order) == ()


@pytest.mark.parametrize(
    "numbers",
    [
        (),
        (10, 4, 1, 0, 0),
        (10, 4, 1, 0, 0, 1, 1),
        (0, 4, 1, 0, 0, 1),
        (10, 0, 1, 0, 0, 1),
        (10, 4, 0, 0, 0, 1),
        (10, 11, 1, 0, 1, 1),
        (-10, 4, 1, 0, 0, 1),
        (10, 2**63, 1, 0, 0, 1),
        (2**40, 4, 1, 0, 0, 1),
        (101, 4, 1, 0, 0, 1),
    ],
)
def test_numbers_that_tell_no_order_are_refused(numbers: tuple[int, ...]) -> None:
    """Before anything is derived from them."""
    known = KnownSamples(Place(0, 1, 0), Temporal(Uniform(4), max_bytes=2400))
    with pytest.raises(DecodeError, match=r"order|batch"):
        known.tell(numbers)
    assert known.at(0, 4) is None


def test_batches_of_another_size_are_refused() -> None:
    """Before samples are counted out: what is told of an order costs no more."""
    known = KnownSamples(Place(0, 1, 0), Temporal(Uniform(4)))
    known.tell((10, 4, 1, 0, 0, 1))
    sizes = [len(known.at(step, size) or ()) for step, size in enumerate((4, 4, 2))]
    assert sizes == [4, 4, 2]
    for step, size in ((0, 5), (2, 4), (1, 0)):
        with pytest.raises(DecodeError, match=f"{size} examples at step {step}"):
            known.at(step, size)


def test_a_rule_comes_back_from_its_numbers() -> None:
    """With the same batches, in every round."""
    for kind in SETTINGS.values():
        how = {"batch_size": 8, **kind}
        for server_round in (1, 2, 7):
            place = Place(3, server_round, 2)
            order = BatchOrder(21, **how, **vars(place))
            same = OrderRule.of_numbers(order.rule.numbers).at(place)
            assert same.num_steps == order.num_steps
            for step in range(order.num_steps):
                assert torch.equal(same.indices(step), order.indices(step))


def test_the_mark_is_that_of_what_is_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that shuffles otherwise has another one."""
    randperm, mark = torch.randperm, order_mark()
    monkeypatch.setattr(torch, "randperm", lambda n, **k: randperm(n, **k).flip(0))
    assert known_samples.order_mark.__wrapped__() != mark
