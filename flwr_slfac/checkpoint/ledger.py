"""What every round of a run came to, compressed round by round.

A checkpoint holds all rounds before it; only those since the last one are coded anew.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from flwr_slfac.checkpoint.tree import pack, unpack
from flwr_slfac.errors import CheckpointError

_LENGTH = struct.Struct("<Q")


class Ledger:
    """Entries of rounds, in order.

    Parameters
    ----------
    data : bytes
        What `to_bytes` returned; empty for none.

    Examples
    --------
    >>> ledger = Ledger()
    >>> ledger.add({"round": 1, "loss": float("inf")})
    >>> list(Ledger(ledger.to_bytes()))
    [{'round': 1, 'loss': inf}]
    """

    def __init__(self, data: bytes = b"") -> None:
        self._segments: list[bytes] = []
        start = 0
        while start < len(data):
            end = start + _LENGTH.size
            if end > len(data):
                raise CheckpointError("the rounds of a checkpoint end inside a length")
            (length,) = _LENGTH.unpack_from(data, start)
            start = end + length
            if start > len(data):
                raise CheckpointError("the rounds of a checkpoint end inside a round")
            self._segments.append(data[end:start])

    def add(self, entry: Any) -> None:
        """Append the entry of a round: nested values without arrays and tensors.

        Raises
        ------
        CheckpointError
            If it holds something else.
        """
        packed, tensors = pack(entry, "the entry of a round")
        if tensors:
            raise CheckpointError(f"a round's entry holds tensors: {sorted(tensors)}")
        self._segments.append(zlib.compress(json.dumps(packed).encode()))

    def to_bytes(self) -> bytes:
        """Return all entries as bytes."""
        return b"".join(_LENGTH.pack(len(s)) + s for s in self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> Iterator[Any]:
        for segment in self._segments:
            try:
                yield unpack(json.loads(zlib.decompress(segment)), {})
            except (ValueError, zlib.error) as error:
                raise CheckpointError(f"a round cannot be read: {error}") from error
