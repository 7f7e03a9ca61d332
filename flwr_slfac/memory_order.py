"""How a tensor lies in memory, so that what crosses can be laid out as it was.

Kernels add, and draw dropout, in the order of memory: the same numbers laid out
otherwise end in other bits.
"""

from collections.abc import Sequence

import torch

from flwr_slfac.errors import DecodeError


def memory_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's dimensions from the outermost in memory to the innermost.

    Empty if that is their own order, or if it has gaps or overlaps itself.

    Examples
    --------
    >>> memory_order(torch.zeros(2, 3, 4)), memory_order(torch.zeros(2, 3).T)
    ((), (1, 0))
    """
    if tensor.is_contiguous():
        return ()
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.ndim), key=lambda dim: -strides[dim]))
    return order if tensor.permute(order).is_contiguous() else ()


def in_memory_order(tensor: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Return a tensor laid out in the order that `memory_order` gave.

    Raises
    ------
    DecodeError
        If the order is not one of its dimensions.

    Examples
    --------
    >>> in_memory_order(torch.zeros(2, 3), (1, 0)).stride()
    (1, 2)
    """
    if not order:
        return tensor
    if sorted(order) != list(range(tensor.ndim)):
        raise DecodeError(
            f"a memory order is {tuple(order)}, of a tensor of {tensor.ndim} dimensions"
        )
    inverse = sorted(range(tensor.ndim), key=lambda dim: order[dim])
    return tensor.permute(*order).contiguous().permute(*inverse)
