"""What a codec remembers of earlier rounds, as long as the channels are the same.

A residual belongs to channels. Under another mask as many channels may be others, which
a codec cannot see: what was lost of a channel would be added to a stranger.
"""

from collections.abc import Mapping
from typing import Any

import torch

from flwr_slfac.codec import Memory
from flwr_slfac.lightweight.pruning import CutMask, PartialCutMask

_CHANNELS = "cut.channels"
# In place of an index, as no mask leaves no channel.
_ALL = torch.empty(0, dtype=torch.int64)


# What a device keeps from round to round, and a run that is resumed without it lacks.
KEPT = {
    "moments": "the moments of their optimizers",
    "schedule": "how far their schedules by step have come",
    "residual": "what updates lost to quantization",
    "memory": "what their codecs remember",
    "buffers": "buffers that no state dict has",
}


def what_is_kept(keeps: Mapping[str, Any], scheduler_per: str) -> tuple[str, ...]:
    """Return what of a device would be lost with it, as names of `KEPT`.

    Parameters
    ----------
    keeps : mapping
        What it keeps: see `DeviceFront`, and ``memory`` of its codec.
    scheduler_per : {"round", "step"}
        How its schedule goes; one by round follows from the round.
    """
    tuning = keeps.get("tuning", {})
    found = {name for name in KEPT if keeps.get(name)}
    if tuning.get("optimizer", {}).get("state"):
        found.add("moments")
    if scheduler_per == "step" and tuning.get("scheduler") is not None:
        found.add("schedule")
    return tuple(name for name in KEPT if name in found)


def remembered(memory: Memory, channels: CutMask) -> Memory:
    """Return what is kept of a memory at the end of a round, marked with its channels.

    Parameters
    ----------
    memory : dict of str to Tensor
        What outlives the round; if it is empty nothing is kept.
    channels : CutMask
        Which channels of the smashed data the device computed.
    """
    index = _index(channels)
    return memory if index is None or not memory else {**memory, _CHANNELS: index}


def recalled(kept: Memory, channels: CutMask) -> Memory:
    """Return the memory that a round begins with: none if the channels are others.

    Parameters
    ----------
    kept : dict of str to Tensor
        What `remembered` returned.
    channels : CutMask
        Which channels of the smashed data the device computes now.
    """
    now = _index(channels)
    before = kept.get(_CHANNELS, _ALL)
    if not torch.equal(before, _ALL if now is None else now):
        return {}
    return {k: v for k, v in kept.items() if k != _CHANNELS}


def same_mask(mask: bytes, kept: Mapping[str, Any]) -> bool:
    """Say whether what a device kept from the last round is under this mask."""
    return bool(kept.get("mask", b"") == mask)


def _index(channels: CutMask) -> torch.Tensor | None:
    """Return the computed channels, or None for all."""
    if isinstance(channels, PartialCutMask) and len(channels.index) < channels.size:
        return channels.index.cpu()
    return None
