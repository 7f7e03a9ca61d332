"""Which channels of each group a device keeps; the mask as bits on the wire.

::

    offset  bytes  field
    0       4      fingerprint of the groups, CRC-32
    4       ...    a bit a channel, groups in their order, from the lowest bit of each
                   byte; the last byte is filled with zeros
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flwr_slfac.errors import DecodeError, SettingError
from flwr_slfac.lightweight.pruning.channels import Channels
from flwr_slfac.lightweight.pruning.cut_mask import PartialCutMask
from flwr_slfac.lightweight.pruning.masks import Mask, require_shape

# The fingerprint: a CRC-32, hence 4 bytes.
_HEADER = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class ChannelMask(Mask):
    """A structured mask: the channels that a device keeps of each group.

    Parameters
    ----------
    channels : Channels
        What :func:`channel_groups` found.
    masks : mapping of str to Tensor
        By group: bool ``(size,)``, True where kept.

    Raises
    ------
    SettingError
        If a group has no mask, one of another size or type, or one that keeps nothing.

    Examples
    --------
    >>> from torch import nn
    >>> from flwr_slfac.lightweight.pruning.dependency.analysis import channel_groups
    >>> front = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> channels = channel_groups(front, torch.zeros(1, 3))
    >>> masks = {"0": torch.tensor([True, False, True, True]), "2": torch.ones(2) > 0}
    >>> mask = ChannelMask(channels, masks)
    >>> [tuple(t.shape) for t in mask.take_state(front.state_dict()).values()]
    [(3, 3), (3,), (2, 3), (2,)]
    >>> len(mask.to_bytes())  # a fingerprint and 6 bits
    5
    """

    channels: Channels
    masks: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        names = {group.name for group in self.channels.groups}
        if odd := sorted(names ^ self.masks.keys()):
            raise SettingError(
                f"a mask for each group of channels is needed; missing or unknown: "
                f"{', '.join(odd)}"
            )
        for group in self.channels.groups:
            mask = self.masks[group.name]
            if mask.dtype != torch.bool or mask.shape != (group.size,):
                raise SettingError(
                    f"the mask of `{group.name}` is {mask.dtype} of shape "
                    f"{tuple(mask.shape)}; give bool of shape ({group.size},)"
                )
            if not mask.any():
                raise SettingError(
                    f"the mask of `{group.name}` keeps none of its {group.size} "
                    "channels, which would empty the layer; keep at least one"
                )

    @property
    def is_full(self) -> bool:
        """False, also where every channel is kept."""
        return False

    @cached_property
    def cut(self) -> PartialCutMask:
        """Which channels of the smashed data the small network computes."""
        keep = torch.ones(self.channels.cut_size, dtype=torch.bool)
        for group in self.channels.groups:
            if group.cut is not None:
                keep[group.cut[~self.masks[group.name]].flatten()] = False
        return PartialCutMask(
            self.channels.cut_dim, self.channels.cut_size, keep.nonzero().flatten()
        )

    @cached_property
    def index(self) -> dict[str, dict[int, Tensor]]:
        """By tensor and dimension: the kept positions, ascending."""
        keep: dict[tuple[str, int], Tensor] = {}
        for group in self.channels.groups:
            pruned = ~self.masks[group.name]
            for member in group.members:
                place = (member.tensor, member.dim)
                size = self.channels.shapes[member.tensor][member.dim]
                mask = keep.setdefault(place, torch.ones(size, dtype=torch.bool))
                mask[member.positions[pruned].flatten()] = False
        index: dict[str, dict[int, Tensor]] = {}
        for (name, dim), mask in keep.items():
            index.setdefault(name, {})[dim] = mask.nonzero().flatten()
        return index

    def take(self, name: str, full: Tensor) -> Tensor:
        """Return the kept part of a full tensor: fewer channels in its dimensions.

        Raises
        ------
        TrainingError
            If the tensor is not of the shape that was analysed.
        """
        index = self.index.get(name, {})
        if index:
            require_shape(name, full, self.channels.shapes[name])
        for dim, positions in index.items():
            full = full.index_select(dim, positions.to(full.device))
        return full

    def put(self, name: str, part: Tensor, full: Tensor) -> Tensor:
        """Return a copy of a full tensor with the kept part at its place.

        Raises
        ------
        TrainingError
            If a tensor is not of the shape that the mask is for.
        """
        shape = list(full.shape)
        for dim, positions in self.index.get(name, {}).items():
            shape[dim] = positions.numel()
        require_shape(name, part, tuple(shape))
        if name in self.index:
            require_shape(name, full, self.channels.shapes[name])
        return _put(full, list(self.index.get(name, {}).items()), part.to(full.dtype))

    def held(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return which coordinates are kept: those kept along every dimension."""
        held = torch.ones(shape, dtype=torch.bool)
        for dim, positions in self.index.get(name, {}).items():
            along = torch.zeros(shape[dim], dtype=torch.bool)
            along[positions] = True
            held &= along.view([-1 if d == dim else 1 for d in range(len(shape))])
        return held

    def to_bytes(self) -> bytes:
        """Return the mask as bytes: 4, and a bit a channel."""
        bits = torch.cat([self.masks[group.name] for group in self.channels.groups])
        packed = np.packbits(bits.numpy(), bitorder="little").tobytes()
        return _HEADER.pack(self.channels.fingerprint) + packed

    @classmethod
    def from_bytes(cls, data: bytes, channels: Channels) -> "ChannelMask":
        """Undo `to_bytes`, for the same front.

        Parameters
        ----------
        data : bytes
            What `to_bytes` returned, or anything at all.
        channels : Channels
            Those of the front that the mask is for.

        Raises
        ------
        DecodeError
            If the bytes are not a mask of these channels, or it would empty a layer.
        """
        total = sum(group.size for group in channels.groups)
        size = _HEADER.size + -(-total // 8)
        if len(data) != size:
            raise DecodeError(
                f"a mask of {total} channels is {size} bytes, not {len(data)}"
            )
        (fingerprint,) = _HEADER.unpack_from(data)
        if fingerprint != channels.fingerprint:
            raise DecodeError(
                "the mask is of another front; both sides must build the same one"
            )
        packed = np.frombuffer(data, np.uint8, offset=_HEADER.size)
        bits = np.unpackbits(packed, bitorder="little")
        if bits[total:].any():
            raise DecodeError("the bits behind the last channel of a mask are not zero")
        flags = torch.from_numpy(bits[:total].astype(bool))
        sizes = [group.size for group in channels.groups]
        names = [group.name for group in channels.groups]
        try:
            return cls(
                channels, dict(zip(names, torch.split(flags, sizes), strict=True))
            )
        except SettingError as error:
            raise DecodeError(str(error)) from error


def _put(full: Tensor, index: list[tuple[int, Tensor]], part: Tensor) -> Tensor:
    """Return a copy of `full` with `part` at the product of the indices."""
    if not index:
        return part
    (dim, positions), *others = index
    positions = positions.to(full.device)
    rows = full.index_select(dim, positions)
    return full.index_copy(dim, positions, _put(rows, others, part))
