"""Which channels or weights a ratio keeps, given their scores."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.pruning.channel_mask import ChannelMask
from flwr_slfac.lightweight.pruning.channels import Channels
from flwr_slfac.lightweight.pruning.element_mask import ElementMask
from flwr_slfac.lightweight.pruning.importance import (
    Scores,
    element_scores,
    require_choice,
)
from flwr_slfac.states import State

Scope = Literal["layer", "global"]
CutChoice = Literal["prune", "keep"]
# 0.29 * 100 is a little below 29 in floating point: this much is not rounded down.
_SLACK = 1e-9
# Keeps the quotient of a layer of zeros a number; far below any real score.
_SMALLEST_RMS = 1e-300


def choose_channels(
    channels: Channels,
    scores: Scores,
    rho: float,
    scope: Scope = "layer",
    at_cut: CutChoice = "prune",
) -> ChannelMask:
    """Keep the channels with the highest scores.

    Parameters
    ----------
    channels : Channels
        What :func:`channel_groups` found.
    scores : mapping of str to Tensor
        What :func:`channel_scores` returned.
    rho : float
        Share of channels that leave, in [0, 1); the number is rounded down.
    scope : {"layer", "global"} (default: "layer")
        ``"layer"``: the share of each group. ``"global"``: the share of all groups
        together, by scores divided by their group's root mean square; each group keeps
        its best channel.
    at_cut : {"prune", "keep"} (default: "prune")
        Whether channels of the smashed data leave too, which makes it smaller; the
        share is of the others if not.

    Returns
    -------
    ChannelMask
        Among equal scores the first channels are kept. Of one set of scores, a smaller
        share keeps all that a larger one keeps.

    Raises
    ------
    SettingError
        If `rho` or a choice is out of range.

    Notes
    -----
    Dividing by the root mean square before layers are compared is our choice: norms of
    wide layers are larger, whether or not their channels matter more.

    Examples
    --------
    >>> from torch import nn
    >>> from flwr_slfac.lightweight.pruning.dependency.analysis import channel_groups
    >>> front = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> channels = channel_groups(front, torch.zeros(1, 3))
    >>> scores = {"0": torch.tensor([1.0, 3, 2, 3]), "2": torch.tensor([2.0, 1])}
    >>> choose_channels(channels, scores, rho=0.5).masks
    {'0': tensor([False,  True, False,  True]), '2': tensor([ True, False])}
    """
    require_choice("at_cut", at_cut, get_args(CutChoice))
    free = {
        group.name: scores[group.name]
        for group in channels.groups
        if at_cut == "prune" or not group.at_cut
    }
    masks = choose(free, rho, scope)
    for group in channels.groups:
        masks.setdefault(group.name, torch.ones(group.size, dtype=torch.bool))
    ordered = {group.name: masks[group.name] for group in channels.groups}
    return ChannelMask(channels, ordered)


def choose_elements(
    state: State,
    names: Sequence[str],
    rho: float,
    scope: Scope = "layer",
    gradients: State | None = None,
) -> ElementMask:
    """Keep the weights of the largest magnitude, or of the largest |w g|.

    Parameters
    ----------
    state : mapping of str to Tensor
        Full state of the front.
    names : sequence of str
        Parameters to prune, for example those of :func:`prunable_shapes`.
    rho : float
        Share of weights that leave, in [0, 1); each tensor keeps at least one.
    scope : {"layer", "global"} (default: "layer")
        As for :func:`choose_channels`.
    gradients : mapping of str to Tensor, optional
        As for :func:`element_scores`.

    Returns
    -------
    ElementMask
        One mask for each name.

    Raises
    ------
    SettingError
        If `rho` or `scope` is out of range, or a gradient is missing.
    DivergedError
        If a score is NaN or infinite.

    Examples
    --------
    >>> choose_elements({"w": torch.tensor([[3.0, -1.0, 2.0, 4.0]])}, ["w"], 0.5).masks
    {'w': tensor([[ True, False, False,  True]])}
    """
    masks = choose(element_scores(state, names, gradients), rho, scope)
    return ElementMask({n: masks[n].reshape(state[n].shape) for n in names})


def choose(scores: Scores, rho: float, scope: Scope) -> dict[str, Tensor]:
    """Return a bool mask for each vector of scores, True where kept.

    Parameters
    ----------
    scores : mapping of str to Tensor
        float64 vectors by name.
    rho : float
        Share that is pruned, in [0, 1); of each vector at least one is kept.
    scope : {"layer", "global"}
        As for :func:`choose_channels`.

    Raises
    ------
    SettingError
        If `rho` is not in [0, 1) or the scope is unknown.
    """
    require_ratio(rho)
    require_choice("scope", scope, get_args(Scope))
    if scope == "layer":
        return {name: _best(values, rho) for name, values in scores.items()}
    if not scores:
        return {}
    parts = []
    for values in scores.values():
        scaled = values / values.square().mean().sqrt().clamp(min=_SMALLEST_RMS)
        # Stable: of equal scores the first is the best, as in `_best`.
        scaled[scaled.argmax()] = torch.inf
        parts.append(scaled)
    sizes = [part.numel() for part in parts]
    num_pruned = min(_num_pruned(sum(sizes), rho), sum(sizes) - len(sizes))
    mask = _without_lowest(torch.cat(parts), num_pruned)
    return dict(zip(scores, torch.split(mask, sizes), strict=True))


def _best(values: Tensor, rho: float) -> Tensor:
    return _without_lowest(values, _num_pruned(values.numel(), rho))


def _num_pruned(num: int, rho: float) -> int:
    return min(int(num * rho + _SLACK), num - 1)


def _without_lowest(values: Tensor, num_pruned: int) -> Tensor:
    order = torch.argsort(values, descending=True, stable=True)
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order[: values.numel() - num_pruned]] = True
    return mask


def require_ratio(rho: float) -> None:
    """Raise SettingError unless a pruning ratio is in [0, 1)."""
    if isinstance(rho, bool) or not isinstance(rho, int | float) or not 0 <= rho < 1:
        raise SettingError(f"the pruning ratio is {rho!r}; give a number in [0, 1)")
