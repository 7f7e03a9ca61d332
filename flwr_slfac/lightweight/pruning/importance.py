"""How much each channel or weight matters, and which ones a ratio keeps."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from flwr_slfac.errors import DivergedError, SettingError
from flwr_slfac.lightweight.pruning.channel_masks import KeptChannels
from flwr_slfac.lightweight.pruning.channels import Channels, Group
from flwr_slfac.states import State

Criterion = Literal["weight", "gradient", "scale"]
Scope = Literal["layer", "global"]
CutChoice = Literal["prune", "keep"]
Scores = Mapping[str, Tensor]
_TIE = 1e-9
_Choice = TypeVar("_Choice", bound=str)


def channel_scores(
    channels: Channels,
    state: State,
    criterion: Criterion = "weight",
    gradients: State | None = None,
) -> dict[str, Tensor]:
    """Score every channel that can leave.

    Parameters
    ----------
    channels : Channels
        What :func:`channel_groups` found.
    state : Mapping of str to Tensor
        Full state of the front, for example the aggregated one.
    criterion : {"weight", "gradient", "scale"} (default: "weight")
        ``"weight"``: L2 norm of all weights that leave with the channel, in the layers
        that make it and in those that read it. ``"gradient"``: sum of |w g| over all
        parameters that leave, a first-order bound on how much the loss changes.
        ``"scale"``: mean |gamma| of the group's batch norms.
    gradients : Mapping of str to Tensor, optional
        Accumulated gradients by parameter, of full shape; for ``"gradient"``. Where
        there are none, for example :func:`update_as_gradient` serves.

    Returns
    -------
    dict of str to Tensor
        By group: float64 ``(size,)``, on the CPU.

    Raises
    ------
    SettingError
        If the criterion is unknown, gradients are missing, or a group has no batch
        norm whose scale could be read.
    DivergedError
        If a score is NaN or infinite.
    """
    require_choice("criterion", criterion, get_args(Criterion))
    _require_gradients(criterion, gradients, channels.shapes)
    return {
        group.name: _finite(group.name, _score(group, state, criterion, gradients))
        for group in channels.groups
    }


def _score(
    group: Group, state: State, criterion: Criterion, gradients: State | None
) -> Tensor:
    total = torch.zeros(group.size, dtype=torch.float64)
    num = 0
    for member in group.members:
        value = state[member.tensor].detach().cpu().double()
        if criterion == "scale":
            counts, value = member.role == "scale", value.abs()
        elif criterion == "weight":
            counts, value = value.ndim > 1, value.square()
        else:
            counts = member.role != "statistic" and member.tensor in (gradients or {})
            value = value * _gradient(gradients, member.tensor) if counts else value
            value = value.abs()
        if counts:
            rows = (
                value.movedim(member.dim, 0).reshape(value.shape[member.dim], -1).sum(1)
            )
            total += rows[member.positions].sum(1)
            num += 1
    if criterion == "scale" and not num:
        raise SettingError(
            f"criterion 'scale' needs a batch norm, but none follows `{group.name}`; "
            "use 'weight' or 'gradient'"
        )
    if criterion == "weight":
        return total.sqrt()
    return total / num if criterion == "scale" else total


def _gradient(gradients: State | None, name: str) -> Tensor:
    return (gradients or {})[name].detach().cpu().double()


def _finite(name: str, scores: Tensor) -> Tensor:
    if not scores.isfinite().all():
        raise DivergedError(
            f"the importance of `{name}` is NaN or infinite; lower the learning rate"
        )
    return scores


def increase(scores: Scores, first: Scores) -> dict[str, Tensor]:
    """Return how much each score grew since the first ones, as a ratio.

    Before training nothing is known: equal ratios are put in an order that is drawn by
    the group's name, the same in every run.

    Parameters
    ----------
    scores, first : Mapping of str to Tensor
        What :func:`channel_scores` returned with ``"weight"``, now and at the start.

    Examples
    --------
    >>> now, then = {"0": torch.tensor([2.0, 1.0])}, {"0": torch.tensor([1.0, 1.0])}
    >>> increase(now, then)["0"].round(decimals=2)
    tensor([2., 1.])
    """
    grown = {}
    for name, values in scores.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        order = torch.randperm(values.numel(), generator=generator)
        ratio = values / first[name].clamp(min=torch.finfo(values.dtype).tiny)
        grown[name] = ratio + _TIE * order
    return grown


def choose_channels(
    channels: Channels,
    scores: Scores,
    rho: float,
    scope: Scope = "layer",
    at_cut: CutChoice = "prune",
) -> KeptChannels:
    """Keep the channels with the highest scores.

    Parameters
    ----------
    channels : Channels
        What :func:`channel_groups` found.
    scores : Mapping of str to Tensor
        What :func:`channel_scores` returned.
    rho : float
        Share of channels that leave, in [0, 1); what is left of a channel stays.
    scope : {"layer", "global"} (default: "layer")
        ``"layer"``: the share of each group. ``"global"``: the share of all groups
        together, by scores divided by their group's root mean square; each group keeps
        its best channel.
    at_cut : {"prune", "keep"} (default: "prune")
        Whether channels of the smashed data leave too, which makes it smaller; the
        share is of the others if not.

    Returns
    -------
    KeptChannels
        Among equal scores the first channels are kept. Of one set of scores, a smaller
        share keeps all that a larger one keeps.

    Raises
    ------
    SettingError
        If `rho` or a choice is out of range.

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
    return KeptChannels(channels, ordered)


