"""Small devices and servers that the tests of `split` train."""

import copy
from functools import partial

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flwr_slfac.split import Device, Scheme, ServerHalf, accuracy

NUM_CLASSES = 4
sgd = partial(SGD, lr=0.05, momentum=0.9)


def halves(
    seed: int = 0, *, norm: bool = True, dropout: float = 0.0
) -> tuple[nn.Module, nn.Module]:
    """Return a small convolutional front and back for 6x6 images."""
    torch.manual_seed(seed)
    front = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3) if norm else nn.Identity(),
        nn.Dropout(dropout),
        nn.ReLU(),
    )
    back = nn.Sequential(
        nn.Flatten(),
        nn.Linear(108, 16),
        nn.BatchNorm1d(16) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(16, NUM_CLASSES),
    )
    return front, back


def data(num_examples: int, seed: int = 0) -> TensorDataset:
    """Return random images with labels that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_examples, 1, 6, 6, generator=generator)
    y = (x.mean((1, 2, 3)) * 12).long().clamp(-2, 1) + 2
    return TensorDataset(x, y)


def devices(front: nn.Module, sizes: list[int], **settings: object) -> list[Device]:
    """Return devices with their own copies of a front and their own data."""
    settings = {"optimizer": sgd, "batch_size": 8, **settings}
    return [
        Device(
            copy.deepcopy(front),
            train_set=data(n, i),
            test_set=data(10, 50 + i),
            **settings,
        )  # type: ignore[arg-type]
        for i, n in enumerate(sizes)
    ]


def server(
    back: nn.Module, scheme: Scheme = "parallel", **settings: object
) -> ServerHalf:
    """Return a server half on its own copy of a back."""
    settings = {"optimizer": sgd, "metrics": {"accuracy": accuracy}, **settings}
    return ServerHalf(
        copy.deepcopy(back),
        nn.CrossEntropyLoss(),
        scheme=scheme,
        **settings,  # type: ignore[arg-type]
    )


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Assert that two states are equal bit for bit."""
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different
