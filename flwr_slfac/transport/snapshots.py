"""A device in the midst of a round, as bytes and back."""

from dataclasses import replace

from flwr_slfac.errors import DecodeError
from flwr_slfac.split import Snapshot
from flwr_slfac.transport.begins import begin_of_fields, begin_to_fields
from flwr_slfac.transport.packing import pack_state, unpack_state


def pack_snapshot(snapshot: Snapshot) -> bytes:
    """Return a snapshot as bytes.

    Raises
    ------
    SettingError
        If an optimizer or a scheduler holds state that cannot be stored.
    """
    return pack_state(
        {
            "begin": begin_to_fields(snapshot.begin),
            "mask": snapshot.begin.mask,
            "batch": snapshot.batch,
            "step": snapshot.step,
            "front": snapshot.front,
            "memory": snapshot.memory,
            "paused": snapshot.paused,
        }
    )


def unpack_snapshot(data: bytes) -> Snapshot:
    """Undo `pack_snapshot`.

    Raises
    ------
    DecodeError
        If the bytes are not a snapshot.
    """
    state = unpack_state(data)
    try:
        begin = replace(begin_of_fields(state["begin"]), mask=state["mask"])
        parts = ("batch", "step", "front", "memory", "paused")
        return Snapshot(begin, *(state[name] for name in parts))
    except (KeyError, TypeError) as error:
        raise DecodeError(f"the bytes are not a snapshot: {error}") from error
