"""Models that are rare but legitimate are trained, or refused by name at once."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flwr_slfac import Lightweight
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Identity
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.pruning import ElementMask, FullMask, average_coordinates
from flwr_slfac.lightweight.quantization import pack_update, unpack_update
from flwr_slfac.split import (
    Begin,
    DeviceHalf,
    LocalLink,
    TrainRequest,
    train_locally,
)
from flwr_slfac.states import weighted_average
from flwr_slfac.transport import answer, as_record
from flwr_slfac.transport.packing import pack_state, unpack_state
from tests.split import builders
from tests.split.test_device_half import ForgetfulLink


class WithBuffer(nn.Module):
    """A convolution beside a buffer that it does not use."""

    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.register_buffer("own", buffer)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of three channels."""
        return self.conv(x).relu()


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of three channels."""
        return self.other(self.one(x).relu()).expand(-1, 3, -1, -1)


class Spectral(nn.Module):
    """A filter with complex weights, one a frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(6, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of three channels."""
        filtered = torch.fft.ifft(torch.fft.fft(x) * self.filter)
        return filtered.real.expand(-1, 3, -1, -1)


class Bare(nn.Module):
    """No weight at all."""

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of three channels."""
        return x.expand(-1, 3, -1, -1).relu()


class Halved(nn.Module):
    """A convolution in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of three channels."""
        return self.conv(x.bfloat16()).relu().float()


FRONTS: dict[str, Callable[[], nn.Module]] = {
    "bool buffer": lambda: WithBuffer(torch.tensor([True, False])),
    "complex buffer": lambda: WithBuffer(torch.tensor([1 + 2j])),
    "tied": Tied,
    "complex weights": Spectral,
    "no weights": Bare,
    "bfloat16": Halved,
}
SETTINGS = {
    "plain": None,
    "null": Lightweight(),
    "quantized": Lightweight(gradient_bits=8),
    "updates": Lightweight(update_bits=4),
    "fed back": Lightweight(update_bits=4, error_feedback=True),
    "rare": Lightweight(aggregate_every=2, period="round", saved_bits=8),
    "pruned": Lightweight(prune=0.3),
    "masked": Lightweight(prune=0.3, structured=False, criterion="gradient"),
}
# What is refused, and what the message names.
REFUSED = {
    ("complex buffer", "quantized"): "'own' is torch.complex64.*update_bits=32",
    ("complex buffer", "updates"): "'own' is torch.complex64.*update_bits=32",
    ("complex buffer", "fed back"): "'own' is torch.complex64.*update_bits=32",
    ("complex weights", "quantized"): "'filter' is torch.complex64",
    ("complex weights", "updates"): "'filter' is torch.complex64.*update_bits=32",
    ("complex weights", "fed back"): "'filter' is torch.complex64.*update_bits=32",
    ("complex weights", "pruned"): "no channel of the front can be pruned",
    ("tied", "pruned"): "weights are tied",
    ("tied", "masked"): "'other.weight' cannot be pruned.*tied to 'one.weight'",
    ("no weights", "pruned"): "no channel of the front can be pruned",
}


def run(front: nn.Module, setting: Lightweight | None, link: type[LocalLink]) -> Any:
    """Train two devices for three rounds."""
    _, back = builders.halves(norm=False)
    return train_locally(
        builders.devices(front, [16, 8], keep_optimizer=True),
        front.state_dict(),
        builders.server(back),
        num_rounds=3,
        lightweight=setting,
        make_link=link,
        evaluate=False,
    )


class Watching(LocalLink):
    """Counts what reaches devices."""

    steps = 0

    def train(self, requests: Any) -> Any:
        """Note steps after the first."""
        Watching.steps += any(r.step > 0 for r in requests.values())
        return super().train(requests)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", FRONTS)
def test_unusual_fronts_train_or_are_refused_at_once(kind: str, setting: str) -> None:
    """A front trains in the same bits from stored state, or is named before a step."""
    torch.manual_seed(0)
    front = FRONTS[kind]()
    if reason := REFUSED.get((kind, setting)):
        Watching.steps = 0
        with pytest.raises(SettingError, match=reason):
            run(front, SETTINGS[setting], Watching)
        assert Watching.steps == 0
        return
    once = run(front, SETTINGS[setting], LocalLink)
    again = run(front, SETTINGS[setting], ForgetfulLink)
    builders.assert_same(dict(once.front), dict(again.front))
    dtypes = {name: t.dtype for name, t in once.front.items()}
    assert dtypes == {name: t.dtype for name, t in front.state_dict().items()}
    front.load_state_dict(once.front)


def test_a_buffer_of_two_dimensions_is_not_pruned_as_a_weight() -> None:
    """What a mask by weights would zero without being a weight is refused by name."""
    front = WithBuffer(torch.randn(4, 4))
    with pytest.raises(SettingError, match=r"'own' cannot be pruned.*buffer"):
        run(front, Lightweight(prune=0.3, structured=False), LocalLink)


def test_tied_weights_are_quantized_alike() -> None:
    """An update gives both names of a tied weight the same values, bit for bit."""
    torch.manual_seed(0)
    front = Tied()
    old = {name: t.clone() for name, t in front.state_dict().items()}
    with torch.no_grad():
        front.one.weight.add_(torch.randn(6, 6))
    data = pack_update(front.state_dict(), old, 3, torch.Generator().manual_seed(0))
    got = unpack_update(data, old)
    assert torch.equal(got["one.weight"], got["other.weight"])
    assert not torch.equal(got["one.weight"], old["one.weight"])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_tensors_are_averaged_whole(dtype: torch.dtype) -> None:
    """Real and imaginary parts of a mean are the means of the parts."""
    torch.manual_seed(0)
    states = [{"w": torch.randn(3, 2, dtype=dtype)} for _ in range(3)]
    got = weighted_average(states, [1, 2, 5])["w"]
    assert got.dtype is dtype
    for part in ("real", "imag"):
        parts = [{"w": getattr(s["w"], part)} for s in states]
        want = weighted_average(parts, [1, 2, 5])["w"]
        torch.testing.assert_close(getattr(got, part), want)


def test_a_bool_is_what_most_of_the_weight_says() -> None:
    """The mean of bools is the majority by weight; False if it is even."""
    yes, no = {"on": torch.tensor([True, True])}, {"on": torch.tensor([True, False])}
    for weights, want in (([3, 2], True), ([2, 3], False), ([1, 1], False)):
        got = weighted_average([yes, no], weights)["on"]
        assert got.tolist() == [True, want]


def test_complex_tensors_are_averaged_by_coordinate_too() -> None:
    """Under masks a complex coordinate is the whole mean over those who hold it."""
    mask = ElementMask({"w": torch.tensor([[True, False]])})
    states = [{"w": torch.tensor([2j])}, {"w": torch.tensor([[4.0 + 0j, 1 - 1j]])}]
    old = {"w": torch.zeros(1, 2, dtype=torch.complex64)}
    got = average_coordinates(states, [1, 1], [mask, FullMask()], old)
    assert torch.equal(got["w"], torch.tensor([[2 + 1j, 1 - 1j]]))


def test_complex_state_is_stored() -> None:
    """Complex tensors come back from stored state in dtype, shape and bits."""
    for x in (torch.randn(2, 3, dtype=torch.complex64), torch.tensor(1j).conj()):
        back = unpack_state(pack_state({"x": x}))["x"]
        assert back.dtype is x.dtype
        assert torch.equal(back, x)


def test_a_complex_back_is_averaged_under_sflv1() -> None:
    """Copies of a back with complex weights end in the mean of unsplit training."""

    class Back(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.randn(6, dtype=torch.complex64))
            self.rest = builders.halves(norm=False)[1]

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(torch.fft.ifft(torch.fft.fft(x) * self.filter).real)

    front, _ = builders.halves(norm=False)
    back = Back()
    devices = builders.devices(front, [8, 8], shuffle=False)
    server = builders.server(back, "sflv1")
    train_locally(devices, front.state_dict(), server, num_rounds=1, evaluate=False)
    filters = []
    for device in devices:
        own = nn.Sequential(copy.deepcopy(front), copy.deepcopy(back))
        tuned = builders.sgd(own.parameters())
        x, y = device.train_set[:]
        nn.functional.cross_entropy(own(x), y).backward()
        tuned.step()
        filters.append(own[1].filter.detach())
    want = filters[0] * 0.5 + filters[1] * 0.5
    assert torch.equal(server.snapshot()["filter"], want)


@pytest.mark.parametrize("sizes", [[17, 8], [9, 9], [17, 8, 8]])
def test_a_last_batch_of_one_does_not_end_a_parallel_run(
    sizes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """A lone example that BatchNorm cannot normalise is left out, and it is said."""
    front, back = builders.halves(norm=False)
    back[2] = nn.BatchNorm1d(16)
    back.insert(0, nn.BatchNorm2d(3))
    server = builders.server(back, "parallel")
    alone = sizes != [9, 9]
    with caplog.at_level(logging.WARNING, logger="flwr"):
        result = train_locally(
            builders.devices(front, sizes),
            front.state_dict(),
            server,
            num_rounds=1,
            evaluate=False,
        )
    said = [r for r in caplog.records if "alone with one example" in r.getMessage()]
    assert len(said) == alone
    # Each norm has counted the steps that were taken, and no other.
    steps = 2
    assert int(server.snapshot()["0.num_batches_tracked"]) == steps
    assert result.rounds[0].loss == result.rounds[0].loss


def test_the_step_that_is_left_out_leaves_no_trace() -> None:
    """Weights, statistics and moments of the back are those of a run without it."""
    front, back = builders.halves(norm=False)
    back[2] = nn.BatchNorm1d(16)
    states = []
    for max_steps in (None, 2):
        devices = builders.devices(front, [17], max_steps=max_steps)
        server = builders.server(back, "parallel")
        train_locally(devices, front.state_dict(), server, num_rounds=1, evaluate=False)
        states.append(server.snapshot())
    builders.assert_same(*states)


def test_flower_refuses_bfloat16_by_name_before_training() -> None:
    """A front that Flower's records cannot carry is named at the first message."""
    front = Halved()
    with pytest.raises(SettingError, match=r"'conv.weight' is torch.bfloat16"):
        as_record(front.state_dict())
    half = DeviceHalf(builders.devices(front, [8])[0], 0)
    sent = {name: t.float() for name, t in front.state_dict().items()}
    begin = Begin(1, 0, sent, Identity(), RELEASE)
    with pytest.raises(SettingError, match=r"torch\.autocast"):
        answer(half, TrainRequest(0, begin=begin))
