"""What crossed between server and devices: bytes and seconds, counted, not estimated.

Every byte is the length of bytes that were handed to the transport: frames with their
headers and side information (`up`, `down`, `targets`), device-side models with their
names (`model-up`, `model-down`) and the small records around them (`control`).
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flwr_slfac.spool import Spool

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


_Entries = dict[tuple[Phase, Direction], Crossing]


def raw_bytes_of(shapes: Iterable[Sequence[int]]) -> int:
    """Return the bytes of tensors of these shapes in float32, whatever their dtype."""
    return 4 * sum(map(math.prod, shapes))


class Traffic:
    """A ledger of crossings.

    Parameters
    ----------
    rounds_in_memory : int (default: 100)
        Rounds before these wait in a temporary file; what is asked for is the same.

    Examples
    --------
    >>> traffic = Traffic()
    >>> traffic.add(1, 0, "train", "up", num_bytes=100, raw_bytes=800)
    >>> traffic.add(1, 0, "train", "down", num_bytes=100, raw_bytes=800)
    >>> traffic.num_bytes(directions=("up",)), traffic.compression_ratio()
    (100, 8.0)
    """

    def __init__(self, rounds_in_memory: int = 100) -> None:
        self._most = rounds_in_memory
        # By round and device.
        self._rounds: dict[int, dict[int, _Entries]] = {}
        self._spool = Spool()
        # By round: what of it the spool holds.
        self._spooled: dict[int, list[int]] = {}

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
        crossing = self._crossing(server_round, device, phase, direction)
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
        self._crossing(server_round, device, phase, direction).seconds += seconds

    def _crossing(
        self, server_round: int, device: int, phase: Phase, direction: Direction
    ) -> Crossing:
        """Return the entry to add to."""
        if server_round not in self._rounds:
            self._rounds[server_round] = {}
            if len(self._rounds) > self._most:
                self._put_away(min(self._rounds.keys() - {server_round}))
        entries = self._rounds[server_round].setdefault(device, {})
        key = (phase, direction)
        if key not in entries:
            entries[key] = Crossing(server_round, device, phase, direction)
        return entries[key]

    def _put_away(self, server_round: int) -> None:
        """Move a round's entries to the file."""
        devices = self._rounds.pop(server_round).values()
        rows = [asdict(c) for entries in devices for c in entries.values()]
        self._spooled.setdefault(server_round, []).append(self._spool.append(rows))

    def _round(self, server_round: int, device: int | None) -> list[Crossing]:
        """Return a round's entries, of one device or of all."""
        book = self._rounds.get(server_round, {})
        devices = book if device is None else {device: book.get(device, {})}
        # Copies: other threads may look while one enters.
        found = [c for own in list(devices.values()) for c in list(own.values())]
        for number in self._spooled.get(server_round, ()):
            rows = [Crossing(**fields) for fields in self._spool.read(number)]
            found += [c for c in rows if device in (None, c.device)]
        return _merged(found)

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Enter sums of an earlier run, each the fields of a `Crossing`."""
        for fields in rows:
            row = Crossing(**fields)
            own = self._crossing(row.server_round, row.device, row.phase, row.direction)
            vars(own).update(vars(row))

    def rows(
        self,
        *,
        server_round: int | None = None,
        device: int | None = None,
        phase: Phase | None = None,
        directions: Iterable[Direction] | None = None,
    ) -> list[Crossing]:
        """Return the entries, in order of round, device, phase and direction."""
        wanted = None if directions is None else set(directions)
        # All rounds are looked up only if asked for: a long run has many.
        rounds = [server_round] if server_round is not None else self._all_rounds()
        return [
            c
            for number in rounds
            for c in self._round(number, device)
            if phase in (None, c.phase) and (wanted is None or c.direction in wanted)
        ]

    def _all_rounds(self) -> list[int]:
        return sorted(self._rounds.keys() | self._spooled.keys())

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


def _merged(crossings: list[Crossing]) -> list[Crossing]:
    """Return entries of one round in order, those of one kind as their sum."""
    merged: dict[tuple[int, Phase, Direction], Crossing] = {}
    for c in crossings:
        key = (c.device, c.phase, c.direction)
        if key not in merged:
            merged[key] = c
            continue
        old = merged[key]
        merged[key] = replace(
            old,
            num_messages=old.num_messages + c.num_messages,
            num_bytes=old.num_bytes + c.num_bytes,
            raw_bytes=old.raw_bytes + c.raw_bytes,
            seconds=old.seconds + c.seconds,
        )
    return [merged[key] for key in sorted(merged)]
