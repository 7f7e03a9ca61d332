"""A recomputed forward sees what the first one saw, or says that it does not."""

import copy
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from flwr_slfac.errors import SettingError
from flwr_slfac.split import Device, DeviceHalf, LocalLink, train_locally
from flwr_slfac.split.place import seeded
from flwr_slfac.split.reading import fingerprint
from flwr_slfac.transport.packing import unpack_state
from tests.split import builders
from tests.split.test_device_half import ForgetfulLink, StutteringLink

CPU = torch.device("cpu")


class Shifted(Dataset[tuple[Tensor, Tensor]]):
    """Images that are shifted by what a function draws each time they are read."""

    def __init__(self, draw: Callable[[], int]) -> None:
        self.draw = draw
        self._images, self._labels = builders.data(16).tensors

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._images[index].roll(self.draw(), -1), self._labels[index]


def train(
    dataset: Dataset[Any], link: type[LocalLink], front: nn.Module | None = None
) -> dict[str, Tensor]:
    """Train one device on a data set for two rounds."""
    own, back = builders.halves()
    front = front or own
    device = Device(copy.deepcopy(front), builders.sgd, dataset, batch_size=4)
    result = train_locally(
        [device],
        front.state_dict(),
        builders.server(back),
        num_rounds=2,
        evaluate=False,
        make_link=link,
    )
    return dict(result.front)


GLOBAL = {
    "python": lambda: random.randint(-2, 2),
    "numpy": lambda: int(np.random.randint(-2, 3)),
    "torch": lambda: int(torch.randint(-2, 3, ())),
}


@pytest.mark.parametrize("link", [ForgetfulLink, StutteringLink])
@pytest.mark.parametrize("source", GLOBAL)
def test_augmentation_by_a_global_generator_is_repeated(
    source: str, link: type[LocalLink]
) -> None:
    """A recomputed forward sees the augmented images of the first, bit for bit."""
    dataset = Shifted(GLOBAL[source])
    builders.assert_same(train(dataset, LocalLink), train(dataset, link))


def own_generators() -> dict[str, Callable[[], int]]:
    """Return sources of randomness that nobody can seed."""
    of_numpy = np.random.default_rng(0)
    of_torch = torch.Generator().manual_seed(0)
    of_python = random.Random(0)
    return {
        "numpy": lambda: int(of_numpy.integers(-2, 3)),
        "torch": lambda: int(torch.randint(-2, 3, (), generator=of_torch)),
        "python": lambda: of_python.randint(-2, 2),
    }


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("source", own_generators())
@pytest.mark.parametrize("link", [ForgetfulLink, StutteringLink])
def test_augmentation_by_an_own_generator_is_refused_where_it_matters(
    link: type[LocalLink], source: str, wrapped: bool
) -> None:
    """A batch that cannot be read again is an error that names the data set."""
    dataset: Dataset[Any] = Shifted(own_generators()[source])
    name = "Subset" if wrapped else "Shifted"
    if wrapped:
        dataset = Subset(dataset, range(16))
    with pytest.raises(SettingError, match=rf"round 1, step .*\({name}\).*generators"):
        train(dataset, link)
    train(dataset, LocalLink)


def test_seeding_leaves_global_generators_as_they_were() -> None:
    """What is drawn after a seeded block is what would have been drawn without it."""

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def begin() -> None:
        random.seed(1)
        np.random.seed(1)
        np.random.standard_normal()  # leaves the other normal of a pair behind
        torch.manual_seed(1)

    begin()
    want = draw()
    begin()
    with seeded(7, CPU):
        first = draw()
    assert draw() == want
    begin()

    def fail() -> None:
        with seeded(7, CPU):
            assert draw() == first
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert draw() == want


def test_seeding_torch_is_manual_seed() -> None:
    """The numbers that torch draws are those behind `torch.manual_seed`."""
    with seeded(2**62 + 11, CPU):
        got = torch.rand(5)
    with torch.random.fork_rng():
        torch.manual_seed(2**62 + 11)
        assert torch.equal(got, torch.rand(5))


