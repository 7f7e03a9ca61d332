"""Training state to bytes and back, bit-exactly and without pickle.

Layout: 4 bytes little-endian length of a JSON text, the text, then one `Identity`
frame per tensor; one that is held in several places is there once. In the JSON a tensor
is ``{"$tensor": i}``, a complex one ``{"$complex": {"$tensor": i}}``, bytes are
``{"$bytes": hex}``, a tuple is ``{"$tuple": [...]}`` and a dict
``{"$dict": [[key, value], ...]}``, so that keys keep their type (an optimizer's state
has integer keys).
"""

import json
import struct
from typing import Any

import torch

from flwr_slfac.codec import Identity, decode, encode
from flwr_slfac.errors import DecodeError, SettingError

_LENGTH = struct.Struct("<I")
# Tensors that were packed, by id, which is theirs as long as they are held here.
_Seen = dict[int, tuple[torch.Tensor, int]]


def pack_state(state: Any) -> bytes:
    """Turn nested dicts, lists, tuples, scalars, bytes and tensors into bytes.

    Raises
    ------
    SettingError
        If the state holds anything else (an optimizer with exotic state, say).

    Examples
    --------
    >>> unpack_state(pack_state({"lr": 0.1, 0: (torch.ones(2), None)}))
    {'lr': 0.1, 0: (tensor([1., 1.]), None)}
    """
    frames: list[bytes] = []
    text = json.dumps(_flatten(state, frames, {})).encode()
    sizes = [_LENGTH.pack(len(frame)) for frame in frames]
    parts = [part for pair in zip(sizes, frames, strict=True) for part in pair]
    return b"".join([_LENGTH.pack(len(text)), text, *parts])


def unpack_state(data: bytes) -> Any:
    """Return what `pack_state` was given.

    Raises
    ------
    DecodeError
        If the bytes are not a packed state.
    """
    view = memoryview(data)
    text, start = _take(view, 0)
    tensors = []
    while start < len(view):
        frame, start = _take(view, start)
        tensors.append(decode(bytes(frame), max_elements=2**40))
    try:
        return _restore(json.loads(bytes(text)), tensors)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DecodeError(f"the bytes are not a packed state: {error}") from error


def _take(view: memoryview, start: int) -> tuple[memoryview, int]:
    if start + _LENGTH.size > len(view):
        raise DecodeError("a packed state ends inside a length")
    (length,) = _LENGTH.unpack_from(view, start)
    end = start + _LENGTH.size + length
    if end > len(view):
        raise DecodeError("a packed state ends inside a part")
    return view[start + _LENGTH.size : end], end


def _flatten(value: Any, frames: list[bytes], seen: _Seen) -> Any:
    if isinstance(value, torch.Tensor) and value.is_complex():
        parts = torch.view_as_real(value.resolve_conj())
        return {"$complex": _flatten(parts, frames, seen)}
    if isinstance(value, torch.Tensor):
        if id(value) not in seen:
            frames.append(encode(value, Identity()))
            seen[id(value)] = value, len(frames) - 1
        return {"$tensor": seen[id(value)][1]}
    if isinstance(value, dict):
        return {
            "$dict": [
                [_flatten(k, frames, seen), _flatten(v, frames, seen)]
                for k, v in value.items()
            ]
        }
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, tuple):
        return {"$tuple": [_flatten(v, frames, seen) for v in value]}
    if isinstance(value, list):
        return [_flatten(v, frames, seen) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise SettingError(
        f"cannot store a {type(value).__name__} as training state; known are dict, "
        "list, tuple, tensor, bytes, str, numbers, bool and None"
    )


def _restore(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_restore(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$complex" in value:
        return torch.view_as_complex(_restore(value["$complex"], tensors))
    if "$bytes" in value:
        return bytes.fromhex(value["$bytes"])
    if "$tuple" in value:
        return tuple(_restore(v, tensors) for v in value["$tuple"])
    return {_restore(k, tensors): _restore(v, tensors) for k, v in value["$dict"]}
