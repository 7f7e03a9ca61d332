"""A device's batches, read from its data, and read again where a graph was lost.

The second reading must give what the first gave, or the gradient would be of other
inputs. Augmentation may draw from the global generators of torch, NumPy and Python,
which are seeded; what is drawn from elsewhere shows in the batch's fingerprint.
"""

import hashlib
from typing import Any

import torch
from torch.utils.data import Dataset, TensorDataset

from flwr_slfac.errors import SettingError
from flwr_slfac.split.batches import BatchOrder, Pair, fetch
from flwr_slfac.split.place import Place, seeded

# Values that are hashed in their order; of all values the sum is taken. Our choice:
# a sum sees any change but of order, and changes of order are rarely small.
_NUM_SAMPLES = 1024


class BatchReader:
    """Reads the training batches of one device in one round.

    Parameters
    ----------
    dataset : Dataset
        The device's training set.
    order : BatchOrder
        Which examples are in which batch.
    place : Place
        The device in the round.
    where : torch.device
        Whose generator is seeded too.
    mark : str
        Fingerprint of the batch of the last forward; empty where it cannot change.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        order: BatchOrder,
        place: Place,
        where: torch.device,
        mark: str = "",
    ) -> None:
        self._dataset, self.order = dataset, order
        self._place, self._where = place, where
        self.mark = mark

    def read(self, step: int) -> Pair:
        """Return the batch of a step, and remember its fingerprint."""
        batch = self.example(step)
        self.mark = self._mark(batch)
        return batch

    def again(self, step: int) -> Pair:
        """Return the batch that was last read, of this step.

        Raises
        ------
        SettingError
            If it is another one.
        """
        batch = self.example(step)
        if self._mark(batch) != self.mark:
            kind = type(self._dataset).__name__
            raise SettingError(
                f"{self._place.at(step)}: the training set ({kind}) gave other "
                "examples when they were read again, as happens where a device does "
                "not stay in memory between messages; draw its randomness from the "
                "global generators of torch, NumPy or Python, which are seeded for "
                "each step, not from a generator of its own"
            )
        return batch

    def example(self, step: int) -> Pair:
        """Return a batch of a step and remember nothing."""
        with seeded(self._place.at(step).seed_of("data"), self._where):
            return fetch(self._dataset, self.order.indices(step))

    def largest(self) -> torch.Tensor:
        """Return the inputs of the first of the round's largest batches."""
        sizes = self.order.sizes
        return self.example(sizes.index(max(sizes)))[0]

    def _mark(self, batch: Pair) -> str:
        if type(self._dataset) is TensorDataset:
            return ""
        return fingerprint(*batch)


def first_input(dataset: Dataset[Any], where: torch.device) -> torch.Tensor:
    """Return one training input, batch first, for the analysis of a front."""
    with seeded(0, where):
        inputs, _ = fetch(dataset, torch.tensor([0]))
    return inputs.to(where)


def fingerprint(*tensors: torch.Tensor) -> str:
    """Return a text that other values, or their other order, would change.

    Parameters
    ----------
    *tensors : Tensor
        Dense, of any dtype. The text depends on their bits only.

    Examples
    --------
    >>> x = torch.arange(6.0)
    >>> fingerprint(x) == fingerprint(x.clone()), fingerprint(x) == fingerprint(x + 1)
    (True, False)
    >>> fingerprint(x) == fingerprint(x.flip(0))
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        num_samples = min(len(flat), _NUM_SAMPLES)
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        if not num_samples:
            continue
        sample = flat[:: len(flat) // num_samples].contiguous().view(torch.uint8)
        digest.update(sample.numpy().tobytes())
        data = flat.view(torch.uint8)
        whole = len(data) // 8 * 8
        # Whole numbers wrap around, so the sum is the same on any number of threads.
        digest.update(str(int(data[:whole].view(torch.int64).sum())).encode())
        digest.update(data[whole:].numpy().tobytes())
    return digest.hexdigest()
