"""Which operations bear that what they save for backward is coded.

An error of half a step does little where backward multiplies by what was saved, and
much where it compares values (a maximum), or exponentiates and divides (a softmax, a
norm of vectors). So only what is listed here is coded; all else stays exact, also what
is saved outside of torch's own functions::

    products    gradient = saved x gradient; or its sign, which codes keep
    norms       of layers and batches: their input; their statistics stay exact
    smooth      derivatives that change over a range of about 1: where a step is fine
    attention   queries, keys and values: where the logits stay near; the rest exact
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flwr_slfac.lightweight.activations.affine import LAST_CODE

_PRODUCTS = {
    *("linear", "bilinear", "einsum", "matmul", "__matmul__", "__rmatmul__"),
    *("mm", "bmm", "baddbmm", "addmm", "addbmm"),
    *(f"conv{way}{n}d" for way in ("", "_transpose") for n in (1, 2, 3)),
    *("mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply", "addcmul"),
    *("relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "abs", "square"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d"),
    *(f"{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)),
    *(f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)),
}
_NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
_SMOOTH = {
    *("gelu", "silu", "mish", "softplus", "elu", "selu", "celu"),
    *("hardswish", "hardtanh", "relu6"),
}
# Our choice: the second derivatives of these functions are at most about 1, so that
# half a step changes a derivative by 3 percent of its largest value.
_FINE_STEP = 1 / 16
# The most by which a logit of attention may be off: its weight then by 5 percent.
_NEAR_LOGIT = 0.05


@dataclass(frozen=True)
class Rule:
    """What of an operation's saved tensors is coded.

    Parameters
    ----------
    codes : bool
        Whether any is.
    storages : frozenset of int or None
        Identities of the only storages that are; None for all.
    largest_step : float or None
        The coarsest grid that is borne; None for any.
    """

    codes: bool = True
    storages: frozenset[int] | None = None
    largest_step: float | None = None


ALL, NOTHING = Rule(), Rule(codes=False)


def rule_of(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Rule:
    """Return what is coded of the tensors that a call of a torch function saves."""
    name = getattr(func, "__name__", "")
    if name in _PRODUCTS:
        return ALL
    if name in _SMOOTH:
        return Rule(largest_step=_FINE_STEP)
    if name in _NORMS:
        return _only(*args[:1], kwargs.get("input"))
    if name == "scaled_dot_product_attention":
        return _of_attention(*args, **kwargs)
    return NOTHING


def storage_of(tensor: torch.Tensor) -> int:
    """Return what identifies a tensor's storage while a tensor of it lives."""
    # An address would be 0 for tensors without values.
    return int(tensor.untyped_storage()._cdata)


def _only(*tensors: Any) -> Rule:
    found = {storage_of(t) for t in tensors if isinstance(t, torch.Tensor)}
    return Rule(storages=frozenset(found))


def _of_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    scale: float | None = None,
    **__: Any,
) -> Rule:
    """Code queries, keys and values unless a logit would move too far."""
    with torch.no_grad():
        factor = query.shape[-1] ** -0.5 if scale is None else abs(scale)
        error = (_off(query, key) + _off(key, query)) * factor
        near = bool(error <= _NEAR_LOGIT)
    return _only(query, key, value) if near else NOTHING


def _off(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the deviation of a product of rows if one is coded, at most some times.

    Roundings of half a step are independent: their sum over a row grows with its norm.
    """
    # Channels share a grid in tensors of four dimensions: (N, heads, T, D) has one
    # for each head.
    dims = [d for d in range(one.ndim) if d != 1] if one.ndim >= 4 else [-1]
    span = one.amax(dims) - one.amin(dims)
    longest: torch.Tensor = other.double().norm(dim=-1).max()
    return span.max().double() / (2 * LAST_CODE) * longest
