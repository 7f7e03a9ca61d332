"""Codecs: a tensor to self-describing bytes and back. Knows torch, not Flower."""

from flwr_slfac.codec.base import (
    Codec,
    Hints,
    Memory,
    Role,
    decode,
    encode,
    register,
    registered,
    restart,
)
from flwr_slfac.codec.plain import BFloat16, Float16, Identity, Integers
from flwr_slfac.codec.settings import format_codec, parse_codec
from flwr_slfac.codec.wire import Frame

__all__ = [
    "BFloat16",
    "Codec",
    "Float16",
    "Frame",
    "Hints",
    "Identity",
    "Integers",
    "Memory",
    "Role",
    "decode",
    "encode",
    "format_codec",
    "parse_codec",
    "register",
    "registered",
    "restart",
]
