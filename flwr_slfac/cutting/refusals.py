"""What of a model no trace can carry, found before and while it is traced."""

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from flwr_slfac.errors import CutError

_TORCH = Path(torch.__file__).parent
_HERE = Path(__file__).parent
# Kinds of hooks, and what a user would call them.
_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}
# Our choice: three names fit a line. 0.4 is laxer than difflib's own 0.6, since users
# leave out a prefix: "conv1" for "features.conv1" scores 0.53.
_NUM_SUGGESTED, _LEAST_LIKENESS = 3, 0.4
# What every module holds: parameters, buffers, modules, hooks, its mode.
_OF_MODULES = frozenset(vars(nn.Module()))
_HOOK_REMEDY = (
    "a half has no such module and would lose it. Put what it does into forward, or "
    "register it on a layer of torch.nn"
)


def user_line() -> str:
    """Say which line of the user's code is being run, for a message.

    Returns
    -------
    str
        ``" (FUNCTION, FILE:LINE)"``, empty if none is.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_users(frame):
            file = Path(frame.f_code.co_filename).name
            return f" ({frame.f_code.co_name}, {file}:{frame.f_lineno})"
        frame = frame.f_back
    return ""


def _is_users(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    own = _TORCH in path.parents or path.parent == _HERE
    return not own and not path.name.startswith("<")


def asked_by_user() -> bool:
    """Whether what has called the caller, for example `isinstance`, is user's code."""
    frame = sys._getframe(2)
    if frame.f_code.co_name == "is_tensor" and frame.f_back is not None:
        frame = frame.f_back
    return _is_users(frame)


def require_plain(model: nn.Module) -> None:
    """Refuse models whose forward is not Python code over tensors that exist.

    Raises
    ------
    CutError
        Naming the module, and what to do instead.
    """
    for name, module in model.named_modules():
        where = f"`{name}`" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise CutError(
                f"{where} is a ScriptModule, which cannot be traced. Cut the model "
                "before torch.jit, and script the halves."
            )
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or type(module).__name__ == "OptimizedModule":
            raise CutError(
                f"{where} is compiled by torch.compile, which computes in another "
                "order than its halves would. Cut the model before, and compile the "
                "halves."
            )
    if type(model).__call__ is not nn.Module.__call__:
        raise CutError(
            f"{type(model).__name__} overrides __call__, which its halves would not "
            "run. Move that into forward."
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [n for n, t in tensors if torch.nn.parameter.is_lazy(t)]
    if lazy:
        raise CutError(
            f"`{lazy[0]}` is not initialized yet. Run a batch through the model first."
        )
    _require_own_memory(model)


def storage_of(tensor: torch.Tensor) -> int:
    """Return what tensors that share memory have in common."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)


def _require_own_memory(model: nn.Module) -> None:
    """Refuse tensors that are a part of a parameter: a copy of the model parts them."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for path, module in model.named_modules():
        held = {**module._parameters, **module._buffers}
        if not type(module).__module__.startswith("torch."):
            held.update(vars(module))
        for key, tensor in held.items():
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                found.setdefault(id(tensor), (f"{path}.{key}".lstrip("."), tensor))
    by_storage: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in found.values():
        for other, shared in by_storage.setdefault(storage_of(tensor), []):
            if nn.Parameter in (type(tensor), type(shared)) and _overlap(
                tensor, shared
            ):
                raise CutError(
                    f"`{other}` and `{name}` share memory, which no copy of the model "
                    "keeps. Compute one of the other in forward."
                )
        by_storage[storage_of(tensor)].append((name, tensor))


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    def span(tensor: torch.Tensor) -> tuple[int, int]:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        start = int(tensor.storage_offset())
        return start, start + sum((int(size) - 1) * int(step) for size, step in steps)

    (start, end), (begin, stop) = span(one), span(other)
    return bool(one.numel() and other.numel()) and start <= stop and begin <= end


def require_no_hooks(name: str, module: nn.Module) -> None:
    """Refuse hooks on a module that the halves will not have as a whole.

    Raises
    ------
    CutError
        Naming the module and the kind of hook.
    """
    for attribute, kind in _HOOKS.items():
        hooks = getattr(module, attribute).values()
        # Those of torch compute a weight, for example weight_norm's.
        if any(not str(_module_of(hook)).startswith("torch.") for hook in hooks):
            where = f"`{name}`" if name else "the model itself"
            raise CutError(f"{where} has {kind}, and {_HOOK_REMEDY}")


def _module_of(hook: Any) -> Any:
    return getattr(hook, "__module__", None) or type(hook).__module__


def attributes(root: nn.Module) -> dict[str, Any]:
    """Return what the model's own modules hold beside parameters, buffers and modules.

    Those of torch go into a half as they are, whatever they hold.

    Returns
    -------
    dict of str to object
        By name, so that `changed` can compare it with a later one.
    """
    found = {}
    for path, module in root.named_modules():
        if type(module).__module__.startswith("torch."):
            continue
        for key, value in vars(module).items():
            if key not in _OF_MODULES:
                found[f"{path}.{key}".lstrip(".")] = _print_of(value)
    return found


def _print_of(value: Any) -> Any:
    """Return what changes when a value is replaced, or a container changes."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Mapping):
        return [(k, _print_of(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return [_print_of(v) for v in value]
    if isinstance(value, set | frozenset):
        return {id(v) for v in value}
    if isinstance(value, torch.Tensor):
        return id(value), value._version
    return id(value)


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what differs between two `attributes`."""
    names = sorted(before.keys() | after.keys())
    return [n for n in names if before.get(n, ...) != after.get(n, ...)]


def require_named(model: nn.Module, at: str) -> None:
    """Raise CutError unless the model has a module of this name."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)][1:]
    if at not in names:
        found = difflib.get_close_matches(at, names, _NUM_SUGGESTED, _LEAST_LIKENESS)
        close = ", ".join(map(repr, found))
        raise CutError(
            f"The model has no module {at!r}; {f'close: {close}' if close else ''}"
            f"{'' if close else 'names are those of model.named_modules()'}."
        )
