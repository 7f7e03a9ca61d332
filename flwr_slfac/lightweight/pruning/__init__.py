"""Which channels or weights of a front a device does without, and what follows.

::

    server                                         device
    full front ──channel_scores──► choose_channels
                 element_scores──► choose_elements
                                        ▼
                                      Mask ──to_bytes══► Mask
    full state ──Mask.take_state════════════════════════► state of its part
                                                          shrink(front, mask), trained
    full state ◄─average_coordinates, or fill_unheld ═══  state of its part
                 and a Flower strategy
    smashed data, zeros at the pruned ◄─Mask.cut═════════ channels that are left

Which channels can leave, and which of them together, `channel_groups` finds on a
device (`dependency`); `Channels` says where each lies.
"""

from flwr_slfac.lightweight.pruning.average import (
    average_coordinates,
    fill_unheld,
    restore_unheld,
)
from flwr_slfac.lightweight.pruning.channel_mask import ChannelMask
from flwr_slfac.lightweight.pruning.channels import Channels, Group, Member, Role
from flwr_slfac.lightweight.pruning.cut_mask import (
    CutMask,
    FullCutMask,
    PartialCutMask,
)
from flwr_slfac.lightweight.pruning.dependency import channel_groups
from flwr_slfac.lightweight.pruning.element_mask import (
    ElementMask,
    keep_pruned_zero,
    prunable_shapes,
)
from flwr_slfac.lightweight.pruning.importance import (
    channel_scores,
    element_scores,
    increase,
    update_as_gradient,
)
from flwr_slfac.lightweight.pruning.masks import FullMask, Mask
from flwr_slfac.lightweight.pruning.schedule import gradual_share
from flwr_slfac.lightweight.pruning.selection import choose_channels, choose_elements
from flwr_slfac.lightweight.pruning.shrink import shrink

__all__ = [
    "ChannelMask",
    "Channels",
    "CutMask",
    "ElementMask",
    "FullCutMask",
    "FullMask",
    "Group",
    "Mask",
    "Member",
    "PartialCutMask",
    "Role",
    "average_coordinates",
    "channel_groups",
    "channel_scores",
    "choose_channels",
    "choose_elements",
    "element_scores",
    "fill_unheld",
    "gradual_share",
    "increase",
    "keep_pruned_zero",
    "prunable_shapes",
    "restore_unheld",
    "shrink",
    "update_as_gradient",
]
