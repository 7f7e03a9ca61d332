"""Groups of a front's channels, and where in its tensors each channel lies."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import Tensor

from flwr_slfac.errors import DecodeError
from flwr_slfac.states import State

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

    def fitted(self, state: State) -> "Channels":
        """Return the channels with the shapes of a front's full state.

        Parameters
        ----------
        state : mapping of str to Tensor
            The full front in which the groups are to lie.

        Raises
        ------
        DecodeError
            If a group names a tensor, dimension or position that the front lacks.
        """
        for group in self.groups:
            _require_inside(group, state, self.cut_size)
        names = {m.tensor for group in self.groups for m in group.members}
        shapes = {name: tuple(state[name].shape) for name in sorted(names)}
        return replace(self, shapes=shapes)


def _require_inside(group: Group, state: State, cut_size: int) -> None:
    places = [] if group.cut is None else [(group.cut, cut_size)]
    for member in group.members:
        shape = state[member.tensor].shape if member.tensor in state else ()
        if not 0 <= member.dim < len(shape):
            raise DecodeError(
                f"the channels of `{group.name}` lie in dimension {member.dim} of "
                f"{member.tensor!r}, which this front lacks"
            )
        places.append((member.positions, shape[member.dim]))
    for positions, limit in places:
        shaped = positions.ndim == 2 and len(positions) == group.size >= 1
        if not shaped or not bool(((positions >= 0) & (positions < limit)).all()):
            raise DecodeError(
                f"the places of the channels of `{group.name}` do not fit this front"
            )
