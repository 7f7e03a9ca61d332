"""What both sides of a stream keep of samples: the last that was decoded of each.

Both sides put in the same frames in the same order, and so hold the same. Rows lie in
the memory as they came, frame by frame, and an index says where each sample's newest
row is::

    frame 0: rows of samples 4 1 7        index: 1 -> frame 2, row 0
    frame 1: rows of samples 2 0 3               4 -> frame 0, row 0 ...
    frame 2: rows of samples 1 7 5

A frame of which no row is the newest any more is let go. Above the limit of memory, or
of frames, the oldest frame is, with the samples whose newest rows are in it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.base import Memory
from flwr_slfac.tensor_files import in_file, is_in_file

__all__ = ["DEFAULT_MAX_BYTES", "INDEX_BYTES", "SampleMemory"]

Ids = npt.NDArray[np.int64]

# Our choice: CIFAR-10's 50,000 images in halves of 650 values.
DEFAULT_MAX_BYTES = 2**26
_PREFIX = "temporal."
_VERSION, _LIMIT, _INDEX = "temporal.version", "temporal.limit", "temporal.index"
_ROWS, _RANGES = "temporal.rows.", "temporal.ranges."
_MOST_BYTES = "temporal.most_bytes"
# An index entry is three int64; besides there are a version and two numbers.
INDEX_BYTES = 24
_FIXED_BYTES = 32
# Our choice: 131,072 samples in batches of 8; a step takes time for each frame.
_MOST_FRAMES = 2**14
_LARGEST_HALF = 65504.0
# Half of float32's largest, so that no range of a row overflows.
_LARGEST = 1.7e38
_LAST_CODE = 255


class SampleMemory:
    """The samples in a memory of a codec, see `Hints`; a view, which holds nothing.

    No tensor is changed in place: a copy of the dict is a copy of the samples.

    Parameters
    ----------
    memory : dict of str to Tensor
        Of the encoder's or the decoder's stream.

    Examples
    --------
    >>> import torch
    >>> from flwr_slfac.codec import Float16, SampleMemory, Temporal, decode, encode
    >>> here, there = {}, {}
    >>> x = torch.randn(2, 3)
    >>> frame = encode(x, Temporal(Float16()), memory=here, samples=[4, 7])
    >>> _ = decode(frame, memory=there)
    >>> SampleMemory(here).version == SampleMemory(there).version != ""
    True
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    @property
    def memory(self) -> Memory:
        """What this is a view of."""
        return self._memory

    @property
    def version(self) -> str:
        """A text that tells apart what frames this was made of; empty for none."""
        version = self._memory.get(_VERSION)
        return "" if version is None else bytes(version.tolist()).hex()

    @property
    def max_bytes(self) -> int:
        """The limit that was agreed on when this began; 0 before."""
        limit = self._memory.get(_LIMIT)
        return 0 if limit is None else int(limit)

    @property
    def most_bytes(self) -> int:
        """The largest limit that a decoder agrees to."""
        most = self._memory.get(_MOST_BYTES)
        return DEFAULT_MAX_BYTES if most is None else int(most)

    def allow(self, most_bytes: int) -> None:
        """Set the largest limit that a decoder agrees to."""
        self._memory[_MOST_BYTES] = torch.tensor(most_bytes)

    def move_to(self, folder: str | Path | None) -> None:
        """Move rows that are not in a file yet to files in a folder; None for none.

        Their bits stay. On Linux a process has 65,530 mappings by default
        (``vm.max_map_count``); here each frame is one.

        Raises
        ------
        OSError
            If they cannot be written; those that are left stay in memory.
        """
        if folder is None:
            return
        for name, rows in self._memory.items():
            if name.startswith(_ROWS) and not is_in_file(rows):
                self._memory[name] = in_file(rows, folder)

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is kept, in files and out of them."""
        if not self.version:
            return 0
        rows = sum(self._num_row_bytes(k) for k in self._frames())
        num_samples = int(self._index().shape[1])
        return rows + INDEX_BYTES * num_samples + _FIXED_BYTES

    def forget(self) -> None:
        """Begin anew, with no sample and no version."""
        for name in [n for n in self._memory if n.startswith(_PREFIX)]:
            if name != _MOST_BYTES:
                del self._memory[name]

    def begin(self, max_bytes: int) -> None:
        """Begin anew, with a limit of memory."""
        self.forget()
        self._memory[_LIMIT] = torch.tensor(max_bytes)

    def find(
        self, ids: Ids, shape: Sequence[int]
    ) -> tuple[torch.Tensor, npt.NDArray[np.bool_]]:
        """Return the newest rows of samples.

        Parameters
        ----------
        ids : ndarray (n,)
            Of the samples.
        shape : sequence of int
            Of one row; rows of another shape do not count.

        Returns
        -------
        rows : Tensor of float32, (n, *shape)
            Zero where there is none.
        known : ndarray of bool (n,)
            Where there is one.
        """
        rows = torch.zeros((len(ids), *shape))
        known = np.zeros(len(ids), dtype=bool)
        index = self._index()
        if not index.shape[1]:
            return rows, known
        at = np.minimum(np.searchsorted(index[0], ids), index.shape[1] - 1)
        held = index[0][at] == ids
        frames, places = index[1][at], index[2][at]
        for frame in np.unique(frames[held]).tolist():
            if self._memory[f"{_ROWS}{frame}"].shape[1:] != tuple(shape):
                continue
            here = np.flatnonzero(held & (frames == frame))
            rows[torch.from_numpy(here)] = self._read(frame, places[here])
            known[here] = True
        return rows, known

    def put(self, ids: Ids, rows: torch.Tensor, bits: int, version: bytes) -> None:
        """Keep the rows of a frame.

        Parameters
        ----------
        ids : ndarray (n,)
            Of the samples, 0 or more; of equal ones the last counts.
        rows : Tensor (n, ...)
            Of any float dtype, on the CPU, finite.
        bits : {8, 16}
            A value's: a grid over its row, or half precision.
        version : bytes
            Of all frames up to this one, 8 bytes.
        """
        index = self._index()
        frame = max(self._frames(), default=-1) + 1
        own, last = np.unique(ids[::-1], return_index=True)
        mine = np.stack([own, np.full_like(own, frame), len(ids) - 1 - last])
        index = np.concatenate([index[:, ~np.isin(index[0], own)], mine], axis=1)
        index = index[:, np.argsort(index[0], kind="stable")]
        self._write(frame, rows.to(torch.float32), bits)
        self._memory[_VERSION] = torch.tensor(list(version), dtype=torch.uint8)
        self._keep(index, set(index[1].tolist()))
        while (frames := self._frames()) and self._is_too_much(len(frames)):
            index = index[:, index[1] != min(frames)]
            self._keep(index, set(frames) - {min(frames)})

    def _is_too_much(self, num_frames: int) -> bool:
        return num_frames > _MOST_FRAMES or self.num_bytes > self.max_bytes

    def _keep(self, index: npt.NDArray[np.int64], frames: set[int]) -> None:
        self._memory[_INDEX] = torch.from_numpy(np.ascontiguousarray(index))
        for frame in self._frames():
            if frame not in frames:
                del self._memory[f"{_ROWS}{frame}"]
                self._memory.pop(f"{_RANGES}{frame}", None)

    def _index(self) -> npt.NDArray[np.int64]:
        index = self._memory.get(_INDEX)
        if index is None:
            return np.zeros((3, 0), dtype=np.int64)
        found: npt.NDArray[np.int64] = index.numpy()
        return found

    def _frames(self) -> list[int]:
        return [int(n[len(_ROWS) :]) for n in self._memory if n.startswith(_ROWS)]

    def _num_row_bytes(self, frame: int) -> int:
        names = f"{_ROWS}{frame}", f"{_RANGES}{frame}"
        return sum(self._memory[n].nbytes for n in names if n in self._memory)

    def _write(self, frame: int, rows: torch.Tensor, bits: int) -> None:
        name = f"{_ROWS}{frame}"
        if bits == 16:
            self._memory[name] = rows.clamp(-_LARGEST_HALF, _LARGEST_HALF).half()
            return
        flat = rows.reshape(len(rows), -1).clamp(-_LARGEST, _LARGEST)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        step = (high - low) / _LAST_CODE
        divisor = torch.where(step > 0, step, torch.ones_like(step))
        codes = ((flat - low) / divisor).round().clamp(0, _LAST_CODE)
        self._memory[name] = codes.to(torch.uint8).reshape(rows.shape)
        self._memory[f"{_RANGES}{frame}"] = torch.cat([low, step], dim=1)

    def _read(self, frame: int, places: Ids) -> torch.Tensor:
        at = torch.from_numpy(places)
        rows = self._memory[f"{_ROWS}{frame}"][at].to(torch.float32)
        ranges = self._memory.get(f"{_RANGES}{frame}")
        if ranges is None:
            return rows
        shape = (len(rows),) + (1,) * (rows.ndim - 1)
        low, step = (column.reshape(shape) for column in ranges[at].unbind(1))
        return rows * step + low
