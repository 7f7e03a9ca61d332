"""Codecs: a tensor to self-describing bytes and back. Knows torch, not Flower.

::

    tensor --encode--> frame: id, dtype, shape, sections, checksum --decode--> tensor
              |                                                       |
              Codec.encode_sections              class of the id.decode_sections

What other rooms need of the machinery is in three modules: `wire` (the frame),
`packing` (bits) and `layout` (which dimension is what).
"""

from flwr_slfac.codec.base import Codec, Hints, Memory, Role
from flwr_slfac.codec.coding import decode, encode, restart
from flwr_slfac.codec.easyquant import EasyQuant
from flwr_slfac.codec.feedback import Feedback
from flwr_slfac.codec.plain import BFloat16, Float16, Identity, Integers
from flwr_slfac.codec.powerquant import PowerQuant
from flwr_slfac.codec.registry import register, registered
from flwr_slfac.codec.settings import as_codec, format_codec, parse_codec
from flwr_slfac.codec.slfac import SLFAC
from flwr_slfac.codec.sparse import RandTopK, TopK
from flwr_slfac.codec.splitfc import SplitFC
from flwr_slfac.codec.temporal import SampleMemory, Temporal
from flwr_slfac.codec.uniform import Uniform
from flwr_slfac.codec.waterfill import Waterfill
from flwr_slfac.codec.wire import Frame

__all__ = [
    "SLFAC",
    "BFloat16",
    "Codec",
    "EasyQuant",
    "Feedback",
    "Float16",
    "Frame",
    "Hints",
    "Identity",
    "Integers",
    "Memory",
    "PowerQuant",
    "RandTopK",
    "Role",
    "SampleMemory",
    "SplitFC",
    "Temporal",
    "TopK",
    "Uniform",
    "Waterfill",
    "as_codec",
    "decode",
    "encode",
    "format_codec",
    "parse_codec",
    "register",
    "registered",
    "restart",
]
