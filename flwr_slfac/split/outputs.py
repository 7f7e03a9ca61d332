"""What a back gives: a tensor, or tensors in tuples, lists, dicts and dataclasses."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch

from flwr_slfac.errors import SettingError

# What a model may give beside tensors, and what has no part for each example.
_PLAIN = (str, int, float, type(None))


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """Return the floating tensors in a structure.

    Examples
    --------
    >>> len(tensors_of({"logits": torch.ones(2, 3), "hidden": (torch.ones(2), None)}))
    2
    """
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor, name: str) -> torch.Tensor:
        if tensor.is_floating_point():
            found.append(tensor)
        return tensor

    _map(outputs, note, "outputs")
    return found


def are_finite(outputs: Any) -> bool:
    """Say whether no floating tensor in a structure holds NaN or infinity."""
    return all(bool(t.detach().isfinite().all()) for t in tensors_of(outputs))


def described(value: Any) -> str:
    """Return shape and dtype of a tensor, or what else it is, for a message."""
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    return f"of type {type(value).__name__}"


def split_outputs(outputs: Any, sizes: list[int]) -> Iterator[Any]:
    """Yield the parts of a structure, cut along the first dimension of its tensors.

    Parameters
    ----------
    outputs : Tensor or nested structure of tensors
        Of a batch.
    sizes : list of int
        Examples of each part; a tensor may have several rows an example.

    Raises
    ------
    SettingError
        If a tensor has not as many rows for every example, or the structure holds what
        cannot be cut.

    Examples
    --------
    >>> list(split_outputs((torch.arange(3), None), [1, 2]))
    [(tensor([0]), None), (tensor([1, 2]), None)]
    """
    first = 0
    total = sum(sizes)
    for size in sizes:
        start, stop = first, first + size

        def part(tensor: torch.Tensor, name: str) -> torch.Tensor:
            rows = tensor.shape[0] if tensor.ndim else 0
            if rows == 0 or rows % total:
                raise SettingError(
                    f"the back's {name} has shape {tuple(tensor.shape)} for a joined "
                    f"batch of {total} examples, and scheme 'parallel' takes each "
                    "device's part of it; give tensors whose first dimension is the "
                    "batch, or use 'sflv1' or 'sflv2'"
                )
            each = rows // total
            return tensor[start * each : stop * each]  # noqa: B023 - called at once

        yield _map(outputs, part, "outputs", strict=True)
        first = stop


def _map(
    value: Any,
    change: Callable[[torch.Tensor, str], torch.Tensor],
    name: str,
    strict: bool = False,
) -> Any:
    """Return a structure of the same kind with changed tensors."""

    def inside(child: Any, own: object) -> Any:
        return _map(child, change, f"{name}[{own!r}]", strict)

    if isinstance(value, torch.Tensor):
        return change(value, name)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, MutableMapping):
        # A copy, because subclasses (outputs of Hugging Face) have constructors.
        mapped = copy.copy(value)
        for key, child in value.items():
            mapped[key] = inside(child, key)
        return mapped
    if isinstance(value, tuple | list):
        parts = [inside(child, i) for i, child in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = [f.name for f in dataclasses.fields(value) if f.init]
        changes = {n: inside(getattr(value, n), n) for n in own}
        return dataclasses.replace(value, **changes)
    if strict:
        raise SettingError(
            f"the back's {name} is a {type(value).__name__}, of which scheme "
            "'parallel' cannot take each device's part; give tensors in tuples, "
            "lists, dicts or dataclasses, or use 'sflv1' or 'sflv2'"
        )
    return value
