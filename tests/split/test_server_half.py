"""The four schemes, against loops written from their definitions."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Feedback, Identity, TopK
from flwr_slfac.errors import DivergedError, SettingError
from flwr_slfac.split import (
    Batch,
    Begin,
    DeviceHalf,
    LocalLink,
    Lost,
    Rounds,
    Scheme,
    ServerHalf,
    train_locally,
)
from flwr_slfac.split.batches import fetch
from flwr_slfac.states import weighted_average
from flwr_slfac.traffic import Traffic
from tests.split import builders

SIZES = [24, 16, 8]


def step_both(
    front: nn.Module, back: nn.Module, tuned: list[torch.optim.Optimizer], x, y
) -> None:
    """Take one plain PyTorch step of a joined front and back."""
    for optimizer in tuned:
        optimizer.zero_grad()
    nn.functional.cross_entropy(back(front(x)), y).backward()
    for optimizer in tuned:
        optimizer.step()


def by_definition(scheme: str, front: nn.Module, back: nn.Module, devices: list):
    """Run one round of a scheme as a slow loop over whole models."""
    fronts = [copy.deepcopy(front) for _ in devices]
    orders = [d.batches(0, 1, i) for i, d in enumerate(devices)]
    longest = max(o.num_steps for o in orders)
    backs = [copy.deepcopy(back) if scheme == "sflv1" else back for _ in devices]
    shared = builders.sgd(back.parameters())
    tuned_backs = [
        builders.sgd(b.parameters()) if scheme == "sflv1" else shared for b in backs
    ]
    if scheme == "sequential":
        for d, order in zip(devices, orders, strict=True):
            tuned = [builders.sgd(front.parameters()), shared]
            for step in range(order.num_steps):
                x, y = fetch(d.train_set, order.indices(step))
                step_both(front, back, tuned, x, y)
        return front.state_dict(), back.state_dict()
    tuned_fronts = [builders.sgd(f.parameters()) for f in fronts]
    for step in range(longest):
        for i, d in enumerate(devices):
            if step < orders[i].num_steps:
                x, y = fetch(d.train_set, orders[i].indices(step))
                step_both(fronts[i], backs[i], [tuned_fronts[i], tuned_backs[i]], x, y)
    averaged = weighted_average([f.state_dict() for f in fronts], SIZES)
    if scheme == "sflv1":
        return averaged, weighted_average([b.state_dict() for b in backs], SIZES)
    return averaged, back.state_dict()


@pytest.mark.parametrize("scheme", ["sequential", "sflv1", "sflv2"])
def test_scheme_equals_its_definition(scheme: Scheme) -> None:
    """A round of unlike devices ends in the bits of the scheme's definition."""
    front, back = builders.halves()
    devices = builders.devices(front, SIZES)
    server = builders.server(back, scheme)
    result = train_locally(
        devices, front.state_dict(), server, num_rounds=1, evaluate=False
    )
    sizes = {k: r.num_examples for k, r in result.rounds[0].finished.items()}
    assert sizes == dict(enumerate(SIZES))
    want_front, want_back = by_definition(
        scheme, copy.deepcopy(front), copy.deepcopy(back), devices
    )
    builders.assert_same(dict(result.front), dict(want_front))
    builders.assert_same(server.snapshot(), dict(want_back))


