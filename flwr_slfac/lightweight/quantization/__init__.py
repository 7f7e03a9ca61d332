"""Gradients and model updates in 2 to 8 bits a value.

::

    in each step        gradients ──quantize_gradients──► a few levels ──► optimizer
    at a round's end    trained - received ──pack_update══► server
                        server: unpack_update ──► trained, nearly

Both are QSGD; `qsgd_variance` and `update_variance` bound the noise that each adds.
"""

from flwr_slfac.lightweight.quantization.gradients import quantize, quantize_gradients
from flwr_slfac.lightweight.quantization.qsgd import qsgd_variance
from flwr_slfac.lightweight.quantization.update_pack import (
    pack_update,
    require_sendable,
    update_variance,
)
from flwr_slfac.lightweight.quantization.update_unpack import unpack_update

__all__ = [
    "pack_update",
    "qsgd_variance",
    "quantize",
    "quantize_gradients",
    "require_sendable",
    "unpack_update",
    "update_variance",
]
