"""Samples of a node's state that lie in files beside it.

The state travels, and is in memory wherever it is; samples that a device keeps in files
stay there, and the state names them. They lie in a folder of the device's own, from
which is deleted whatever the state that was written last does not name.
"""

import math
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flwr_slfac.codec import Memory, SampleMemory
from flwr_slfac.codec.wire import DTYPES
from flwr_slfac.tensor_files import is_in_file, mapped_file, write_file

_SUFFIX = ".samples"
# What stands for a tensor: the name of its file, its dtype and shape.
_Named = tuple[str, int, tuple[int, ...]]


class StateFiles:
    """The files of one device.

    Parameters
    ----------
    folder : Path, optional
        Its own, made when the first file is written; None for no files.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        # By id, which is a tensor's as long as the reference finds it.
        self._names: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}

    def put(self, memory: Memory) -> dict[str, Any]:
        """Return a memory with names in place of tensors that lie in files.

        Raises
        ------
        OSError
            If a file cannot be written.
        """
        folder = self._folder
        if folder is None:
            return dict(memory)
        return {
            key: self._put(value, folder) if is_in_file(value) else value
            for key, value in memory.items()
        }

    def get(self, stored: Mapping[str, Any]) -> Memory:
        """Return the memory of what `put` returned; no samples if a file is lost."""
        found = {
            key: self._get(*value) if isinstance(value, tuple) else value
            for key, value in stored.items()
        }
        if any(value is None for value in found.values()):
            SampleMemory(found).forget()
        return found

    def keep(self, *stored: Mapping[str, Any]) -> None:
        """Delete all files but those that are named in what `put` returned."""
        if self._folder is None:
            return
        names = {
            value[0]
            for each in stored
            for value in each.values()
            if isinstance(value, tuple)
        }
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if path.name not in names:
                path.unlink(missing_ok=True)
        known = self._names.items()
        self._names = {key: known for key, known in known if known[1] in names}

    def _put(self, tensor: torch.Tensor, folder: Path) -> _Named:
        known, name = self._names.get(id(tensor), (None, ""))
        if known is None or known() is not tensor:
            folder.mkdir(mode=0o700, exist_ok=True)
            name = uuid.uuid4().hex + _SUFFIX
            write_file(tensor, folder / name)
            self._names[id(tensor)] = weakref.ref(tensor), name
        return name, DTYPES.index(tensor.dtype), tuple(tensor.shape)

    def _get(self, name: str, dtype: int, shape: tuple[int, ...]) -> Any:
        if self._folder is None:
            return None
        path, kind = self._folder / Path(name).name, DTYPES[dtype]
        num_bytes = math.prod(shape) * kind.itemsize
        if not path.is_file() or path.stat().st_size != num_bytes:
            return None
        tensor = mapped_file(path, kind, shape)
        self._names[id(tensor)] = weakref.ref(tensor), name
        return tensor
