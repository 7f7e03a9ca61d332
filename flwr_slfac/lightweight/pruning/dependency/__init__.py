"""Which channels of a front must leave together, from a trace of its forward.

::

    trace of the front ──Walk, node by node──► Axis: channels along a value's dimension
        rules: what each operation does to them (layers, shapes)
    ──► ChannelSets: channels that are tied, some fixed; Bindings: where they lie
    ──► channel_groups: the sets that may leave, as groups of equal places
"""

from flwr_slfac.lightweight.pruning.dependency.analysis import channel_groups

__all__ = ["channel_groups"]
