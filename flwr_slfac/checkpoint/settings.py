"""What makes a run another one, as texts that can be compared by name."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from flwr_slfac.checkpoint.tree import pack, storable
from flwr_slfac.errors import SettingError

# A message names so many differences: enough to see what was changed.
_MOST_NAMED = 5


def described(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as text, by name.

    Parameters
    ----------
    settings : mapping
        Values of any kind: numbers, functions, losses, records.

    Examples
    --------
    >>> described({"loss": nn.CrossEntropyLoss(label_smoothing=0.1)})["loss"]
    "CrossEntropyLoss(ignore_index=-100, label_smoothing=0.1, reduction='mean')"
    """
    return {name: _describe(value) for name, value in settings.items()}


def shapes_of(what: str, state: Mapping[str, Any]) -> dict[str, str]:
    """Return dtype and shape of the tensors, or arrays, of a model as settings."""
    return {
        f"{what} {name!r}": f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"
        for name, t in state.items()
    }


def modules_of(what: str, model: nn.Module) -> dict[str, str]:
    """Return what the modules of a model are, as settings; addresses left out."""
    return {
        f"{what} module {name!r}": re.sub(r" at 0x[0-9a-f]+", "", repr(each))
        for name, each in model.named_modules()
        if not any(True for _ in each.children())
    }


def require_same(there: Mapping[str, str], here: Mapping[str, str], where: str) -> None:
    """Refuse settings that are not those of a saved run.

    Parameters
    ----------
    there, here : mapping of str to str
        Those that were saved, and those of this run.
    where : str
        What holds the first.

    Raises
    ------
    SettingError
        If they differ; names each difference.
    """
    none = "not there"
    differences = [
        f"{name} was {there.get(name, none)} and is {here.get(name, none)}"
        for name in {**there, **here}
        if there.get(name, none) != here.get(name, none)
    ]
    if not differences:
        return
    named = differences[:_MOST_NAMED]
    if len(differences) > len(named):
        named.append(f"{len(differences) - len(named)} more")
    raise SettingError(
        f"{where} was saved by a run with other settings: {'; '.join(named)}; "
        "resume with the same ones, or start anew in another folder"
    )


def _describe(value: Any) -> str:
    """Return a text that is the same in another process, and in a resumed run."""
    if isinstance(value, partial):
        own = [*map(_describe, value.args)]
        own += [f"{k}={_describe(v)}" for k, v in value.keywords.items()]
        return f"{_describe(value.func)}({', '.join(own)})"
    if isinstance(value, Mapping):
        pairs = [f"{k}: {_describe(v)}" for k, v in value.items()]
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_describe, value))}]"
    if isinstance(value, nn.Module):
        return _module(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(
            value, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        )
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if name := getattr(value, "__qualname__", ""):
        return f"{getattr(value, '__module__', '')}.{name}"
    if storable(value):
        return _digest(value)
    return _fields(value, _numbers(value))


def _module(module: nn.Module) -> str:
    parts = dict(module.named_children())
    held = {n: t for n, t in module.state_dict().items() if "." not in n}
    return _fields(module, {**_numbers(module), **parts, **held})


def _numbers(value: Any) -> dict[str, Any]:
    """Return the public attributes of an object that are numbers or texts."""
    own = getattr(value, "__dict__", {})
    return {
        name: own[name]
        for name in sorted(own)
        if not name.startswith("_")
        and name != "training"
        and isinstance(own[name], bool | int | float | str)
    }


def _fields(value: Any, fields: Mapping[str, Any]) -> str:
    inside = ", ".join(f"{k}={_describe(v)}" for k, v in fields.items())
    return f"{type(value).__name__}({inside})"


def _digest(value: Any) -> str:
    """Return a short text for arrays and other values of many numbers."""
    packed, tensors = pack(value)
    digest = hashlib.sha256(json.dumps(packed).encode())
    for tensor in tensors.values():
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{type(value).__name__} {digest.hexdigest()[:16]}"
