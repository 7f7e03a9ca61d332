"""Channels and masks as plain values, and back."""

from collections.abc import Mapping
from typing import Any

from flwr_slfac.lightweight.pruning import (
    ChannelMask,
    Channels,
    ElementMask,
    FullMask,
    Group,
    Mask,
    Member,
    prunable_shapes,
)
from flwr_slfac.states import State


def plain_channels(channels: Channels | None) -> dict[str, Any] | None:
    """Return channels as dicts, lists and tensors; None for none."""
    if channels is None:
        return None
    groups = [
        {**vars(group), "members": [dict(vars(m)) for m in group.members]}
        for group in channels.groups
    ]
    return {
        "groups": groups,
        "shapes": {name: tuple(shape) for name, shape in channels.shapes.items()},
        "cut_dim": channels.cut_dim,
        "cut_size": channels.cut_size,
        "fixed": dict(channels.fixed),
    }


def channels_of(plain: Mapping[str, Any] | None) -> Channels | None:
    """Undo `plain_channels`."""
    if plain is None:
        return None
    groups = tuple(
        Group(**{**group, "members": tuple(Member(**m) for m in group["members"])})
        for group in plain["groups"]
    )
    return Channels(**{**plain, "groups": groups})


def mask_of(data: bytes, channels: Channels | None, full: State) -> Mask:
    """Return a mask from its bytes.

    Parameters
    ----------
    data : bytes
        `Mask.to_bytes`; empty for the whole front.
    channels : Channels or None
        Those that masks are of; None where masks are of single weights.
    full : mapping of str to Tensor
        The whole front.

    Raises
    ------
    DecodeError
        If it is not a mask of this front.
    """
    if not data:
        return FullMask()
    if channels is not None:
        return ChannelMask.from_bytes(data, channels)
    return ElementMask.from_bytes(data, prunable_shapes(full))
