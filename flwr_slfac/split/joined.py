"""The smashed data of several devices as one batch, and its parts by device."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flwr_slfac.errors import SettingError
from flwr_slfac.split.crossing import Batch
from flwr_slfac.split.outputs import split_outputs


@dataclass(frozen=True)
class JoinedBatch:
    """Batches of one or more devices, end to end.

    Parameters
    ----------
    sizes : dict of int to int
        Examples by partition id, in the order of joining.
    inputs : Tensor
        Activations; a leaf that asks for a gradient if they are floats.
    targets : Tensor
        As many, first dimension.
    """

    sizes: dict[int, int]
    inputs: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, batches: Mapping[int, Batch]) -> "JoinedBatch":
        """Join batches in the order given.

        Raises
        ------
        SettingError
            If shapes per example or dtypes differ.
        """
        inputs = _join({k: b.activations for k, b in batches.items()}, "activations")
        targets = _join({k: b.targets for k, b in batches.items()}, "targets")
        inputs = inputs.detach().requires_grad_(inputs.is_floating_point())
        return cls({k: b.num_examples for k, b in batches.items()}, inputs, targets)

    @property
    def num_examples(self) -> int:
        """Examples of all devices."""
        return sum(self.sizes.values())

    def by_device(self, tensor: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield each device's part of a tensor with as many rows for every example."""
        rows_per_example = len(tensor) // self.num_examples
        rows = [size * rows_per_example for size in self.sizes.values()]
        yield from zip(self.sizes, torch.split(tensor, rows), strict=True)

    def outputs_by_device(self, outputs: Any) -> Iterator[tuple[int, Any]]:
        """Yield each device's part of what the back gave.

        Raises
        ------
        SettingError
            If there is none.
        """
        parts = split_outputs(outputs, list(self.sizes.values()))
        yield from zip(self.sizes, parts, strict=True)


def _join(tensors: dict[int, torch.Tensor], what: str) -> torch.Tensor:
    """Concatenate what devices sent; refuse what does not belong together."""
    first, *others = tensors
    like = tensors[first]
    for device in others:
        tensor = tensors[device]
        if (tensor.shape[1:], tensor.dtype) != (like.shape[1:], like.dtype):
            raise SettingError(
                f"scheme 'parallel' joins what devices send, but the {what} of device "
                f"{first} are {_describe(like)} per example, those of device {device} "
                f"{_describe(tensor)}; make their data alike, or use 'sflv1' or 'sflv2'"
            )
    return torch.cat(list(tensors.values())) if others else like


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape[1:])}"
