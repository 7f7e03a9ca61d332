"""Law 1: split training is unsplit training."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import TensorDataset

from flwr_slfac import cut
from flwr_slfac.split import Device, ServerHalf, train_locally
from flwr_slfac.split.batches import fetch
from flwr_slfac.split.place import seed_for, seeded
from tests import models
from tests.split import builders

NUM_STEPS = 20
OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.05, momentum=0.9),
    "adam": partial(Adam, lr=1e-3),
}


def images(size: int) -> TensorDataset:
    """Return random images with class indices."""
    x = torch.randn(40, 3, size, size)
    return TensorDataset(x, torch.randint(0, 5, (40,)))


def tokens() -> TensorDataset:
    """Return random token sequences whose targets are the next tokens."""
    ids = torch.randint(0, 17, (40, 13))
    return TensorDataset(ids[:, :-1].clone(), ids[:, 1:].clone())


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over all tokens."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


FAMILIES: dict[
    str, tuple[Callable[[], nn.Module], Callable[[], TensorDataset], object]
] = {
    "resnet18": (
        lambda: models.resnet18(num_classes=5, width=4),
        lambda: images(16),
        nn.CrossEntropyLoss(),
    ),
    "vgg19_bn": (
        lambda: models.vgg19_bn(num_classes=5, in_channels=3, width=4),
        lambda: images(32),
        nn.CrossEntropyLoss(),
    ),
    "vit": (
        lambda: models.vit(
            image_size=16, patch=4, dim=16, depth=3, heads=2, num_classes=5
        ),
        lambda: images(16),
        nn.CrossEntropyLoss(),
    ),
    "gpt": (
        lambda: models.gpt(vocab=17, block_size=12, dim=16, depth=3, heads=2),
        tokens,
        token_loss,
    ),
}
CUTS = {
    "resnet18": ("bn1", "layer2", "avgpool"),
    "vgg19_bn": ("features.1", "features.26", "classifier.0"),
    "vit": ("blocks.0", "blocks.1", "blocks.2"),
    "gpt": ("drop", "h.0", "h.2"),
}


def train_unsplit(
    model: nn.Module,
    device: Device,
    loss: object,
    optimizer: object,
    num_rounds: int = 1,
) -> dict[str, torch.Tensor]:
    """Train a whole model on a device's batches, in plain PyTorch.

    The noise is the server's: no model here has dropout before its cut.
    """
    model.train()
    tuned = optimizer(model.parameters())  # type: ignore[operator]
    order = device.batches(seed=0, server_round=1, device=0)
    for step in range(order.num_steps):
        inputs, targets = fetch(device.train_set, order.indices(step))
        tuned.zero_grad()
        with seeded(seed_for(0, 1, -1, step, "back"), torch.device("cpu")):
            outputs = model(inputs)
        loss(outputs, targets).backward()  # type: ignore[operator]
        tuned.step()
    return model.state_dict()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["early", "middle", "late"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_device_equals_unsplit_training(
    family: str, place: int, optimizer: str
) -> None:
    """One device with Identity both ways ends in the bits of unsplit training."""
    torch.manual_seed(3)
    build, make_data, loss = FAMILIES[family]
    model = build()
    split = cut(copy.deepcopy(model), at=CUTS[family][place])
    device = Device(
        split.front,
        optimizer=OPTIMIZERS[optimizer],
        train_set=make_data(),
        batch_size=8,
        epochs=4,
    )
    server = ServerHalf(split.back, loss, OPTIMIZERS[optimizer])  # type: ignore[arg-type]
    result = train_locally(
        [device], split.front.state_dict(), server, num_rounds=1, evaluate=False
    )
    assert result.rounds[0].num_steps == NUM_STEPS
    joined = split.load(result.front, server.snapshot()).state_dict()
    builders.assert_same(
        joined, train_unsplit(model, device, loss, OPTIMIZERS[optimizer])
    )


@pytest.mark.parametrize(
    "sizes", [[8, 8, 8, 8], [8, 3, 5, 1]], ids=["equal", "unequal"]
)
def test_parallel_equals_one_step_on_the_joined_batch(sizes: list[int]) -> None:
    """Parallel, one SGD step: averaged front and back are one unsplit step's.

    Without BatchNorm in the front: each device normalises by its own batch.
    """
    front, back = builders.halves(norm=False)
    plain = partial(SGD, lr=0.5)
    devices = builders.devices(front, sizes, optimizer=plain)
    server = builders.server(back, "parallel", optimizer=plain)
    result = train_locally(
        devices, front.state_dict(), server, num_rounds=1, evaluate=False
    )
    whole = nn.Sequential(copy.deepcopy(front), copy.deepcopy(back))
    tuned = plain(whole.parameters())
    x, y = (
        torch.cat(t) for t in zip(*(d.train_set.tensors for d in devices), strict=True)
    )
    nn.functional.cross_entropy(whole(x), y).backward()
    tuned.step()
    joined = {
        **{f"0.{k}": v for k, v in result.front.items()},
        **{f"1.{k}": v for k, v in server.snapshot().items()},
    }
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(joined[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_twins", [1, 2, 5])
def test_a_front_learns_at_its_own_rate(num_twins: int) -> None:
    """The front's step does not shrink or grow with the number of equal devices."""
    front, back = builders.halves(norm=False)
    plain = partial(SGD, lr=0.5)
    devices = builders.devices(front, [8], optimizer=plain, shuffle=False) * num_twins
    devices = [copy.deepcopy(d) for d in devices]
    results = []
    for several in (devices, devices[:1]):
        server = builders.server(back, "parallel", optimizer=plain)
        result = train_locally(
            several, front.state_dict(), server, num_rounds=1, evaluate=False
        )
        results.append(result.front)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name])
