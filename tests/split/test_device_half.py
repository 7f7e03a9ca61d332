"""A device keeps nothing that it cannot do without."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, StepLR
from torch.utils.data import TensorDataset

from flwr_slfac import Lightweight
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Identity, encode
from flwr_slfac.errors import DecodeError, SettingError, TrainingError
from flwr_slfac.split import (
    Begin,
    Device,
    DeviceHalf,
    Fronts,
    LocalLink,
    LocalResult,
    Rounds,
    Scheme,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.protocol import TrainAnswer
from flwr_slfac.traffic import Traffic
from flwr_slfac.transport.packing import pack_state, unpack_state
from flwr_slfac.transport.snapshots import pack_snapshot, unpack_snapshot
from tests.split import builders


class ForgetfulLink(LocalLink):
    """Hands every request to a new DeviceHalf that only has the stored state."""

    def __init__(self, halves: Sequence[DeviceHalf]) -> None:
        super().__init__(halves)
        self.stored: dict[int, tuple[bytes | None, bytes | None]] = {}

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Build the device anew before each step, from bytes alone."""
        answers: dict[int, TrainAnswer] = {}
        for key in sorted(requests):
            fresh = DeviceHalf(self._halves[key].device, key)
            with torch.no_grad():
                for p in fresh.front.parameters():
                    p.fill_(float("nan"))
            snapshot, kept = self.stored.get(key, (None, None))
            fresh.kept = None if kept is None else unpack_state(kept)
            fresh.restore(None if snapshot is None else unpack_snapshot(snapshot))
            answers[key] = fresh.train(requests[key])
            now = fresh.snapshot()
            self.stored[key] = (
                None if now is None else pack_snapshot(now),
                None if fresh.kept is None else pack_state(fresh.kept),
            )
        return answers


class StutteringLink(LocalLink):
    """Asks every device twice, as a retry after a lost reply does."""

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Deliver each request that is not a round's last one two times."""
        answers = super().train(requests)
        unfinished = {
            k: r
            for k, r in requests.items()
            if getattr(answers[k], "smashed", None) is not None and r.begin is None
        }
        again = super().train(unfinished)
        for key, answer in again.items():
            assert answer.smashed == answers[key].smashed  # type: ignore[union-attr]
        return {**answers, **again}


def run(make_link: type[LocalLink], **settings: object) -> LocalResult:
    """Train two devices for three rounds with noise, BatchNorm and momentum."""
    front, back = builders.halves(dropout=0.3)
    devices = builders.devices(front, [20, 18], **settings)
    server = builders.server(back)
    return train_locally(
        devices, front.state_dict(), server, num_rounds=3, make_link=make_link
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": partial(Adam, lr=1e-2), "keep_optimizer": True},
        {"scheduler": partial(StepLR, step_size=1, gamma=0.5)},
        {
            "scheduler": partial(CosineAnnealingLR, T_max=20),
            "scheduler_per": "step",
            "clip_norm": 0.5,
        },
    ],
    ids=["sgd", "kept adam", "schedule per round", "schedule per step"],
)
def test_forward_is_recomputed_exactly(settings: dict[str, object]) -> None:
    """Without any live object the run ends in the same bits, noise and buffers too."""
    builders.assert_same(
        run(LocalLink, **settings).front, run(ForgetfulLink, **settings).front
    )


def test_a_repeated_request_changes_nothing() -> None:
    """A step that is asked for twice is answered alike and taken once."""
    builders.assert_same(run(LocalLink).front, run(StutteringLink).front)


def test_an_idle_device_stores_nothing() -> None:
    """Between rounds a device of the default settings has no state to keep."""
    front, back = builders.halves()
    halves: list[DeviceHalf] = []

    def keep(made: Sequence[DeviceHalf]) -> LocalLink:
        halves.extend(made)
        return LocalLink(made)

    train_locally(
        builders.devices(front, [10]),
        front.state_dict(),
        builders.server(back),
        num_rounds=1,
        make_link=keep,
    )
    assert halves[0].snapshot() is None
    assert halves[0].kept is None


def test_a_kept_optimizer_goes_on() -> None:
    """keep_optimizer carries momentum into the next round; the default does not."""
    momentum = partial(SGD, lr=0.05, momentum=0.9)
    reset = run(LocalLink, optimizer=momentum)
    kept = run(LocalLink, optimizer=momentum, keep_optimizer=True)
    assert any(not torch.equal(reset.front[k], kept.front[k]) for k in reset.front)