class Counting(nn.Module):
    """A front whose output depends on buffers that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = builders.halves()[0]
        self.register_buffer("num", torch.tensor(0.0), persistent=False)
        self.register_buffer("seen", torch.zeros(0), persistent=False)
        self.register_buffer("table", torch.arange(6.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layers' output, weighted by the number of batches so far."""
        if self.training:
            self.num += 1
            self.seen = torch.cat([self.seen, x.detach().mean()[None]])
        return self.layers(x + self.table / 10) * (1 + self.num / 10) + self.seen.sum()


class RebuiltLink(ForgetfulLink):
    """Builds the device itself anew for every request, as another process does."""

    def __init__(self, halves: Sequence[DeviceHalf]) -> None:
        super().__init__(halves)
        self._pristine = {h.partition: copy.deepcopy(h.device) for h in halves}

    def _rebuild(self, keys: Iterable[int]) -> None:
        for key in keys:
            kept = self.stored.get(key, (None, None))[1]
            half = DeviceHalf(copy.deepcopy(self._pristine[key]), key)
            half.kept = None if kept is None else unpack_state(kept)
            self._halves[key] = half

    def train(self, requests: Any) -> Any:
        """Train on new devices that have the stored state."""
        self._rebuild(requests)
        return super().train(requests)

    def evaluate(self, requests: Any) -> Any:
        """Test on new devices that have the stored state."""
        self._rebuild(requests)
        return super().evaluate(requests)


@pytest.mark.parametrize("link", [RebuiltLink, StutteringLink])
def test_buffers_outside_the_state_dict_are_restored(link: type[LocalLink]) -> None:
    """Recomputed or repeated, a forward begins with the buffers of the first one.

    From round to round they go on, as they do in unsplit training.
    """
    data = builders.data(16)
    builders.assert_same(
        train(data, LocalLink, Counting()), train(data, link, Counting())
    )


def test_buffers_outside_the_state_dict_go_on_as_in_unsplit_training() -> None:
    """Two rounds of one device count batches as two epochs of a plain loop do."""
    front, back = Counting(), builders.halves()[1]
    device = Device(copy.deepcopy(front), builders.sgd, builders.data(8), batch_size=8)
    train_locally(
        [device],
        front.state_dict(),
        builders.server(back),
        num_rounds=3,
        evaluate=False,
    )
    assert isinstance(device.front, Counting)
    assert float(device.front.num) == 3
    assert len(device.front.seen) == 3


def test_a_front_is_tested_with_the_buffers_that_it_trained() -> None:
    """Evaluation gives the same numbers whether or not the device stays alive."""
    front, back = Counting(), builders.halves()[1]
    found = []
    for link in (LocalLink, RebuiltLink):
        devices = builders.devices(front, [16])
        result = train_locally(
            devices,
            front.state_dict(),
            builders.server(back),
            num_rounds=2,
            make_link=link,
        )
        found.append(result.evaluations)
    assert found[0] == found[1]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.int64, torch.uint8, torch.float16]),
    st.data(),
)
def test_a_fingerprint_tells_values_and_their_order(
    shape: list[int], dtype: torch.dtype, data: st.DataObject
) -> None:
    """Equal bits give equal texts; one other value, or two exchanged, another text."""
    torch.manual_seed(0)
    x = (torch.randn(shape) * 50).to(dtype)
    text = fingerprint(x)
    assert fingerprint(x.clone()) == text
    assert fingerprint(x.t() if x.ndim == 2 else x) == text or x.ndim == 2
    if x.numel() < 2:
        return
    one, other = (data.draw(st.integers(0, x.numel() - 1)) for _ in range(2))
    changed = x.clone().flatten()
    changed[one] += 1
    assert fingerprint(changed.reshape(shape)) != text
    swapped = x.clone().flatten()
    swapped[one], swapped[other] = x.flatten()[other], x.flatten()[one]
    same = bool(torch.equal(swapped, x.flatten()))
    assert (fingerprint(swapped.reshape(shape)) == text) == same


@pytest.mark.parametrize("num", [10**5, 10**5 + 3])
def test_one_value_of_many_changes_the_fingerprint(num: int) -> None:
    """Also between the values that are hashed in their order."""
    x = torch.rand(num)
    text = fingerprint(x)
    for place in (0, 1, num // 2 + 1, num - 2, num - 1):
        y = x.clone()
        y[place] += 1
        assert fingerprint(y) != text
    assert fingerprint(x.flip(0)) != text
