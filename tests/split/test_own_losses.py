"""What a device is handed under `parallel`: the gradient of its own loss."""

import copy
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flwr_slfac.errors import DivergedError, SettingError
from flwr_slfac.split import Batch, Device, ServerHalf, train_locally
from tests.split import builders

IGNORED = -100
SIZES = {0: 5, 1: 3, 4: 8}
plain = partial(SGD, lr=0.5)
WEIGHT = torch.tensor([1.0, 5.0, 0.2, 3.0])


def masked_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over what is not ignored, as language models take it."""
    each = F.cross_entropy(outputs, targets.clamp(min=0), reduction="none")
    counts = (targets != IGNORED).float()
    return (each * counts).sum() / counts.sum()


def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each example against all others of its batch."""
    unit = F.normalize(outputs, dim=1)
    return F.cross_entropy(unit @ unit.T / 0.1, torch.arange(len(unit)))


def constant_value(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 2 for every batch, with the gradient of a sum."""
    each = F.cross_entropy(outputs, targets.clamp(min=0), reduction="sum")
    return each - each.detach() + 2


UNLIKE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "class weights": nn.CrossEntropyLoss(weight=WEIGHT),
    "ignored targets": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "masked mean": masked_mean,
    "contrast": contrast,
    "constant value": constant_value,
    "worst example": lambda o, t: F.cross_entropy(
        o, t.clamp(min=0), reduction="none"
    ).max(),
}
MEANS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "module": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "function": F.cross_entropy,
    "focal": lambda o, t: (
        (1 - o.softmax(1).gather(1, t[:, None])[:, 0]) ** 2
        * F.cross_entropy(o, t, reduction="none")
    ).mean(),
    "positive weight": lambda o, t: nn.BCEWithLogitsLoss(pos_weight=WEIGHT)(
        o, F.one_hot(t, 4).float()
    ),
    "squares": lambda o, t: F.mse_loss(o, F.one_hot(t, 4).float()),
}


def batches(*, ignored: bool = False) -> dict[int, Batch]:
    """Return smashed data of three devices; every third target may be ignored."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for device, size in SIZES.items():
        x = torch.randn(size, 3, 6, 6, generator=generator)
        y = torch.randint(0, builders.NUM_CLASSES, (size,), generator=generator)
        if ignored:
            y[device % 2 :: 3] = IGNORED
        found[device] = Batch(x, y, size)
    return found


def half(back: nn.Module, loss: Any, **settings: Any) -> ServerHalf:
    """Return a server in its first round."""
    server = ServerHalf(copy.deepcopy(back), loss, plain, **settings)
    server.begin_round(1, seed=0)
    return server


def joined(found: dict[int, Batch]) -> tuple[Tensor, Tensor]:
    """Return the concatenated batch, its activations as a leaf."""
    parts = found.values()
    x = torch.cat([b.activations for b in parts]).requires_grad_()
    return x, torch.cat([b.targets for b in parts])


@pytest.mark.parametrize("loss", UNLIKE.values(), ids=UNLIKE.keys())
def test_a_device_is_handed_the_gradient_of_its_own_loss(loss: Any) -> None:
    """Whatever the loss weighs, a device's gradient is that of its outputs' loss."""
    _, back = builders.halves(norm=False)
    found = batches(ignored=loss in (UNLIKE["ignored targets"], masked_mean))
    answers = half(back, loss).step(0, found)
    for device, batch in found.items():
        x = batch.activations.clone().requires_grad_()
        own = loss(back(x), batch.targets)
        own.backward()
        torch.testing.assert_close(answers[device][0], x.grad, rtol=1e-4, atol=1e-7)
        assert answers[device][1] == pytest.approx(float(own.detach()), rel=1e-5)


@pytest.mark.parametrize("loss", [*UNLIKE.values(), *MEANS.values()])
def test_the_back_takes_the_step_of_the_joined_batch(loss: Any) -> None:
    """The back's weights are those of one unsplit step, bit for bit, for every loss."""
    _, back = builders.halves()
    found = batches(ignored=loss is masked_mean)
    server = half(back, loss)
    server.step(0, found)
    x, y = joined(found)
    tuned = plain(back.parameters())
    loss(back(x), y).backward()
    tuned.step()
    builders.assert_same(server.snapshot(), dict(back.state_dict()))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("loss", MEANS.values(), ids=MEANS.keys())
def test_plain_means_need_one_backward(loss: Any, norm: bool) -> None:
    """Of a mean over examples the joint gradient itself is handed out, bit for bit."""
    _, back = builders.halves(norm=norm)
    found = batches()
    answers = half(back, loss).step(0, found)
    x, y = joined(found)
    loss(back(x), y).backward()
    assert x.grad is not None
    for (device, size), part in zip(
        SIZES.items(), x.grad.split(list(SIZES.values())), strict=True
    ):
        assert torch.equal(answers[device][0], part * (len(y) / size))


def test_where_examples_are_coupled_all_own_losses_count() -> None:
    """Behind a BatchNorm a device is handed the mean of own losses, by its share."""
    _, back = builders.halves()
    found = batches()
    loss = UNLIKE["class weights"]
    answers = half(back, loss).step(0, found)
    x, y = joined(found)
    sizes = list(SIZES.values())
    pairs = zip(back(x).split(sizes), y.split(sizes), strict=True)
    mean = sum(loss(o, t) * len(t) / len(y) for o, t in pairs)
    mean.backward()  # type: ignore[union-attr]
    assert x.grad is not None
    for device, part in zip(SIZES, x.grad.split(sizes), strict=True):
        want = part * len(y) / SIZES[device]
        torch.testing.assert_close(answers[device][0], want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shrink", [1.0, 1e-4])
def test_half_precision_hands_out_own_gradients_too(
    dtype: torch.dtype, shrink: float
) -> None:
    """In mixed precision the gradient is that of the own loss up to the dtype's grain.

    Also of losses so small that their unscaled gradients vanish in float16.
    """
    _, back = builders.halves(norm=False)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0, 0.2, 3.0]))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return weighted(outputs.float(), targets) * shrink

    found = batches()
    answers = half(back, loss, autocast=dtype).step(0, found)
    for device, batch in found.items():
        x = batch.activations.clone().requires_grad_()
        loss(back(x), batch.targets).backward()
        assert x.grad is not None
        error = (answers[device][0] - x.grad).norm() / x.grad.norm()
        assert float(error) < 0.05