def test_a_schedule_per_round_follows_the_server() -> None:
    """A device that missed rounds trains at the rate of the server's round."""
    rates: list[float] = []

    class Recording(SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])
            super().step()

    front, back = builders.halves()
    device = builders.devices(
        front,
        [8],
        optimizer=partial(Recording, lr=1.0),
        scheduler=partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=10),
    )[0]
    half = DeviceHalf(device, 0)
    server = builders.server(back)
    rounds = Rounds(server, Identity(), Traffic(), 10**6)
    for server_round in (1, 4):
        begin = Begin(server_round, 0, front.state_dict(), Identity(), "0.1.0")
        rounds.train(LocalLink([half]), [0], begin)
    assert rates == pytest.approx([1.0, 0.7])


def test_proximal_term_pulls_towards_the_global_front() -> None:
    """A huge FedProx mu keeps the front where the server put it."""
    front, back = builders.halves(norm=False)

    def moved(mu: float) -> float:
        devices = builders.devices(
            front, [24], optimizer=partial(SGD, lr=1e-3), epochs=8
        )
        result = train_locally(
            devices,
            front.state_dict(),
            builders.server(back),
            num_rounds=1,
            proximal_mu=mu,
        )
        before = front.state_dict()
        return sum(float((result.front[k] - before[k]).norm()) for k in before)

    assert moved(500.0) < 0.5 * moved(0.0)


@pytest.mark.parametrize("make_link", [LocalLink, ForgetfulLink])
@pytest.mark.parametrize("update_bits", [32, 8])
@pytest.mark.parametrize("scheme", ["parallel", "sequential"])
def test_the_proximal_term_pulls_to_the_front_of_the_last_aggregation(
    scheme: Scheme, update_bits: int, make_link: type[LocalLink]
) -> None:
    """Where fronts stay on devices for rounds, the anchor stays what the server sent.

    With one device and SGD, three rounds of one step are three steps of a plain loop
    anchored at the start.
    """
    front, back = builders.halves(norm=False)
    mu, plain = 0.7, partial(SGD, lr=0.1)
    device = builders.devices(front, [8], optimizer=plain, shuffle=False)[0]
    result = train_locally(
        [copy.deepcopy(device)],
        front.state_dict(),
        builders.server(back, scheme, optimizer=plain),
        num_rounds=3,
        proximal_mu=mu,
        lightweight=Lightweight(
            aggregate_every=3, period="round", update_bits=update_bits
        ),
        make_link=make_link,
        evaluate=False,
    )
    anchor = copy.deepcopy(front)
    tuned = plain([*front.parameters(), *back.parameters()])
    x, y = device.train_set[:]
    for _ in range(3):
        tuned.zero_grad()
        nn.functional.cross_entropy(back(front(x)), y).backward()
        for p, start in zip(front.parameters(), anchor.parameters(), strict=True):
            assert p.grad is not None
            p.grad.add_(p.detach() - start.detach(), alpha=mu)
        tuned.step()
    for name, want in front.state_dict().items():
        if update_bits == 32:
            assert torch.equal(result.front[name], want)
        else:
            moved = (want - anchor.state_dict()[name]).abs().max()
            assert (result.front[name] - want).abs().max() < 0.02 * moved


def test_a_proximal_term_in_the_midst_of_a_period_is_refused() -> None:
    """A device that kept no anchor says so instead of pulling to its own front."""
    front, back = builders.halves(norm=False)
    fronts = Fronts(Lightweight(aggregate_every=3, period="round"), relay=False)
    rounds = Rounds(builders.server(back), Identity(), Traffic(), 10**6, fronts)
    whole = fronts.take(front.state_dict())
    link = LocalLink([DeviceHalf(builders.devices(front, [8])[0], 0)])
    begin = Begin(1, 0, whole, Identity(), RELEASE)
    rounds.train(link, [0], begin)
    with pytest.raises(SettingError, match="proximal-mu was 0"):
        rounds.train(link, [0], replace(begin, server_round=2, proximal_mu=0.1))


def test_a_relay_refuses_a_proximal_term_before_training() -> None:
    """In the relay no device but the first has the front that FedProx pulls to."""
    front, back = builders.halves(norm=False)
    server = builders.server(back, "sequential")
    with pytest.raises(SettingError, match=r"proximal-mu is 0\.5.*'sequential'"):
        train_locally(
            builders.devices(front, [8, 8]),
            front.state_dict(),
            server,
            num_rounds=1,
            proximal_mu=0.5,
        )
    builders.assert_same(server.snapshot(), dict(back.state_dict()))


