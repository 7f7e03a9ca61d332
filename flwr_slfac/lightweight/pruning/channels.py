"""Groups of a front's channels, and where in its tensors each channel lies."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flwr_slfac.errors import DecodeError

Role = Literal["parameter", "scale", "statistic"]


@dataclass(frozen=True, eq=False)
class Member:
    """Where the channels of a group lie along a dimension of a tensor.

    Attributes
    ----------
    tensor : str
        Key of the front's state.
    dim : int
        Dimension of that tensor.
    positions : Tensor
        int64 ``(size, k)``: what leaves with channel i; k > 1 where a map was
        flattened.
    role : {"parameter", "scale", "statistic"}
        ``"scale"``: the scale of a batch or instance norm; ``"statistic"``: its running
        mean or variance, a buffer.
    """

    tensor: str
    dim: int
    positions: Tensor
    role: Role = "parameter"


@dataclass(frozen=True, eq=False)
class Group:
    """Channels of one or more layers; channel i of all leaves at once, or stays.

    Attributes
    ----------
    name : str
        The first layer that makes them.
    size : int
        Number of channels.
    members : tuple of Member
        All places where they lie.
    cut : Tensor or None
        int64 ``(size, k)``: where they lie along the channels of the smashed data.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    cut: Tensor | None = None

    @property
    def at_cut(self) -> bool:
        """Whether pruning them makes the smashed data smaller."""
        return self.cut is not None


@dataclass(frozen=True, eq=False)
class Channels:
    """All channels of a front that can leave.

    Attributes
    ----------
    groups : tuple of Group
        In the order in which the front computes them.
    shapes : Mapping of str to tuple of int
        Full shapes of the tensors that groups lie in.
    cut_dim : int
        Dimension of the smashed data along which channels lie.
    cut_size : int
        Number of channels of the smashed data, those that cannot leave included.
    fixed : Mapping of str to str
        Layers none of whose output channels can leave, and why.
    """

    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    cut_dim: int
    cut_size: int
    fixed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> int:
        """CRC-32 of names, sizes and places: equal where masks mean the same."""
        crc = zlib.crc32(repr((self.cut_dim, self.cut_size)).encode())
        for group in self.groups:
            places = [(m.tensor, m.dim, m.positions) for m in group.members]
            places += [] if group.cut is None else [("", 0, group.cut)]
            for name, dim, positions in places:
                crc = zlib.crc32(f"{group.name} {name} {dim}".encode(), crc)
                crc = zlib.crc32(positions.numpy().astype("<i8").tobytes(), crc)
        return crc

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def to_text(self) -> str:
        """Return the channels as JSON, for the side that has no front."""
        groups = [
            {
                "name": group.name,
                "size": group.size,
                "cut": None if group.cut is None else group.cut.tolist(),
                "members": [
                    [m.tensor, m.dim, m.role, m.positions.tolist()]
                    for m in group.members
                ],
            }
            for group in self.groups
        ]
        whole = {"groups": groups, "cut": [self.cut_dim, self.cut_size]}
        return json.dumps({**whole, "fixed": dict(self.fixed)}, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str, state: Mapping[str, Tensor]) -> "Channels":
        """Undo `to_text`, for a front whose full state is given.

        Raises
        ------
        DecodeError
            If the text does not describe channels of that front.
        """
        try:
            fields = json.loads(text)
            cut_dim, cut_size = map(_whole, fields["cut"])
            groups = tuple(_group(g, state, cut_size) for g in fields["groups"])
            fixed = {str(k): str(v) for k, v in fields["fixed"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DecodeError(f"the text describes no channels: {error}") from error
        names = {m.tensor for group in groups for m in group.members}
        shapes = {name: tuple(state[name].shape) for name in sorted(names)}
        return cls(groups, shapes, cut_dim, cut_size, fixed)


def _group(fields: Mapping[str, Any], state: Mapping[str, Tensor], cut: int) -> Group:
    size = _whole(fields["size"])
    members = []
    for tensor, dim, role, positions in fields["members"]:
        if role not in get_args(Role):
            raise ValueError(f"no role is named {role!r}")
        shape = state[tensor].shape
        if not 0 <= _whole(dim) < len(shape):
            raise ValueError(f"{tensor!r} has no dimension {dim}")
        places = _positions(positions, size, shape[dim])
        members.append(Member(tensor, dim, places, role))
    at_cut = fields["cut"]
    at_cut = None if at_cut is None else _positions(at_cut, size, cut)
    return Group(str(fields["name"]), size, tuple(members), at_cut)


def _positions(rows: Any, size: int, limit: int) -> Tensor:
    positions = torch.tensor(rows, dtype=torch.int64)
    inside = bool(((positions >= 0) & (positions < limit)).all())
    if positions.ndim != 2 or len(positions) != size or size < 1 or not inside:
        raise ValueError("places of channels do not fit the front")
    return positions


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value
