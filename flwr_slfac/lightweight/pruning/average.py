"""Average each coordinate over the devices that hold it.

As HeteroFL does (Diao, Ding and Tarokh, 2021): a coordinate is the weighted mean over
its holders, and one that nobody holds stays as it was. ::

    device 1   a1 a2 .  .        mean   (a1 + c1) / 2,  a2,  c3,  previous
    device 2   c1 .  c3 .

A Flower strategy averages full arrays with one weight a device. Let m be the mean over
a coordinate's holders H. If each device that does not hold it reports m, then the mean
over all is ``(sum_H w_k x_k + (W - W_H) m) / W = (W_H m + (W - W_H) m) / W = m``: the
strategy's mean is the coordinate's, whatever the weights. So `fill_absent` runs before
the strategy, on the server. This holds for every strategy that learns from the devices'
weighted mean alone: FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi. It does not
for those that rank or clip whole states (median, trimmed mean, Krum, Bulyan,
differential privacy), or weigh them by something else (q-FedAvg).

A strategy with momentum moves a coordinate also when its mean did not; `restore_absent`
behind the strategy keeps what nobody held where it was.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.pruning.coordinates import (
    Everything,
    Holding,
    expand_state,
    require_keys,
)
from flwr_slfac.states import State


def average_coordinates(
    states: Sequence[State],
    weights: Sequence[float],
    kepts: Sequence[Holding | None],
    previous: State,
) -> dict[str, Tensor]:
    """Return the full state in which each coordinate is the mean over its holders.

    Parameters
    ----------
    states : sequence of Mapping of str to Tensor
        What each device holds, as :func:`sub_state` returns it.
    weights : sequence of float
        One a device, >= 0; for example its number of examples.
    kepts : sequence of KeptChannels, ElementMasks or None
        What each device holds; None is everything.
    previous : Mapping of str to Tensor
        Full state of the round before; what nobody holds stays so.

    Returns
    -------
    dict of str to Tensor
        Summed in float64 in the order given; dtypes are those of `previous`, integers
        rounded. Buffers (running statistics) are averaged like parameters.

    Raises
    ------
    SettingError
        If there are not as many weights and masks as states, or a weight is negative.
    TrainingError
        If a state does not fit its mask.
    """
    _require_weights(states, weights, kepts)
    for state in states:
        require_keys(state, previous)
    holdings = [kept or Everything() for kept in kepts]
    return {
        name: _average(name, [s[name] for s in states], weights, holdings, full)
        for name, full in previous.items()
    }


def _average(
    name: str,
    values: Sequence[Tensor],
    weights: Sequence[float],
    holdings: Sequence[Holding],
    previous: Tensor,
) -> Tensor:
    where = previous.device
    summed = torch.zeros(previous.shape, dtype=torch.float64, device=where)
    weight = torch.zeros_like(summed)
    nothing = torch.zeros_like(summed)
    for value, own, holding in zip(values, weights, holdings, strict=True):
        summed += own * holding.put(name, value.to(where).double(), nothing)
        weight += own * holding.held(name, tuple(previous.shape)).to(where)
    mean = summed / weight
    mean = mean if previous.is_floating_point() else mean.round()
    some = weight > 0
    # Not a number where nobody holds it, which has no integer.
    return torch.where(some, mean.where(some, 0.0).to(previous.dtype), previous)


def fill_absent(
    states: Sequence[State],
    weights: Sequence[float],
    kepts: Sequence[Holding | None],
    previous: State,
) -> list[dict[str, Tensor]]:
    """Return full states whose weighted mean is the coordinate-wise average.

    What a device does not hold is filled with the mean over those who do, or with
    `previous` if nobody does. Give these, with the same weights, to a Flower strategy
    that averages.

    Parameters
    ----------
    states, weights, kepts, previous
        As for :func:`average_coordinates`.

    Returns
    -------
    list of dict of str to Tensor
        One full state a device. Held coordinates are the device's own, bit for bit.

    Raises
    ------
    SettingError, TrainingError
        As :func:`average_coordinates`.

    Examples
    --------
    >>> from flwr_slfac.lightweight.pruning.element_masks import ElementMasks
    >>> mask = ElementMasks({"w": torch.tensor([[True, False]])})
    >>> states = [{"w": torch.tensor([4.0])}, {"w": torch.tensor([[0.0, 8.0]])}]
    >>> fill_absent(states, [1, 3], [mask, None], {"w": torch.zeros(1, 2)})
    [{'w': tensor([[4., 8.]])}, {'w': tensor([[0., 8.]])}]
    """
    average = average_coordinates(states, weights, kepts, previous)
    return [
        expand_state(state, kept, average)
        for state, kept in zip(states, kepts, strict=True)
    ]


def restore_absent(
    state: State,
    weights: Sequence[float],
    kepts: Sequence[Holding | None],
    previous: State,
) -> dict[str, Tensor]:
    """Return a full state with the coordinates of nobody as they were before.

    Parameters
    ----------
    state : Mapping of str to Tensor
        Full state that a strategy returned.
    weights, kepts, previous
        As for :func:`average_coordinates`.

    Examples
    --------
    >>> from flwr_slfac.lightweight.pruning.element_masks import ElementMasks
    >>> mask = ElementMasks({"w": torch.tensor([[True, False]])})
    >>> moved, previous = {"w": torch.ones(1, 2)}, {"w": torch.zeros(1, 2)}
    >>> restore_absent(moved, [1], [mask], previous)
    {'w': tensor([[1., 0.]])}
    """
    require_keys(state, previous)
    holders = [k or Everything() for k, w in zip(kepts, weights, strict=True) if w > 0]
    restored = {}
    for name, old in previous.items():
        held = torch.zeros(old.shape, dtype=torch.bool)
        for holding in holders:
            held |= holding.held(name, tuple(old.shape))
        restored[name] = torch.where(held.to(old.device), state[name], old)
    return restored


def _require_weights(
    states: Sequence[State],
    weights: Sequence[float],
    kepts: Sequence[Holding | None],
) -> None:
    if not len(states) == len(weights) == len(kepts):
        raise SettingError(
            f"{len(states)} states, {len(weights)} weights and {len(kepts)} masks; "
            "give one of each a device"
        )
    bad = [w for w in weights if not (math.isfinite(w) and w >= 0)]
    if bad:
        raise SettingError(f"a device's weight is {bad[0]}; give a number >= 0")
