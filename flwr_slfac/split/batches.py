"""Which examples are in which batch: a pure function of (seed, round, device, step)."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, cast

import torch
from torch.utils.data import Dataset, TensorDataset, default_collate

from flwr_slfac.errors import SettingError
from flwr_slfac.split.place import Place, seed_for

Pair = tuple[torch.Tensor, torch.Tensor]


def batch_sizes(num_examples: int, batch_size: int, drop_last: bool) -> list[int]:
    """Return the sizes of one epoch's batches.

    Examples
    --------
    >>> batch_sizes(10, 4, drop_last=False)
    [4, 4, 2]
    >>> batch_sizes(10, 4, drop_last=True)
    [4, 4]
    """
    full, rest = divmod(num_examples, batch_size)
    return [batch_size] * full + ([rest] if rest and not drop_last else [])


@dataclass(frozen=True)
class OrderRule:
    """What the order of a device's batches follows from, besides seed and place.

    Parameters
    ----------
    num_examples, batch_size, epochs, max_steps, drop_last, shuffle
        As of `BatchOrder`.
    """

    num_examples: int
    batch_size: int
    epochs: int = 1
    max_steps: int | None = None
    drop_last: bool = False
    shuffle: bool = True

    @property
    def numbers(self) -> tuple[int, ...]:
        """The rule as numbers of 0 or more, in the order of its fields."""
        return tuple(int(value or 0) for value in astuple(self))

    @classmethod
    def of_numbers(cls, numbers: Sequence[int]) -> "OrderRule":
        """Return the rule of such numbers.

        Raises
        ------
        ValueError
            If they are not those of a rule, or it gives no batch.
        """
        is_rule = len(numbers) == len(fields(cls)) and min(numbers[:3]) > 0
        if not is_rule or max(numbers) >= 2**63:
            raise ValueError(f"{tuple(numbers)} tell no order of batches")
        examples, size, epochs, steps, drop, shuffle = numbers
        if drop and size > examples:
            raise ValueError(f"{examples} examples give no batch of {size}")
        return cls(examples, size, epochs, steps or None, bool(drop), bool(shuffle))

    def at(self, place: Place) -> "BatchOrder":
        """Return the order that follows, of a device in a round."""
        return BatchOrder(**vars(self), **vars(place))


class BatchOrder:
    """The batches of one device in one round, at random access.

    A round goes on in the data where the round before it stopped, should `max_steps`
    have cut that short: with E batches in an epoch and T steps in every round, round r
    begins with the batch at position ``(r - 1) T mod E`` of epoch ``(r - 1) T div E``.
    Rounds in which the device does not take part count too, so that the order is a
    function of the round.

    Parameters
    ----------
    num_examples, batch_size, epochs : int
        Size of the partition, of a batch, and passes over the data.
    max_steps : int or None
        Stop a round after this many batches.
    drop_last, shuffle : bool
        As in `torch.utils.data.DataLoader`.
    seed, server_round, device : int
        What the order is a function of.

    Attributes
    ----------
    rule : OrderRule
        What else it is a function of.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        *,
        epochs: int = 1,
        max_steps: int | None = None,
        drop_last: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        server_round: int = 0,
        device: int = 0,
    ) -> None:
        self.rule = OrderRule(
            num_examples, batch_size, epochs, max_steps, drop_last, shuffle
        )
        self.batch_size = batch_size
        self._place = (seed, server_round, device)
        self._epoch_sizes = batch_sizes(num_examples, batch_size, drop_last)
        num_steps = epochs * len(self._epoch_sizes)
        self.num_steps = num_steps if max_steps is None else min(num_steps, max_steps)
        self._epochs = epochs
        # Outside of a run there is no round; then as in the first.
        self._before = max(server_round - 1, 0) * self.num_steps
        self._cached: tuple[int, torch.Tensor] | None = None

    @property
    def sizes(self) -> list[int]:
        """Examples in each step's batch."""
        return [self._epoch_sizes[self._at(s)[1]] for s in range(self.num_steps)]

    @property
    def smallest(self) -> int:
        """Examples in the smallest batch of this round, and of those that follow."""
        cut_short = self.num_steps < self._epochs * len(self._epoch_sizes)
        return min(self._epoch_sizes if cut_short else self.sizes)

    def indices(self, step: int) -> torch.Tensor:
        """Return the indices of the examples in the batch of a step."""
        epoch, position = self._at(step)
        start = position * self.batch_size
        return self._permutation(epoch)[start : start + self.batch_size]

    def _at(self, step: int) -> tuple[int, int]:
        """Return the epoch of the run in which a step's batch is, and its place."""
        return divmod(self._before + step, len(self._epoch_sizes))

    def _permutation(self, epoch: int) -> torch.Tensor:
        if self._cached is None or self._cached[0] != epoch:
            order = torch.arange(self.rule.num_examples)
            if self.rule.shuffle:
                seed, _, device = self._place
                # Of a round that is as long as its epochs, this is its own number.
                earlier, own = divmod(epoch, self._epochs)
                generator = torch.Generator()
                generator.manual_seed(seed_for(seed, earlier + 1, device, own, "order"))
                order = torch.randperm(len(order), generator=generator)
            self._cached = (epoch, order)
        return self._cached[1]


