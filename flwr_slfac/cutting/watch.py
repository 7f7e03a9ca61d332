"""See every operation that a forward does at once while it is traced."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from flwr_slfac.cutting.refusals import storage_of, user_line
from flwr_slfac.errors import CutError


class StateWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """See every operation on real numbers; those on the state become constants."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = [*root.named_parameters(), *root.named_buffers()]
        self.names = {storage_of(t): name for name, t in tensors}
        self.made: set[int] = set()  # storages of what forward has computed at once
        self.written: dict[int, Tensor] = {}  # constants that the graph writes into

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise CutError(
                f"forward draws random numbers outside of the trace{user_line()}"
            )
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._require_constant(storage_of(value))
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor):
                self.made.add(storage_of(value))
        return result

    def _require_constant(self, storage: int) -> None:
        if storage in self.names:
            raise CutError(
                f"forward computes with `{self.names[storage]}` outside of the trace"
                f"{user_line()}, which would make it a constant. Read it as an "
                "attribute of its module"
            )
        if storage in self.written:
            raise CutError(
                f"forward computes with a constant after writing into it{user_line()}"
            )