def ignoring(sizes: list[int], who: int) -> tuple[nn.Module, nn.Module, list[Device]]:
    """Return devices, all targets of one of which are ignored."""
    front, back = builders.halves(norm=False)
    devices = builders.devices(front, sizes)
    x, y = devices[who].train_set.tensors  # type: ignore[attr-defined]
    devices[who].train_set = TensorDataset(x, torch.full_like(y, IGNORED))
    return front, back, devices


@pytest.mark.parametrize("scheme", ["sequential", "sflv1", "sflv2", "parallel"])
def test_a_device_without_targets_does_not_end_the_run(
    scheme: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Where all targets are ignored, the gradient is zero, and it is said once."""
    front, back, devices = ignoring([16, 16, 16], 1)
    server = builders.server(back, scheme)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        result = train_locally(
            devices, front.state_dict(), server, num_rounds=2, evaluate=False
        )
    losses = [r.loss for r in result.rounds[0].finished.values()]
    assert [loss == loss for loss in losses] == [True, False, True]
    assert result.rounds[0].loss == pytest.approx((losses[0] + losses[2]) / 2)
    said = [r for r in caplog.records if "targets of device 1" in r.getMessage()]
    assert len(said) == 1
    assert all(torch.isfinite(v).all() for v in server.snapshot().values())


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), masked_mean])
@pytest.mark.parametrize("norm", [True, False])
def test_ignored_targets_give_a_zero_gradient(loss: Any, norm: bool) -> None:
    """A device without a loss of its own is handed zeros, the others their own."""
    _, back = builders.halves(norm=norm)
    found = batches()
    found[1] = Batch(found[1].activations, torch.full_like(found[1].targets, -100), 3)
    answers = half(back, loss).step(0, found)
    assert int(answers[1][0].count_nonzero()) == 0
    assert answers[1][1] != answers[1][1]
    assert all(int(answers[k][0].count_nonzero()) for k in (0, 4))
    if not norm:
        x = found[0].activations.clone().requires_grad_()
        loss(back(x), found[0].targets).backward()
        torch.testing.assert_close(answers[0][0], x.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), masked_mean])
def test_a_diverged_device_still_ends_the_run(loss: Any) -> None:
    """A NaN that comes from the activations is an error, not an ignored target."""
    _, back = builders.halves(norm=False)
    found = batches()
    bad = torch.full_like(found[1].activations, float("nan"))
    found[1] = Batch(bad, torch.full_like(found[1].targets, IGNORED), 3)
    with pytest.raises(DivergedError, match="device 1"):
        half(back, loss).step(0, found)


@dataclass
class Output:
    """What a user's model may give."""

    logits: Tensor
    note: str = ""


class Named(NamedTuple):
    """The same as a tuple."""

    logits: Tensor
    other: None


class Attributes(OrderedDict):  # type: ignore[type-arg]
    """A dict that is read by attributes, as Hugging Face's outputs are."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


KINDS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dict": (lambda o: {"logits": o, "n": 1}, lambda o: o["logits"]),
    "nested": (lambda o: (None, [o, {"x": o}]), lambda o: o[1][1]["x"]),
    "dataclass": (Output, lambda o: o.logits),
    "named tuple": (lambda o: Named(o, None), lambda o: o.logits),
    "attributes": (lambda o: Attributes(logits=o), lambda o: o.logits),
}


class Giving(nn.Module):
    """A back that gives its outputs in another form."""

    def __init__(self, back: nn.Module, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.back, self.form = back, form

    def forward(self, x: Tensor) -> Any:
        """Return the outputs in that form."""
        return self.form(self.back(x))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_may_be_nested(kind: str, weighted: bool) -> None:
    """A back that gives dicts, tuples or objects trains several devices alike."""
    form, read = KINDS[kind]
    _, back = builders.halves()
    inner = nn.CrossEntropyLoss(weight=WEIGHT if weighted else None)
    found = batches()
    nested = half(Giving(back, form), lambda o, t: inner(read(o), t))
    simple = half(back, inner)
    got, want = nested.step(0, found), simple.step(0, found)
    for device in SIZES:
        assert torch.equal(got[device][0], want[device][0])
        assert got[device][1] == want[device][1]


@pytest.mark.parametrize(
    ("form", "named"),
    [
        (lambda o: {"logits": o, "aux": o.mean()}, r"outputs\['aux'\]"),
        (lambda o: (o, o.sum(0)), r"outputs\[1\]"),
        (lambda o: (o, {"cache": object()}), r"outputs\[1\]\['cache'\].*object"),
    ],
)
def test_outputs_without_a_part_for_each_device_are_refused(
    form: Callable[[Tensor], Any], named: str
) -> None:
    """What cannot be cut by examples is named, before the back learns anything."""
    _, back = builders.halves(norm=False)
    first = next(iter(form(torch.ones(1, 4))))

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[first if isinstance(first, str) else 0], targets)

    server = half(Giving(back, form), loss)
    with pytest.raises(SettingError, match=named):
        server.step(0, batches())
    state = {f"back.{k}": v for k, v in back.state_dict().items()}
    builders.assert_same(server.snapshot(), state)


def test_tokens_of_several_devices_are_parted_by_example() -> None:
    """Outputs with several rows an example are the own ones of each device."""
    torch.manual_seed(0)
    back = nn.Sequential(nn.Linear(3, 4), nn.Flatten(0, 1))
    found = {}
    for device, size in SIZES.items():
        y = torch.randint(0, 4, (size, 6))
        y[:, : 1 + device] = IGNORED
        found[device] = Batch(torch.randn(size, 6, 3), y, size)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets.flatten())

    answers = half(back, loss).step(0, found)
    for device, batch in found.items():
        x = batch.activations.clone().requires_grad_()
        loss(back(x), batch.targets).backward()
        torch.testing.assert_close(answers[device][0], x.grad, rtol=1e-4, atol=1e-7)


def test_test_targets_that_are_all_ignored_have_no_part_in_the_loss() -> None:
    """The loss of an evaluation is that of the targets that count, never NaN."""
    front, back = builders.halves()
    devices = builders.devices(front, [16, 16, 16])
    for number, device in enumerate(devices):
        x, y = device.test_set.tensors  # type: ignore[union-attr]
        y = y.clone()
        # One batch of the first device counts, and none of the second's.
        y[8:] = -100
        y[:8] = -100 if number == 1 else y[:8]
        device.test_set = TensorDataset(x, y if number < 2 else y.clamp(min=0))
    result = train_locally(
        devices, front.state_dict(), builders.server(back), num_rounds=1
    )
    (found,) = result.evaluations
    assert math.isfinite(found["loss"])
    assert found["num-examples"] == 30
    none = builders.devices(front, [16])
    x, y = none[0].test_set.tensors  # type: ignore[union-attr]
    none[0].test_set = TensorDataset(x, torch.full_like(y, -100))
    settings = none, front.state_dict(), builders.server(back)
    (found,) = train_locally(*settings, num_rounds=1).evaluations
    assert math.isnan(found["loss"])
