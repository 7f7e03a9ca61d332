"""Which mode every module is in when its model trains, and when it evaluates.

A user freezes batch norm by ``model.bn.eval()``, or by a ``train`` of the model's own
that leaves it in evaluation. A half has neither the caller nor the class; it has this.
"""

from typing import Any

from torch import nn

from flwr_slfac.cutting.refusals import attributes, changed
from flwr_slfac.errors import CutError

Flags = dict[str, bool]


def flags_by_mode(root: nn.Module) -> dict[bool, Flags]:
    """Return ``training`` of every module by name, for either mode of the root.

    Parameters
    ----------
    root : nn.Module
        A copy; left in training mode, as ``root.train()`` leaves it.

    Returns
    -------
    dict of bool to dict of str to bool
        What ``root.train(mode)`` sets, except that modules which stand in another mode
        than the root stay there, unless all do.

    Raises
    ------
    CutError
        If switching the mode changes more than flags.
    """
    stands = _flags(root)
    own = any(type(m).train is not nn.Module.train for m in root.modules())
    flags: dict[bool, Flags] = {}
    found: dict[bool, dict[str, Any]] = {}
    for mode in (False, True):
        root.train(mode)
        flags[mode] = _flags(root)
        found[mode] = attributes(root) if own else {}
    if names := changed(*found.values()):
        raise CutError(
            f"train() of the model also changes {', '.join(f'`{n}`' for n in names)}, "
            "which its halves would not do. Let train() set modes only."
        )
    inner = {flag for name, flag in stands.items() if name}
    # A wrapper of a model in evaluation is new, hence in training; it freezes nothing.
    mode = inner.pop() if len(inner) == 1 else stands[""]
    flags[mode] = {
        name: flag if not name or stands[name] == mode else stands[name]
        for name, flag in flags[mode].items()
    }
    return flags


def _flags(root: nn.Module) -> Flags:
    return {
        name: module.training
        for name, module in root.named_modules(remove_duplicate=False)
    }


def set_flags(root: nn.Module, flags: Flags) -> None:
    """Put every module in the mode that it has there."""
    for name, module in root.named_modules(remove_duplicate=False):
        module.training = flags[name]
