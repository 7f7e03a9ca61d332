"""Records of a long run in a temporary file, so that memory does not grow with it."""

import json
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import IO, Any, Generic, TypeVar, overload

T = TypeVar("T")


class Spool:
    """JSON values in a temporary file, which goes with the object.

    Examples
    --------
    >>> spool = Spool()
    >>> spool.append({"a": 1}), spool.append([2])
    (0, 1)
    >>> spool.read(0), len(spool)
    ({'a': 1}, 2)
    """

    def __init__(self) -> None:
        self._ends: list[int] = []

    @cached_property
    def _file(self) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this is
        weakref.finalize(self, file.close)
        return file

    def append(self, value: Any) -> int:
        """Store a value; return its number, from 0."""
        self._file.seek(0, 2)
        self._file.write(json.dumps(value).encode())
        self._ends.append(self._file.tell())
        return len(self._ends) - 1

    def read(self, number: int) -> Any:
        """Return the value of this number."""
        start = self._ends[number - 1] if number else 0
        self._file.seek(start)
        return json.loads(self._file.read(self._ends[number] - start))

    def __len__(self) -> int:
        return len(self._ends)


class SpooledList(Sequence[T], Generic[T]):
    """A list of which the last entries are in memory, the others in a spool.

    Parameters
    ----------
    to_json, of_json : callable
        From an entry to a JSON value, and back.
    in_memory : int
        Entries that are at hand.

    Examples
    --------
    >>> entries = SpooledList(str, int, in_memory=2)
    >>> entries.extend([1, 2, 3, 4, 5])
    >>> list(entries), entries[0], entries[-1], len(entries)
    ([1, 2, 3, 4, 5], 1, 5, 5)
    """

    def __init__(
        self, to_json: Callable[[T], Any], of_json: Callable[[Any], T], in_memory: int
    ) -> None:
        self._to_json, self._of_json = to_json, of_json
        self._most = in_memory
        self._recent: list[T] = []
        self._spool = Spool()

    def extend(self, entries: Sequence[T]) -> None:
        """Append entries."""
        self._recent += entries
        while len(self._recent) > self._most:
            self._spool.append(self._to_json(self._recent.pop(0)))

    def __len__(self) -> int:
        return len(self._spool) + len(self._recent)

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self)):
            yield self[number]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        first = len(self._spool)
        if number >= first:
            return self._recent[number - first]
        return self._of_json(self._spool.read(number))
