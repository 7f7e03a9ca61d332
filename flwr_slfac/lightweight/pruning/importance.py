"""How much each channel or weight of a front matters.

First-order scores are after Molchanov et al., "Importance estimation for neural
network pruning" (2019), scales of batch norms after Liu et al., "Learning efficient
convolutional networks through network slimming" (2017), growth after Zhou et al.,
"Deconstructing lottery tickets" (2019). How scores are summed over the tensors that a
channel lies in is our choice.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from flwr_slfac.errors import DivergedError, SettingError
from flwr_slfac.lightweight.pruning.channels import Channels, Group, Member
from flwr_slfac.states import State

Criterion = Literal["weight", "gradient", "scale"]
Scores = Mapping[str, Tensor]
# Our choice: far above the rounding of a float64 ratio near 1, which is 2e-16, and,
# times thousands of channels, still far below any growth that means something.
_TIE = 1e-9


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
    state : mapping of str to Tensor
        Full state of the front, for example the aggregated one; on any device.
    criterion : {"weight", "gradient", "scale"} (default: "weight")
        ``"weight"``: L2 norm of all weights that leave with the channel, in the layers
        that make it and in those that read it. ``"gradient"``: sum of |w g| over all
        parameters that leave, a first-order bound on how much the loss changes.
        ``"scale"``: mean |gamma| of the group's batch norms.
    gradients : mapping of str to Tensor, optional
        Accumulated gradients by parameter, of full shape; for ``"gradient"``. Where
        there are none, for example :func:`update_as_gradient` serves.

    Returns
    -------
    dict of str to Tensor
        By group: float64 ``(size,)``, at least 0, on the CPU.

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
        group.name: _finite(
            f"`{group.name}`", _score(group, state, criterion, gradients)
        )
        for group in channels.groups
    }


def _score(
    group: Group, state: State, criterion: Criterion, gradients: State | None
) -> Tensor:
    total = torch.zeros(group.size, dtype=torch.float64)
    num_tensors = 0
    for member in group.members:
        value = _in_float64(state[member.tensor])
        terms = _terms(member, value, criterion, gradients or {})
        if terms is not None:
            rows = terms.movedim(member.dim, 0).reshape(terms.shape[member.dim], -1)
            by_index = rows.sum(1)
            total += by_index[member.positions].sum(1)
            num_tensors += 1
    if criterion == "weight":
        return total.sqrt()
    if criterion == "gradient":
        return total
    if not num_tensors:
        raise SettingError(
            f"criterion 'scale' needs a batch norm, but none follows `{group.name}`; "
            "use 'weight' or 'gradient'"
        )
    return total / num_tensors


def _terms(
    member: Member, value: Tensor, criterion: Criterion, gradients: State
) -> Tensor | None:
    """Return what each value adds to its channel's score; None if the tensor does not.

    Of its tensor's shape.
    """
    if criterion == "scale":
        return value.abs() if member.role == "scale" else None
    if criterion == "weight":
        return value.square() if value.ndim > 1 else None
    if member.role == "statistic" or member.tensor not in gradients:
        return None
    return (value * _in_float64(gradients[member.tensor])).abs()


def _in_float64(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _finite(what: str, scores: Tensor) -> Tensor:
    if not scores.isfinite().all():
        raise DivergedError(
            f"the importance of {what} is NaN or infinite; lower the learning rate"
        )
    return scores


def element_scores(
    state: State, names: Sequence[str], gradients: State | None = None
) -> dict[str, Tensor]:
    """Score every weight of the tensors that are named.

    Parameters
    ----------
    state : mapping of str to Tensor
        Full state of the front.
    names : sequence of str
        Parameters to score.
    gradients : mapping of str to Tensor, optional
        Accumulated gradients; with them a weight's score is |w g|, else |w|.

    Returns
    -------
    dict of str to Tensor
        By parameter: float64, flat, at least 0, on the CPU.

    Raises
    ------
    SettingError
        If a gradient is missing.
    DivergedError
        If a score is NaN or infinite.
    """
    scores = {}
    for name in names:
        score = _in_float64(state[name])
        if gradients is not None:
            if name not in gradients:
                raise SettingError(f"no gradient of {name!r} was given")
            score = score * _in_float64(gradients[name])
        scores[name] = _finite(repr(name), score).abs().flatten()
    return scores


def increase(scores: Scores, first: Scores) -> dict[str, Tensor]:
    """Return how much each score grew since the first ones, as a ratio.

    Before training nothing is known: equal ratios are put in an order that is drawn by
    the group's name, the same in every run.

    Parameters
    ----------
    scores, first : mapping of str to Tensor
        What :func:`channel_scores` returned with ``"weight"``, now and at the start.

    Returns
    -------
    dict of str to Tensor
        By group: float64 ``(size,)``; about 1 where nothing changed.

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
    previous, averaged : mapping of str to Tensor
        Full states before and after aggregation.
    memory : mapping of str to Tensor, optional
        What this function returned a round ago.
    decay : float (default: 0.0)
        Weight of earlier rounds, in [0, 1).

    Returns
    -------
    dict of str to Tensor
        By name of each floating tensor, in its dtype and shape.

    Raises
    ------
    SettingError
        If the decay is out of range.

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
        if not old.is_floating_point():
            continue
        found[name] = moved = old - averaged[name].to(old)
        if memory is not None:
            known = memory[name].to(old)
            found[name] = torch.where(moved != 0, moved + decay * known, known)
    return found


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