def choose(scores: Scores, rho: float, scope: Scope) -> dict[str, Tensor]:
    """Return a bool mask for each vector of scores, True where kept.

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
        scaled = values / values.square().mean().sqrt().clamp(min=1e-300)
        # Stable: of equal scores the first is the best, as in `_best`.
        scaled[scaled.argmax()] = torch.inf
        parts.append(scaled)
    sizes = [part.numel() for part in parts]
    num_gone = min(_num_gone(sum(sizes), rho), sum(sizes) - len(sizes))
    mask = _without_lowest(torch.cat(parts), num_gone)
    return dict(zip(scores, torch.split(mask, sizes), strict=True))


def _best(values: Tensor, rho: float) -> Tensor:
    return _without_lowest(values, _num_gone(values.numel(), rho))


def _num_gone(num: int, rho: float) -> int:
    # 0.3 * 10 is a little below 3 in floating point.
    return min(int(num * rho + 1e-9), num - 1)


def _without_lowest(values: Tensor, num_gone: int) -> Tensor:
    order = torch.argsort(values, descending=True, stable=True)
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order[: values.numel() - num_gone]] = True
    return mask


def update_as_gradient(
    previous: State, averaged: State, memory: State | None = None, decay: float = 0.0
) -> dict[str, Tensor]:
    """Return the round's descent direction, which the server has without a byte.

    ``previous - averaged`` is the sum of the steps that devices took. Coordinates that
    nobody held did not move; for them, as for all, `memory` keeps what is known from
    earlier rounds: ``decay * memory + (previous - averaged)`` where something moved,
    `memory` where nothing did, so that channels that are away are not forgotten.

    Parameters
    ----------
    previous, averaged : Mapping of str to Tensor
        Full states before and after aggregation.
    memory : Mapping of str to Tensor, optional
        What this function returned a round ago.
    decay : float (default: 0.0)
        In [0, 1).

    Examples
    --------
    >>> old, new = {"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([0.5, 1.0])}
    >>> update_as_gradient(old, new, {"w": torch.tensor([9.0, 2.0])})
    {'w': tensor([0.5000, 2.0000])}
    """
    if not 0 <= decay < 1:
        raise SettingError(f"decay is {decay!r}; give a number in [0, 1)")
    found = {}
    for name, old in previous.items():
        if old.is_floating_point():
            moved = old - averaged[name].to(old)
            known = moved if memory is None else memory[name].to(old)
            found[name] = torch.where(moved != 0, moved + decay * known, known)
            if memory is None:
                found[name] = moved
    return found


def require_ratio(rho: float) -> None:
    """Raise SettingError unless a pruning ratio is in [0, 1)."""
    if isinstance(rho, bool) or not isinstance(rho, int | float) or not 0 <= rho < 1:
        raise SettingError(f"the pruning ratio is {rho!r}; give a number in [0, 1)")


def require_choice(what: str, given: str, choices: Sequence[str]) -> None:
    """Raise SettingError unless a choice is one of those there are."""
    if given not in choices:
        names = ", ".join(map(repr, choices))
        raise SettingError(f"{what} is {given!r}; give one of {names}")


def _require_gradients(
    criterion: str, gradients: State | None, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    if criterion != "gradient":
        return
    if not gradients or not shapes.keys() & gradients.keys():
        raise SettingError(
            "criterion 'gradient' needs accumulated gradients, and none were given; "
            "train a round first or use 'weight'"
        )
    for name in shapes.keys() & gradients.keys():
        if tuple(gradients[name].shape) != shapes[name]:
            raise SettingError(
                f"the gradient of {name!r} has shape {tuple(gradients[name].shape)}, "
                f"the parameter {shapes[name]}; give it in full shape"
            )
