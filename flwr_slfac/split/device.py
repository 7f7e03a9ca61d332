"""What a device brings to split training: a front, data and how to train it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from flwr_slfac.errors import SettingError
from flwr_slfac.folders import require_folder
from flwr_slfac.split.batches import BatchOrder, batch_sizes, dataset_length

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class TrainedFront(Protocol):
    """A front and how it is trained: what a `Device` is without its data."""

    @property
    def front(self) -> nn.Module: ...  # noqa: D102
    @property
    def optimizer(self) -> OptimizerFactory: ...  # noqa: D102
    @property
    def scheduler(self) -> SchedulerFactory | None: ...  # noqa: D102
    @property
    def scheduler_per(self) -> Literal["round", "step"]: ...  # noqa: D102
    @property
    def keep_optimizer(self) -> bool: ...  # noqa: D102
    @property
    def clip_norm(self) -> float | None: ...  # noqa: D102
    @property
    def device(self) -> torch.device | str: ...  # noqa: D102


@dataclass
class Device:
    """One device: its half of the model, its data, and how it trains.

    Parameters
    ----------
    front : nn.Module
        The device-side model, ``cut(model, at=...).front``. Its weights are replaced
        by the server's at the start of every round.
    optimizer : callable
        From parameters to an optimizer, for example ``partial(SGD, lr=0.05)``.
    train_set : Dataset
        Map-style; each example is a pair (input, target).
    test_set : Dataset, optional
        The same, for federated evaluation; without one the device sits it out.
    batch_size : int (default: 32)
        Examples per step.
    epochs : int (default: 1)
        Passes over `train_set` per round.
    max_steps : int, optional
        Stop a round after this many steps; the next one goes on in the data from there.
    shuffle, drop_last : bool (default: True, False)
        As in `torch.utils.data.DataLoader`.
    scheduler : callable, optional
        From the optimizer to a learning-rate scheduler.
    scheduler_per : {"round", "step"} (default: "round")
        When the scheduler advances. Per round it follows the server's round number,
        also on a device that was not sampled for a while.
    keep_optimizer : bool (default: False)
        Keep the optimizer's state (momentum, moments) from round to round. The default
        starts afresh in each round, as FedAvg does; a scheduler goes on either way.
    clip_norm : float, optional
        Clip the gradient of the front to this total norm.
    device : torch.device or str (default: "cpu")
        Where the front runs.
    profile : mapping of str to str, number or bool
        What the device says of itself to a pruning ratio that is a function.
    sample_folder : str or Path, optional
        A folder on a disk, for what a codec remembers of samples, see `Temporal`; by
        default it is in memory. In a Flower app those of a node are in files of a
        folder in it, ``device-<partition id>``, and what its state does not name is
        deleted there; a device that finds them lost begins anew.

    Raises
    ------
    SettingError
        If a number is out of range, or the folder is none.
    """

    front: nn.Module
    optimizer: OptimizerFactory
    train_set: Dataset[Any]
    test_set: Dataset[Any] | None = None
    batch_size: int = 32
    epochs: int = 1
    max_steps: int | None = None
    shuffle: bool = True
    drop_last: bool = False
    scheduler: SchedulerFactory | None = None
    scheduler_per: Literal["round", "step"] = "round"
    keep_optimizer: bool = False
    clip_norm: float | None = None
    device: torch.device | str = "cpu"
    profile: Mapping[str, str | float | bool] = field(default_factory=dict)
    sample_folder: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} is {value}; it must be at least 1")
        if self.scheduler_per not in ("round", "step"):
            raise SettingError(
                f"scheduler_per is {self.scheduler_per!r}; use 'round' or 'step'"
            )
        require_positive("clip_norm", self.clip_norm)
        require_folder("sample_folder", self.sample_folder)
        for name, value in self.profile.items():
            if not isinstance(name, str) or not isinstance(value, str | int | float):
                raise SettingError(
                    f"the profile's {name!r} is {value!r}; give texts, numbers or bools"
                )

    def batches(self, seed: int, server_round: int, device: int) -> BatchOrder:
        """Return the order of this device's batches in a round."""
        return BatchOrder(
            dataset_length(self.train_set, "training set"),
            self.batch_size,
            epochs=self.epochs,
            max_steps=self.max_steps,
            drop_last=self.drop_last,
            shuffle=self.shuffle,
            seed=seed,
            server_round=server_round,
            device=device,
        )

    def test_batch_sizes(self) -> list[int]:
        """Return the sizes of the test batches; empty without a test set."""
        if self.test_set is None or not len(self.test_set):  # type: ignore[arg-type]
            return []
        return batch_sizes(
            dataset_length(self.test_set, "test set"), self.batch_size, False
        )


def has_batch_norm(module: nn.Module) -> bool:
    """Say whether a batch of one example may fail in training mode."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def require_positive(name: str, value: float | None) -> None:
    """Raise SettingError unless the value is None or above zero."""
    if value is not None and not value > 0:
        raise SettingError(f"{name} is {value}; it must be above 0, or None")
