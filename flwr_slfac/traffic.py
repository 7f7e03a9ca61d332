"""What crossed between server and devices: bytes and seconds, counted, not estimated.

Every byte is the length of bytes that were handed to the transport: frames with their
headers and side information (`up`, `down`, `targets`), device-side models with their
names (`model-up`, `model-down`) and the small records around them (`control`).
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Direction = Literal["up", "down", "targets", "model-up", "model-down", "control"]
Phase = Literal["train", "evaluate"]
SMASHED: tuple[Direction, ...] = ("up", "down")


@dataclass
class Crossing:
    """The sum of what crossed for one device, direction and phase of a round.

    Parameters
    ----------
    server_round, device : int
        Round from 1, partition id.
    phase, direction : str
        What it was for, and what it was.
    num_messages, num_bytes : int
        How many pieces crossed, and their bytes.
    raw_bytes : int
        The same tensors in float32 without headers; 0 where nothing was coded.
    seconds : float
        Time spent to code and decode them, on both sides.
    """

    server_round: int
    device: int
    phase: Phase
    direction: Direction
    num_messages: int = 0
    num_bytes: int = 0
    raw_bytes: int = 0
    seconds: float = 0.0


class Traffic:
    """A ledger of crossings.

    Examples
    --------
    >>> traffic = Traffic()
    >>> traffic.add(1, 0, "train", "up", num_bytes=100, raw_bytes=800)
    >>> traffic.add(1, 0, "train", "down", num_bytes=100, raw_bytes=800)
    >>> traffic.num_bytes(directions=("up",)), traffic.compression_ratio()
    (100, 8.0)
    """

    def __init__(self) -> None:
        self._crossings: dict[tuple[int, int, Phase, Direction], Crossing] = {}

    def add(
        self,
        server_round: int,
        device: int,
        phase: Phase,
        direction: Direction,
        *,
        num_bytes: int,
        raw_bytes: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Enter one piece that crossed."""
        key = (server_round, device, phase, direction)
        crossing = self._crossings.setdefault(key, Crossing(*key))
        crossing.num_messages += 1
        crossing.num_bytes += num_bytes
        crossing.raw_bytes += raw_bytes
        crossing.seconds += seconds

    def add_seconds(
        self,
        server_round: int,
        device: int,
        phase: Phase,
        direction: Direction,
        seconds: float,
    ) -> None:
        """Enter time spent on pieces that were entered already."""
        key = (server_round, device, phase, direction)
        self._crossings.setdefault(key, Crossing(*key)).seconds += seconds

    def rows(
        self,
        *,
        server_round: int | None = None,
        phase: Phase | None = None,
        directions: Iterable[Direction] | None = None,
    ) -> list[Crossing]:
        """Return the entries, in order of round, device, phase and direction."""
        wanted = None if directions is None else set(directions)
        return [
            c
            for _, c in sorted(self._crossings.items())
            if server_round in (None, c.server_round)
            and phase in (None, c.phase)
            and (wanted is None or c.direction in wanted)
        ]

    def num_bytes(
        self,
        *,
        server_round: int | None = None,
        phase: Phase | None = None,
        directions: Iterable[Direction] | None = None,
    ) -> int:
        """Return the bytes of the entries that match."""
        rows = self.rows(server_round=server_round, phase=phase, directions=directions)
        return sum(c.num_bytes for c in rows)

    def compression_ratio(
        self,
        *,
        server_round: int | None = None,
        phase: Phase | None = None,
        directions: Iterable[Direction] = SMASHED,
    ) -> float:
        """Return float32 bytes over bytes that crossed; NaN if nothing did."""
        rows = self.rows(server_round=server_round, phase=phase, directions=directions)
        num_bytes = sum(c.num_bytes for c in rows)
        return sum(c.raw_bytes for c in rows) / num_bytes if num_bytes else float("nan")

    def write(self, stem: str | Path) -> tuple[Path, Path]:
        """Write all entries as `stem`.csv and `stem`.json; return the two paths."""
        stem = Path(stem)
        stem.parent.mkdir(parents=True, exist_ok=True)
        paths = (
            stem.with_name(stem.name + ".csv"),
            stem.with_name(stem.name + ".json"),
        )
        rows = [asdict(c) for c in self.rows()]
        with paths[0].open("w", newline="") as file:
            names = list(Crossing.__dataclass_fields__)
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            writer.writerows(rows)
        paths[1].write_text(json.dumps(rows, indent=1))
        return paths