def require_batches(order: BatchOrder, smallest: int, who: str) -> None:
    """Raise SettingError unless there is a batch, and each has `smallest` examples."""
    sizes = order.sizes
    if not sizes:
        raise SettingError(
            f"{who} has fewer examples than batch_size={order.batch_size} and "
            "drop_last=True, so no batch at all; lower batch_size or set "
            "drop_last=False"
        )
    if order.smallest < smallest:
        raise SettingError(
            f"{who} has a batch of {order.smallest} example, and BatchNorm needs "
            f"{smallest}; set drop_last=True or choose another batch_size"
        )


def require_batch(out: Any, num_examples: int) -> None:
    """Raise SettingError unless a front gave one tensor, batch first."""
    shaped = isinstance(out, torch.Tensor) and out.ndim > 0
    if not shaped or len(out) != num_examples:
        raise SettingError(
            "the front must give one tensor whose first dimension is the batch; "
            f"for {num_examples} examples it gave "
            f"{tuple(out.shape) if isinstance(out, torch.Tensor) else type(out)}"
        )


def fetch(dataset: Dataset[Any], indices: torch.Tensor) -> Pair:
    """Collate the examples at `indices` into one (inputs, targets) pair.

    Raises
    ------
    SettingError
        If the examples are not pairs of things that collate to tensors.
    """
    if isinstance(dataset, TensorDataset):
        batch: Any = tuple(t[indices] for t in dataset.tensors)
    else:
        batch = default_collate([dataset[i] for i in indices.tolist()])
    if (
        not isinstance(batch, (tuple, list))
        or len(batch) != 2
        or not all(isinstance(part, torch.Tensor) for part in batch)
    ):
        raise SettingError(
            "each example must be a pair (input, target) that collates to two "
            f"tensors; this dataset gives {_describe(batch)}"
        )
    return cast(Pair, tuple(batch))


def dataset_length(dataset: Any, what: str) -> int:
    """Return the number of examples, or raise SettingError if there is none."""
    try:
        length = len(dataset)
    except TypeError as error:
        raise SettingError(
            f"the {what} is a {type(dataset).__name__} without a length; pass a "
            "map-style dataset"
        ) from error
    if length == 0:
        raise SettingError(
            f"the {what} is empty; give every device at least one example (a larger "
            "Dirichlet alpha, or a minimum partition size)"
        )
    return length


def _describe(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        return f"{len(batch)} parts: {', '.join(type(p).__name__ for p in batch)}"
    return type(batch).__name__
