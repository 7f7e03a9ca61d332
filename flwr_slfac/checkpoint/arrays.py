"""Tensors, arrays and bytes as tensors that every safetensors file can hold.

What the format has no dtype for (complex numbers, NumPy's own kinds) is stored as its
bytes, with dtype and shape beside it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

# Those of the first releases of the format, which every reader knows.
_STORED = {
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}
Found = tuple[dict[str, dict[str, Any]], torch.Tensor]


def of_tensor(value: Any) -> Found | None:
    """Return a tensor's tag and what is stored of it; None for anything else."""
    if type(value) not in (torch.Tensor, nn.Parameter):
        return None
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        return None
    about: dict[str, Any] = {}
    if type(value) is nn.Parameter:
        about["parameter"] = True
    if value.requires_grad:
        about["grad"] = True
    if value.device.type != "cpu":
        about["device"] = str(value.device)
    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if plain.dtype not in _STORED:
        about["dtype"] = str(plain.dtype).removeprefix("torch.")
        about["shape"] = list(plain.shape)
        plain = plain.reshape(-1).view(torch.uint8)
    return {"$tensor": about}, plain


def tensor_of(stored: torch.Tensor, about: Mapping[str, Any]) -> torch.Tensor:
    """Undo `of_tensor`; on the CPU where the device of before is not here."""
    value = stored.clone()
    if "dtype" in about:
        value = value.view(_dtype(about["dtype"])).reshape(about["shape"])
    if "device" in about and torch.cuda.is_available():
        value = value.to(about["device"])
    value.requires_grad_(bool(about.get("grad", False)))
    if about.get("parameter"):
        return nn.Parameter(value, requires_grad=value.requires_grad)
    return value


def of_array(value: Any) -> Found | None:
    """Return the tag of bytes or of something of NumPy's, and what is stored."""
    if type(value) in (bytes, bytearray):
        return {f"${type(value).__name__}": {}}, _bytes_of(value)
    if type(value) is not np.ndarray and not isinstance(value, np.generic):
        return None
    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.names is not None:
        return None
    tag = "$array" if type(value) is np.ndarray else "$scalar"
    about: dict[str, Any] = {"shape": list(array.shape)}
    try:
        stored = torch.from_numpy(np.array(array, order="C").reshape(-1))
    except (TypeError, ValueError):  # a dtype or a byte order that torch lacks
        stored = None
    if stored is None or stored.dtype not in _STORED:
        about["dtype"] = array.dtype.str
        stored = _bytes_of(array.tobytes())
    return {tag: about}, stored


def array_of(
    tag: str, stored: torch.Tensor, about: Mapping[str, Any]
) -> bytes | bytearray | np.ndarray[Any, Any] | np.generic:
    """Undo `of_array`.

    Raises
    ------
    ValueError
        If the tag is none of its.
    """
    if tag == "$bytes":
        return stored.numpy().tobytes()
    if tag == "$bytearray":
        return bytearray(stored.numpy().tobytes())
    if tag not in ("$array", "$scalar"):
        raise ValueError(f"the tag {tag!r} is not known")
    array = stored.numpy().copy()
    if "dtype" in about:
        array = np.frombuffer(bytearray(array.tobytes()), dtype=about["dtype"])
    array = array.reshape(about["shape"])
    return array if tag == "$array" else array[()]


def _bytes_of(data: bytes | bytearray) -> torch.Tensor:
    return torch.from_numpy(np.array(bytearray(data), dtype=np.uint8))


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found
