"""What a codec remembers of earlier rounds, as long as the channels are the same.

A residual belongs to channels. Under another mask as many channels may be others, which
a codec cannot see: what was lost of a channel would be added to a stranger.
"""

import torch

from flwr_slfac.codec import Memory
from flwr_slfac.lightweight.pruning import CutMask, PartialCutMask

_CHANNELS = "cut.channels"
# In place of an index, as no mask leaves no channel.
_ALL = torch.empty(0, dtype=torch.int64)


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


def _index(channels: CutMask) -> torch.Tensor | None:
    """Return the computed channels, or None for all."""
    if isinstance(channels, PartialCutMask) and len(channels.index) < channels.size:
        return channels.index.cpu()
    return None
