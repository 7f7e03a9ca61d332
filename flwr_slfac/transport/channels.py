"""The channels of a device's front as text, and back."""

import json
from collections.abc import Mapping
from typing import Any, get_args

import torch

from flwr_slfac.errors import DecodeError
from flwr_slfac.lightweight.pruning import Channels, Group, Member, Role

# RuntimeError: a position beyond int64, or JSON too deep to be read (RecursionError).
_UNREADABLE = (AttributeError, KeyError, TypeError, ValueError, RuntimeError)


def channels_to_text(channels: Channels) -> str:
    """Return channels as JSON, without the shapes of tensors."""
    groups = [
        {
            "name": group.name,
            "size": group.size,
            "cut": None if group.cut is None else group.cut.tolist(),
            "members": [
                [m.tensor, m.dim, m.role, m.positions.tolist()] for m in group.members
            ],
        }
        for group in channels.groups
    ]
    whole = {"groups": groups, "cut": [channels.cut_dim, channels.cut_size]}
    return json.dumps({**whole, "fixed": dict(channels.fixed)}, separators=(",", ":"))


def channels_of_text(text: str) -> Channels:
    """Undo `channels_to_text`; what comes back is to be `fitted` to a front.

    Raises
    ------
    DecodeError
        If the text does not describe channels.
    """
    try:
        fields = json.loads(text)
        cut_dim, cut_size = map(_whole, fields["cut"])
        groups = tuple(_group(group) for group in fields["groups"])
        fixed = {str(k): str(v) for k, v in fields["fixed"].items()}
    except _UNREADABLE as error:
        raise DecodeError(f"the text describes no channels: {error}") from error
    return Channels(groups, {}, cut_dim, cut_size, fixed)


def _group(fields: Mapping[str, Any]) -> Group:
    members = []
    for tensor, dim, role, positions in fields["members"]:
        if role not in get_args(Role):
            raise ValueError(f"no role is named {role!r}")
        places = torch.tensor(positions, dtype=torch.int64)
        members.append(Member(str(tensor), _whole(dim), places, role))
    cut = fields["cut"]
    at_cut = None if cut is None else torch.tensor(cut, dtype=torch.int64)
    return Group(str(fields["name"]), _whole(fields["size"]), tuple(members), at_cut)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value
