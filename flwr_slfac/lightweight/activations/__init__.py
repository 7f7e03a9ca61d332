"""Activations in 8 bits between forward and backward.

::

    with saved_in_8_bits(front):        hooks: what autograd saves is coded (affine)
        out = front(inputs)             and stored once (store)
    graph = without_values(out)         the graph behind `out`, without its values
    graph.backward(gradient)            decodes chunk by chunk (chunked)

The only door to autograd's internals: hooks on saved tensors, modes that see every
torch function, custom functions, and storages.
"""

from flwr_slfac.lightweight.activations.saved import saved_in_8_bits, without_values
from flwr_slfac.lightweight.activations.store import SavedBytes

__all__ = ["SavedBytes", "saved_in_8_bits", "without_values"]
