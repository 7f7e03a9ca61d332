"""Activations between forward and backward, in 8 bits.

While the server works, a device holds what its backward will need. With the hooks of
this file these tensors are coded when autograd saves them, and the originals are freed
as soon as the forward has gone on; backward decodes them as it needs them::

    forward: activation --code--> 8 bits, held by the graph
    backward: 8 bits --restore--> activation --> gradient of a weight --> freed

Weight gradients of convolutions and linear layers are thus computed from 8-bit
activations. Our reading of the low-precision weight gradients of lightweight federated
split learning (Zhang, Ni, Wang, 2024), by the means of ActNN (Chen et al., 2021), but
rounded to nearest, so that a forward that is run again gives the same graph.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from flwr_slfac.lightweight.activations.bearing import NOTHING, rule_of
from flwr_slfac.lightweight.activations.chunked import (
    batch_norm,
    conv2d,
    max_pool2d,
    relu,
)
from flwr_slfac.lightweight.activations.store import ActivationStore, SavedBytes, unpack


@contextmanager
def saved_in_8_bits(
    module: nn.Module | None = None, *, enabled: bool = True
) -> Iterator[SavedBytes]:
    """Store what autograd saves inside the block in 8 bits.

    Only the forward need run inside. Floating tensors of 1024 elements and more are
    coded (see `AffineTensor` for the error), once each, even if several operations
    save them, where the operation is known to bear it (products, norms of layers,
    smooth activations and attention within limits: see `bearing`); what others save
    stays exact. Integers (the indices of a pooling) are narrowed without loss;
    parameters, buffers, booleans, small and expanded tensors, and tensors with NaN or
    infinity stay as they are. The forward, the masks of ReLUs (in place or not) and the
    winners of poolings are those of plain training, bit for bit; so are gradients that
    need no activation, but for the order in which a convolution's bias is summed.

    Convolutions, batch normalizations, ReLUs and poolings of images also run their
    backward in chunks (see `chunked`), so that the peak falls as the saved bytes do.

    Parameters
    ----------
    module : nn.Module, optional
        Whose buffers are left as they are; parameters are, anyway.
    enabled : bool (default: True)
        False only counts, so that a report can compare.

    Yields
    ------
    SavedBytes
        Counts the bytes that the graph holds; read it after the forward. Also on the
        meta device, where tensors have no values.

    Raises
    ------
    TrainingError
        In backward, if a tensor that stayed as it is has since been changed in place.

    Examples
    --------
    >>> front = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
    >>> with saved_in_8_bits(front) as saved:
    ...     out = front(torch.randn(4, 3, 10, 10))
    >>> out.sum().backward()
    >>> saved.num_bytes < 0.3 * saved.raw_num_bytes
    True
    """
    store = ActivationStore(module, enabled)
    with ExitStack() as stack:
        stack.callback(store.clear)
        stack.enter_context(saved_tensors_hooks(store.pack, unpack))
        if enabled:
            stack.enter_context(_InChunks(store))
        yield store.bytes


def without_values(output: torch.Tensor) -> torch.Tensor:
    """Return a tensor that stands for `output` in backward and takes no memory.

    Once the smashed data is on the wire, a device needs the graph behind its output and
    not the values; keep this and drop `output`.

    Parameters
    ----------
    output : Tensor of any shape
        What the front gave.

    Returns
    -------
    Tensor
        Zeros of the same shape, one element in memory; its backward is that of
        `output`. `output` itself if it needs no gradient.

    Examples
    --------
    >>> weight = torch.ones(3, requires_grad=True)
    >>> handle = without_values(2 * weight)
    >>> handle.backward(torch.ones(3))
    >>> weight.grad
    tensor([2., 2., 2.])
    """
    if not output.requires_grad:
        return output
    handle: torch.Tensor = _WithoutValues.apply(output)  # type: ignore[no-untyped-call]
    return handle


class _WithoutValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor) -> torch.Tensor:
        return output.new_zeros(()).expand(output.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class _InChunks(TorchFunctionMode):
    """Sends the operations that fill a device's memory to those of `chunked`."""

    def __init__(self, store: ActivationStore) -> None:
        super().__init__()
        self._store = store

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        own = _OPERATIONS.get(func)
        if own is not None:
            result = own(self._store, *args, **kwargs)
            if result is not None:
                return result
        self._store.rule = rule_of(func, args, kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            self._store.rule = NOTHING


_OPERATIONS: dict[Callable[..., Any], Callable[..., torch.Tensor | None]] = {
    F.conv2d: conv2d,
    F.batch_norm: batch_norm,
    F.relu: relu,
    F.max_pool2d: max_pool2d,
}