def test_out_of_order_requests_are_refused() -> None:
    """A gradient for a step that was not forwarded raises, and trains nothing."""
    front, _ = builders.halves()
    half = DeviceHalf(builders.devices(front, [16])[0], 0)
    with pytest.raises(TrainingError, match="did not begin"):
        half.train(TrainRequest(0))
    begin = Begin(1, 0, front.state_dict(), Identity(), "0.1.0")
    half.train(TrainRequest(0, begin=begin))
    gradient = encode(torch.zeros(8, 3, 6, 6), Identity())
    with pytest.raises(TrainingError, match="last forward was of step 0"):
        half.train(TrainRequest(3, gradient=gradient))
    with pytest.raises(TrainingError, match="shape"):
        half.train(
            TrainRequest(1, gradient=encode(torch.zeros(8, 3, 6, 5), Identity()))
        )


@pytest.mark.parametrize("frozen", ["all", "some"])
def test_frozen_fronts_stay_frozen(frozen: str) -> None:
    """Weights without requires_grad keep their bits, a wholly frozen front included."""
    front, back = builders.halves(norm=False)
    for name, p in front.named_parameters():
        p.requires_grad_(frozen == "some" and name.endswith("bias"))
    result = train_locally(
        builders.devices(front, [16]),
        front.state_dict(),
        builders.server(back),
        num_rounds=1,
    )
    assert torch.equal(result.front["0.weight"], front.state_dict()["0.weight"])
    same_bias = torch.equal(result.front["0.bias"], front.state_dict()["0.bias"])
    assert same_bias == (frozen == "all")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("epochs", 0),
        ("max_steps", 0),
        ("clip_norm", 0.0),
        ("scheduler_per", "epoch"),
    ],
)
def test_device_settings_are_checked(name: str, value: object) -> None:
    """A setting out of range is refused when the Device is made, and named."""
    with pytest.raises(SettingError, match=name):
        Device(nn.Identity(), builders.sgd, builders.data(4), **{name: value})  # type: ignore[arg-type]


def test_state_survives_as_bytes() -> None:
    """Nested training state comes back with its types, keys and bits."""
    state = {
        "a": [1, 2.5, None, True, "x", (1, (2,))],
        3: {"t": torch.randn(2, 3), "b": torch.tensor(7, dtype=torch.int64)},
        "bf": torch.randn(3).bfloat16(),
    }
    back = unpack_state(pack_state(state))
    assert back["a"] == state["a"]
    assert torch.equal(back[3]["t"], state[3]["t"])  # type: ignore[index]
    assert torch.equal(back["bf"], state["bf"])
    with pytest.raises(SettingError, match="cannot store a object"):
        pack_state({"x": object()})


def test_a_tensor_in_several_places_is_stored_once() -> None:
    """What a codec remembers before and after a step is mostly the same."""
    large, other = torch.randn(1000), torch.randn(1000)
    state = {"now": {"a": large, "b": other}, "before": {"a": large}}
    data = pack_state(state)
    assert len(data) < 9000
    back = unpack_state(data)
    assert torch.equal(back["now"]["a"], large)
    assert torch.equal(back["before"]["a"], large)
    assert torch.equal(back["now"]["b"], other)


@pytest.mark.parametrize("cut_at", [0, 3, 10, 60])
def test_damaged_state_is_refused(cut_at: int) -> None:
    """Truncated state bytes raise DecodeError, never another exception."""
    data = pack_state({"t": torch.ones(4)})
    with pytest.raises(DecodeError):
        unpack_state(data[: min(cut_at, len(data) - 1)])


class Augmented(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images that are shifted at random each time they are read."""

    def __init__(self) -> None:
        self._images, self._labels = builders.data(16).tensors

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        shift = int(torch.randint(-2, 3, ()))
        return self._images[index].roll(shift, -1), self._labels[index]


def test_random_augmentation_is_repeated_exactly() -> None:
    """A recomputed forward sees the same augmented images."""
    front, back = builders.halves()
    fronts = [
        train_locally(
            [Device(copy.deepcopy(front), builders.sgd, Augmented(), batch_size=4)],
            front.state_dict(),
            builders.server(back),
            num_rounds=1,
            evaluate=False,
            make_link=link,
        ).front
        for link in (LocalLink, ForgetfulLink)
    ]
    builders.assert_same(dict(fronts[0]), dict(fronts[1]))


def test_masks_are_targets_too() -> None:
    """A segmentation model trains on masks through the split."""
    torch.manual_seed(0)
    front, back = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
    images = torch.randn(32, 1, 6, 6)
    masks = (images[:, 0] > 0).long()
    device = Device(
        front, builders.sgd, TensorDataset(images, masks), TensorDataset(images, masks),
        batch_size=8, epochs=10,
    )  # fmt: skip
    result = train_locally(
        [device], front.state_dict(), builders.server(back), num_rounds=1
    )
    assert result.evaluations[0]["accuracy"] > 0.9
