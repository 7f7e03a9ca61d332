"""Batches go on through a device's data from round to round."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_slfac.errors import SettingError
from flwr_slfac.split import train_locally
from flwr_slfac.split.batches import BatchOrder, batch_sizes
from flwr_slfac.split.place import Place, seed_for
from flwr_slfac.split.reading import BatchReader
from tests.split import builders
from tests.split.test_device_half import ForgetfulLink


def order_of(server_round: int, **settings: object) -> list[list[int]]:
    """Return the indices of a round's batches."""
    order = BatchOrder(server_round=server_round, seed=3, device=2, **settings)  # type: ignore[arg-type]
    assert order.sizes == [len(order.indices(s)) for s in range(order.num_steps)]
    return [order.indices(step).tolist() for step in range(order.num_steps)]


@given(
    num=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 3),
    server_round=st.integers(1, 5),
    drop_last=st.booleans(),
    above=st.integers(0, 2),
)
def test_rounds_of_whole_epochs_have_orders_of_their_own(
    num: int,
    batch_size: int,
    epochs: int,
    server_round: int,
    drop_last: bool,
    above: int,
) -> None:
    """Where nothing is cut, an order is drawn by round and epoch in the round."""
    sizes = batch_sizes(num, batch_size, drop_last)
    expected = []
    for epoch in range(epochs):
        seed = seed_for(3, server_round, 2, epoch, "order")
        order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
        expected += [part.tolist() for part in order.split(batch_size)][: len(sizes)]
    settings = {"num_examples": num, "batch_size": batch_size, "epochs": epochs}
    most = {"max_steps": epochs * len(sizes) + above} if above else {}
    assert order_of(server_round, drop_last=drop_last, **settings, **most) == expected


@given(
    num=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    max_steps=st.integers(1, 7),
    shuffle=st.booleans(),
    epochs=st.integers(1, 2),
)
def test_cut_rounds_see_each_example_once_an_epoch(
    num: int, batch_size: int, max_steps: int, shuffle: bool, epochs: int
) -> None:
    """Rounds cut short, one after another, go through all data epoch by epoch."""
    settings = {
        "num_examples": num,
        "batch_size": batch_size,
        "max_steps": max_steps,
        "shuffle": shuffle,
        "epochs": epochs,
    }
    rounds = [order_of(r, **settings) for r in range(1, 60)]
    batches = [batch for each in rounds for batch in each]
    num_batches = -(-num // batch_size)
    whole = len(batches) // num_batches
    for epoch in range(whole):
        mine = batches[epoch * num_batches : (epoch + 1) * num_batches]
        assert sorted(i for batch in mine for i in batch) == list(range(num))
    if whole > 3 and shuffle and num > 12:
        assert batches[:num_batches] != batches[num_batches : 2 * num_batches]


def test_a_batch_that_comes_in_a_later_round_is_refused_in_the_first() -> None:
    """One example alone is more than BatchNorm takes, however late it comes."""
    front, back = builders.halves()
    (device,) = builders.devices(front, [17], max_steps=1)
    with pytest.raises(SettingError, match="a batch of 1 example"):
        train_locally([device], front.state_dict(), builders.server(back), num_rounds=1)


def test_cut_rounds_need_no_live_object() -> None:
    """A forward that is run again reads the batch of its place in the run."""
    results = []
    for link in (None, ForgetfulLink):
        front, back = builders.halves(norm=False)
        devices = builders.devices(front, [20, 13], max_steps=2)
        server = builders.server(back)
        more = {} if link is None else {"make_link": link}
        result = train_locally(
            devices,
            front.state_dict(),
            server,
            num_rounds=4,
            evaluate=False,
            **more,  # type: ignore[arg-type]
        )
        results.append(dict(result.front))
    builders.assert_same(*results)


def test_what_a_step_costs_is_that_of_a_whole_batch() -> None:
    """Also in a round that begins with the last, smaller batch of an epoch."""
    front, _ = builders.halves()
    (device,) = builders.devices(front, [20], max_steps=2)
    order = device.batches(0, 2, 0)
    assert order.sizes == [4, 8]
    reader = BatchReader(device.train_set, order, Place(0, 2, 0), torch.device("cpu"))
    assert len(reader.largest()) == 8
