"""Buffers of a module, also those that its state dict leaves out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def changed_buffers(
    module: nn.Module, known: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return a copy of all buffers but those that are as they are known."""
    return {
        name: b.detach().clone()
        for name, b in module.named_buffers()
        if name not in known or not _is_same(b, known[name])
    }


def unsent_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the buffers that are not persistent: no state dict has them.

    Examples
    --------
    >>> norm = nn.BatchNorm1d(2)
    >>> norm.register_buffer("num_steps", torch.tensor(3), persistent=False)
    >>> unsent_buffers(norm)
    {'num_steps': tensor(3)}
    """
    sent = module.state_dict().keys()
    return {n: b.detach().clone() for n, b in module.named_buffers() if n not in sent}


def put_buffers(module: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Give buffers the values of a copy; one that has grown since shrinks again."""
    own = dict(module.named_buffers())
    like = next(iter([*module.parameters(), *own.values()]), None)
    for name, value in buffers.items():
        old = own.get(name)
        if old is not None and (old.shape, old.dtype) == (value.shape, value.dtype):
            with torch.no_grad():
                old.copy_(value)
            continue
        where = value.device if like is None else like.device
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, value.to(where, copy=True))


def numbers_of(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the attributes that are one number or a text, by module.

    Examples
    --------
    >>> numbers_of(nn.Sequential(nn.Flatten()))["0"]
    {'start_dim': 1, 'end_dim': -1}
    """
    kinds = (bool, int, float, str)
    return {
        name: {
            k: v for k, v in vars(each).items() if type(v) in kinds and k != "training"
        }
        for name, each in module.named_modules()
    }


def put_numbers(module: nn.Module, numbers: Mapping[str, Mapping[str, Any]]) -> None:
    """Give modules the attributes that `numbers_of` returned."""
    for name, each in module.named_modules():
        vars(each).update(numbers.get(name, {}))


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype is other.dtype and torch.equal(one, other)