def test_parallel_takes_one_step_for_all() -> None:
    """Under parallel the back is updated once per step on everybody's data."""
    updates = []

    class Counting(SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            updates.append(1)
            super().step()

    front, back = builders.halves()
    server = builders.server(back, "parallel", optimizer=partial(Counting, lr=0.1))
    train_locally(
        builders.devices(front, [16, 16, 16]),
        front.state_dict(),
        server,
        num_rounds=1,
        evaluate=False,
    )
    assert len(updates) == 2


@pytest.mark.parametrize("scheme", ["sequential", "sflv1", "sflv2", "parallel"])
def test_a_lost_device_equals_one_never_sampled_from_there(scheme: Scheme) -> None:
    """Losing a device in step 1 leaves what the others do as if it had left."""

    class Leaky(LocalLink):
        def train(self, requests):
            answers = super().train(requests)
            gone = {k for k, r in requests.items() if k == 1 and r.step >= 1}
            return {**answers, **{k: Lost("unplugged") for k in gone}}

    front, back = builders.halves()
    sizes = [24, 24, 24]
    server = builders.server(back, scheme)
    lossy = train_locally(
        builders.devices(front, sizes),
        front.state_dict(),
        server,
        num_rounds=1,
        make_link=Leaky,
        evaluate=False,
    )
    assert lossy.rounds[0].lost == {1: "unplugged"}
    assert set(lossy.rounds[0].finished) == {0, 2}
    # The device that left after one step: its own front does not count.
    leaver = builders.devices(front, sizes)
    leaver[1].max_steps = 1

    class Quiet(LocalLink):
        def train(self, requests):
            answers = super().train(requests)
            gone = {k for k, r in requests.items() if k == 1 and r.step >= 1}
            return {**answers, **{k: Lost("left") for k in gone}}

    again = builders.server(back, scheme)
    quiet = train_locally(
        leaver,
        front.state_dict(),
        again,
        num_rounds=1,
        make_link=Quiet,
        evaluate=False,
    )
    builders.assert_same(dict(lossy.front), dict(quiet.front))
    builders.assert_same(server.snapshot(), again.snapshot())
    assert all(torch.isfinite(v.float()).all() for v in lossy.front.values())


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_mixed_precision_learns_and_keeps_float32_weights(
    autocast: torch.dtype,
) -> None:
    """Autocast on the server lowers the loss, and leaves weights in float32."""
    front, back = builders.halves()
    server = builders.server(back, autocast=autocast)
    result = train_locally(
        builders.devices(front, [64, 64]), front.state_dict(), server, num_rounds=6
    )
    losses = [r.loss for r in result.rounds]
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.dtype == torch.float32 for p in server.back.parameters())


def test_gradient_clipping_bounds_the_step() -> None:
    """With SGD at rate 1 the back moves by at most clip_norm per step."""
    front, back = builders.halves(norm=False)
    server = builders.server(back, optimizer=partial(SGD, lr=1.0), clip_norm=1e-3)
    train_locally(
        builders.devices(front, [8]),
        front.state_dict(),
        server,
        num_rounds=1,
        evaluate=False,
    )
    moved = [
        (a - b).norm()
        for a, b in zip(server.back.parameters(), back.parameters(), strict=True)
    ]
    assert float(torch.stack(moved).norm().detach()) <= 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize("scheme", ["parallel", "sflv1"])
@pytest.mark.parametrize(
    ("per", "want"),
    [("round", [1.0, 1.0, 0.5, 0.5]), ("step", [1.0, 0.5, 0.25, 0.125])],
)
def test_schedules_of_the_back(scheme: Scheme, per: str, want: list[float]) -> None:
    """The back's rate falls per round or per step, and goes on over rounds."""
    rates = []

    class Recording(SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])
            super().step()

    front, back = builders.halves()
    server = builders.server(
        back,
        scheme,
        optimizer=partial(Recording, lr=1.0),
        scheduler=partial(StepLR, step_size=1, gamma=0.5),
        scheduler_per=per,
    )
    train_locally(
        builders.devices(front, [16]),
        front.state_dict(),
        server,
        num_rounds=2,
        evaluate=False,
    )
    assert rates == pytest.approx(want)


def test_under_sflv1_the_schedule_follows_the_most_steps() -> None:
    """The back's schedule goes on from the copy of most steps, not of most examples."""
    rates = []

    class Recording(SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])
            super().step()

    front, back = builders.halves()
    server = builders.server(
        back,
        "sflv1",
        optimizer=partial(Recording, lr=1e-3),
        scheduler=partial(StepLR, step_size=1, gamma=0.5),
        scheduler_per="step",
    )
    devices = builders.devices(front, [32, 16, 24])
    devices[0].batch_size, devices[1].batch_size = 32, 4
    train_locally(devices, front.state_dict(), server, num_rounds=2, evaluate=False)
    # One step of 32 examples, four of 4, three of 8: the second round begins after 4.
    assert max(rates[8:]) == pytest.approx(1e-3 * 0.5**4)


