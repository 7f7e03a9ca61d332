"""What a device needs next, stored in its node's state between two messages."""

import uuid
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

from flwr_slfac.split import DeviceHalf
from flwr_slfac.transport.packing import pack_state, unpack_state
from flwr_slfac.transport.records import FRAMES, SPLIT, get_frame, put_frame
from flwr_slfac.transport.snapshots import pack_snapshot, unpack_snapshot

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
        self._kept = None if self._packed is None else unpack_state(self._packed)
        self.half.kept = self._kept
        snapshot = get_frame(stored, "round")
        self.half.restore(None if snapshot is None else unpack_snapshot(snapshot))

    def write(self, context: Context) -> None:
        """Store the device's state."""
        context.state.config_records.pop(_STATE, None)
        context.state.array_records.pop(_STATE_FRAMES, None)
        if self.half.kept is not self._kept:
            self._kept = self.half.kept
            self._packed = None if self._kept is None else pack_state(self._kept)
        snapshot = self.half.snapshot()
        parts = {
            "round": None if snapshot is None else pack_snapshot(snapshot),
            "kept": self._packed,
        }
        present = {name: part for name, part in parts.items() if part is not None}
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


def _read_token(context: Context) -> str:
    record = context.state.config_records.get(_STATE)
    return "" if record is None else str(record["token"])
