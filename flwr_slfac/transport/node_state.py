"""What a device needs next, stored in its node's state between two messages."""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

from flwr_slfac.split import DeviceHalf
from flwr_slfac.transport.packing import pack_state, unpack_state
from flwr_slfac.transport.records import FRAMES, SPLIT, get_frame, put_frame
from flwr_slfac.transport.snapshots import pack_snapshot, unpack_snapshot
from flwr_slfac.transport.state_files import StateFiles

_STATE, _STATE_FRAMES = "slfac", "slfac-frames"


class NodeState:
    """The stored state of one node, and the device that stands for it.

    Parameters
    ----------
    half : DeviceHalf
        The device; in the stored state once `read` or `write` was called.
    """

    def __init__(self, half: DeviceHalf) -> None:
        self.half = half
        self._token = ""
        # What the device keeps, and the same packed: it changes once a round only.
        self._kept: dict[str, Any] | None = None
        self._packed: bytes | None = None
        folder, name = half.device.sample_folder, f"device-{half.partition}"
        self._files = StateFiles(None if folder is None else Path(folder) / name)
        # Of what is packed, the memory with names in place of files.
        self._named: dict[str, Any] = {}

    def is_current(self, context: Context) -> bool:
        """Say whether the device is in the state that the node stores."""
        return self._token == _read_token(context)

    def read(self, context: Context) -> None:
        """Bring the device to the state that the node stores."""
        self._token = _read_token(context)
        stored = RecordDict({SPLIT: ConfigRecord()})
        if self._token:
            stored = RecordDict({SPLIT: context.state.config_records[_STATE]})
            if (frames := context.state.array_records.get(_STATE_FRAMES)) is not None:
                stored[FRAMES] = frames
        self._packed = get_frame(stored, "kept")
        self._kept = self._unpacked(self._packed)
        self.half.kept = self._kept
        packed = get_frame(stored, "round")
        snapshot = None if packed is None else unpack_snapshot(packed)
        if snapshot is not None:
            up, before, down = map(self._files.get, snapshot.memory)
            snapshot = replace(snapshot, memory=(up, before, down))
        self.half.restore(snapshot)

    def write(self, context: Context) -> None:
        """Store the device's state."""
        context.state.config_records.pop(_STATE, None)
        context.state.array_records.pop(_STATE_FRAMES, None)
        if self.half.kept is not self._kept:
            self._kept = self.half.kept
            self._packed = self._pack(self._kept)
        snapshot = self.half.snapshot()
        if snapshot is not None:
            up, before, down = map(self._files.put, snapshot.memory)
            snapshot = replace(snapshot, memory=(up, before, down))
        parts = {
            "round": None if snapshot is None else pack_snapshot(snapshot),
            "kept": self._packed,
        }
        present = {name: part for name, part in parts.items() if part is not None}
        self._files.keep(self._named, *(snapshot.memory if snapshot else ()))
        # With nothing to remember, a thousand idle devices hold nothing.
        self._token = uuid.uuid4().hex if present else ""
        if not present:
            return
        content = RecordDict({SPLIT: ConfigRecord({"token": self._token})})
        for name, part in present.items():
            put_frame(content, name, part)
        context.state[_STATE] = content.config_records[SPLIT]
        frames = content.array_records.get(FRAMES)
        if isinstance(frames, ArrayRecord):
            context.state[_STATE_FRAMES] = frames

    def _pack(self, kept: dict[str, Any] | None) -> bytes | None:
        """Return what the device keeps as bytes, without what lies in files."""
        self._named = {}
        if kept is None:
            return None
        if "memory" in kept:
            self._named = self._files.put(kept["memory"])
            kept = {**kept, "memory": self._named}
        return pack_state(kept)

    def _unpacked(self, packed: bytes | None) -> dict[str, Any] | None:
        """Undo `_pack`."""
        self._named = {}
        if packed is None:
            return None
        kept: dict[str, Any] = unpack_state(packed)
        if "memory" in kept:
            self._named = kept["memory"]
            kept["memory"] = self._files.get(self._named)
        return kept


def _read_token(context: Context) -> str:
    record = context.state.config_records.get(_STATE)
    return "" if record is None else str(record["token"])