@pytest.mark.parametrize("scheme", ["sflv1", "sflv2", "parallel"])
def test_the_scale_of_float16_is_found_once(scheme: Scheme) -> None:
    """Steps lost to the loss's scale are lost in the first round, not in each."""
    taken = []

    class Counting(SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            taken.append(1)
            super().step()

    front, back = builders.halves(norm=False)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 1000 * nn.functional.cross_entropy(outputs.float(), targets)

    counts = []
    for num_rounds in (1, 3):
        taken.clear()
        server = ServerHalf(
            copy.deepcopy(back),
            loss,
            partial(Counting, lr=1e-6),
            scheme=scheme,
            autocast=torch.float16,
        )
        train_locally(
            builders.devices(front, [96, 96], optimizer=partial(SGD, lr=1e-6)),
            front.state_dict(),
            server,
            num_rounds=num_rounds,
            evaluate=False,
        )
        counts.append(len(taken))
    steps_per_round = 12 if scheme == "parallel" else 24
    assert counts[0] < steps_per_round
    assert counts[1] - counts[0] >= 2 * steps_per_round - 2


def test_divergence_names_device_round_and_step() -> None:
    """A NaN loss stops training with the device, round and step in the message."""
    _, back = builders.halves()
    server = builders.server(back, "sflv2")
    server.begin_round(3, seed=0)
    fine = Batch(torch.randn(4, 3, 6, 6), torch.zeros(4, dtype=torch.long), 4)
    bad = Batch(torch.full((4, 3, 6, 6), float("nan")), fine.targets, 4)
    with pytest.raises(DivergedError, match=r"device 7, round 3, step 5"):
        server.step(5, {2: fine, 7: bad})


def test_targets_of_the_wrong_dtype_are_named() -> None:
    """Targets that the loss does not take raise SettingError with both dtypes."""
    _, back = builders.halves()
    server = builders.server(back)
    batch = Batch(torch.randn(4, 3, 6, 6), torch.zeros(4, dtype=torch.int32), 4)
    with pytest.raises(SettingError, match=r"int32"):
        server.step(0, {0: batch})
    weights = dict(server.back.named_parameters())
    builders.assert_same(weights, dict(back.named_parameters()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scheme", "sflv3"),
        ("clip_norm", -1.0),
        ("scheduler_per", "day"),
        ("autocast", torch.float64),
    ],
)
def test_server_settings_are_checked(name: str, value: object) -> None:
    """A server setting out of range is refused at once, and named."""
    with pytest.raises(SettingError, match=name):
        ServerHalf(
            nn.Linear(2, 2),
            nn.MSELoss(),
            builders.sgd,
            **{name: value},  # type: ignore[arg-type]
        )


def test_evaluation_equals_the_joined_model() -> None:
    """Metrics through the split are those of the joined model on all test sets."""
    front, back = builders.halves()
    devices = builders.devices(front, [20, 30])
    server = builders.server(back)
    result = train_locally(devices, front.state_dict(), server, num_rounds=2)
    front.load_state_dict(result.front)
    model = nn.Sequential(front, server.back).eval()
    x, y = (
        torch.cat(t) for t in zip(*(d.test_set.tensors for d in devices), strict=True)
    )
    with torch.no_grad():
        outputs = model(x)
    got = result.evaluations[-1]
    assert got["accuracy"] == pytest.approx(
        float((outputs.argmax(1) == y).double().mean())
    )
    assert got["loss"] == pytest.approx(
        float(nn.functional.cross_entropy(outputs, y)), abs=1e-6
    )
    assert got["num-examples"] == len(y)


def test_a_gradient_residual_outlives_the_round() -> None:
    """Error feedback on gradients adds in round 2 what round 1 left out, by device."""
    front, back = builders.halves()
    still = partial(SGD, lr=0.0)
    frames: list[bytes] = []

    class Recording(LocalLink):
        def train(self, requests):
            frames.extend(r.gradient for r in requests.values() if r.gradient)
            return super().train(requests)

    def second_round(first: Rounds, second: Rounds) -> list[bytes]:
        half = DeviceHalf(builders.devices(front, [8], optimizer=still)[0], 0)
        link = Recording([half])
        for server_round, rounds in ((1, first), (2, second)):
            frames.clear()
            begin = Begin(server_round, 0, front.state_dict(), Identity(), RELEASE)
            rounds.train(link, [0], begin)
        return list(frames)

    def rounds() -> Rounds:
        server = builders.server(back, optimizer=still)
        return Rounds(server, Feedback(TopK(fraction=0.1)), Traffic(), 10**6)

    one, other = rounds(), rounds()
    assert second_round(one, one) != second_round(rounds(), other)
