"""The model and the data. Nothing here knows that the model will be cut."""

from functools import cache

import torch
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

NUM_CLASSES = 10
CENTRAL_TEST = 360  # images that no device sees, for the test on the server


class Residual(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return torch.relu(x + self.body(x))


class DigitsNet(nn.Module):
    """A small residual network for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        self.layer1 = Residual(16)
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU())
        self.layer2 = Residual(32)
        self.head = nn.Linear(32, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 1, 8, 8) to class scores (N, 10)."""
        x = self.layer1(self.stem(x))
        x = self.layer2(self.down(x))
        return self.head(x.mean((2, 3)))


def build_model(seed: int) -> nn.Module:
    """Build the whole model; the same seed gives the same weights everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DigitsNet()


@cache
def load_arrays(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Return all images as (for the devices, for the server)."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    ours, central = train_test_split(
        range(len(y)), test_size=CENTRAL_TEST, stratify=labels, random_state=seed
    )
    return TensorDataset(x[ours], y[ours]), TensorDataset(x[central], y[central])


@cache
def partitioner(num_partitions: int, alpha: float, seed: int) -> DirichletPartitioner:
    """Deal the devices' images out by a Dirichlet distribution over classes."""
    dealt = DirichletPartitioner(
        num_partitions,
        partition_by="label",
        alpha=alpha,
        min_partition_size=20,
        seed=seed,
    )
    labels = load_arrays(seed)[0].tensors[1].tolist()
    dealt.dataset = Dataset.from_dict({"index": range(len(labels)), "label": labels})
    return dealt


def load_partition(
    partition: int, num_partitions: int, alpha: float, seed: int
) -> tuple[TensorDataset, TensorDataset]:
    """Return one device's (train, test) images, 80 and 20 % of its own."""
    mine = partitioner(num_partitions, alpha, seed).load_partition(partition)["index"]
    train, test = train_test_split(list(mine), test_size=0.2, random_state=seed)
    x, y = load_arrays(seed)[0].tensors
    return TensorDataset(x[train], y[train]), TensorDataset(x[test], y[test])


def central_test_set(seed: int) -> TensorDataset:
    """Return the images that no device sees."""
    return load_arrays(seed)[1]
