"""Average each coordinate over the devices that hold it.

As HeteroFL does (Diao, Ding and Tarokh, 2021): a coordinate is the weighted mean over
its holders, and one that nobody holds stays as it was. ::

    device 1   a1 a2 .  .        mean   (a1 + c1) / 2,  a2,  c3,  previous
    device 2   c1 .  c3 .

A Flower strategy averages full arrays with one weight a device. Let m be the mean over
a coordinate's holders H. If each device that does not hold it reports m, then the mean
over all is ``(sum_H w_k x_k + (W - W_H) m) / W = (W_H m + (W - W_H) m) / W = m``: the
strategy's mean is the coordinate's, whatever the weights. So `fill_unheld` runs before
the strategy, on the server. This holds for every strategy that learns from the devices'
weighted mean alone: FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi. It does not
for those that rank or clip whole states (median, trimmed mean, Krum, Bulyan,
differential privacy), or weigh them by something else (q-FedAvg).

A strategy with momentum moves a coordinate also when its mean did not; `restore_unheld`
behind the strategy keeps what nobody held where it was.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.pruning.masks import Mask, require_keys
from flwr_slfac.states import State, as_dtype


def average_coordinates(
    states: Sequence[State],
    weights: Sequence[float],
    masks: Sequence[Mask],
    previous: State,
) -> dict[str, Tensor]:
    """Return the full state in which each coordinate is the mean over its holders.

    Parameters
    ----------
    states : sequence of mapping of str to Tensor
        What each device holds, as `Mask.take_state` returns it.
    weights : sequence of float
        One a device, >= 0; for example its number of examples.
    masks : sequence of Mask
        One a device: what it holds.
    previous : mapping of str to Tensor
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
    _require_weights(states, weights, masks)
    for state in states:
        require_keys(state, previous)
    return {
        name: _average(name, [s[name] for s in states], weights, masks, full)
        for name, full in previous.items()
    }


def _average(
    name: str,
    values: Sequence[Tensor],
    weights: Sequence[float],
    masks: Sequence[Mask],
    previous: Tensor,
) -> Tensor:
    where = previous.device
    wide = torch.complex128 if previous.is_complex() else torch.float64
    summed = torch.zeros(previous.shape, dtype=wide, device=where)
    weight = torch.zeros(previous.shape, dtype=torch.float64, device=where)
    nothing = torch.zeros_like(summed)
    for value, own, mask in zip(values, weights, masks, strict=True):
        summed += own * mask.put(name, value.to(where, wide), nothing)
        weight += own * mask.held(name, tuple(previous.shape)).to(where)
    held = weight > 0
    # Not a number where nobody holds it, which has no integer.
    mean = (summed / weight).where(held, 0.0)
    return torch.where(held, as_dtype(mean, previous.dtype), previous)


def fill_unheld(
    states: Sequence[State],
    weights: Sequence[float],
    masks: Sequence[Mask],
    previous: State,
) -> list[dict[str, Tensor]]:
    """Return full states whose weighted mean is the coordinate-wise average.

    What a device does not hold is filled with the mean over those who do, or with
    `previous` if nobody does. Give these, with the same weights, to a Flower strategy
    that averages.

    Parameters
    ----------
    states, weights, masks, previous
        As for :func:`average_coordinates`.

    Returns
    -------
    list of dict of str to Tensor
        One full state a device. Held coordinates are the device's own, bit for bit.

    Raises
    ------
    SettingError
        If there are not as many weights and masks as states, or a weight is negative.
    TrainingError
        If a state does not fit its mask.

    Examples
    --------
    >>> from flwr_slfac.lightweight.pruning.element_mask import ElementMask
    >>> from flwr_slfac.lightweight.pruning.masks import FullMask
    >>> masks = [ElementMask({"w": torch.tensor([[True, False]])}), FullMask()]
    >>> states = [{"w": torch.tensor([4.0])}, {"w": torch.tensor([[0.0, 8.0]])}]
    >>> fill_unheld(states, [1, 3], masks, {"w": torch.zeros(1, 2)})
    [{'w': tensor([[4., 8.]])}, {'w': tensor([[0., 8.]])}]
    """
    average = average_coordinates(states, weights, masks, previous)
    return [
        mask.put_state(state, average)
        for state, mask in zip(states, masks, strict=True)
    ]


def restore_unheld(
    state: State,
    weights: Sequence[float],
    masks: Sequence[Mask],
    previous: State,
) -> dict[str, Tensor]:
    """Return a full state whose coordinates that nobody holds are as before.

    Parameters
    ----------
    state : mapping of str to Tensor
        Full state that a strategy returned.
    weights, masks, previous
        As for :func:`average_coordinates`; a device of weight 0 holds nothing.

    Returns
    -------
    dict of str to Tensor
        New tensors of the keys and shapes of `previous`.

    Raises
    ------
    TrainingError
        If the states differ in their keys.

    Examples
    --------
    >>> from flwr_slfac.lightweight.pruning.element_mask import ElementMask
    >>> mask = ElementMask({"w": torch.tensor([[True, False]])})
    >>> moved, previous = {"w": torch.ones(1, 2)}, {"w": torch.zeros(1, 2)}
    >>> restore_unheld(moved, [1], [mask], previous)
    {'w': tensor([[1., 0.]])}
    """
    require_keys(state, previous)
    holders = [m for m, w in zip(masks, weights, strict=True) if w > 0]
    restored = {}
    for name, old in previous.items():
        held = torch.zeros(old.shape, dtype=torch.bool)
        for mask in holders:
            held |= mask.held(name, tuple(old.shape))
        restored[name] = torch.where(held.to(old.device), state[name], old)
    return restored


def _require_weights(
    states: Sequence[State],
    weights: Sequence[float],
    masks: Sequence[Mask],
) -> None:
    if not len(states) == len(weights) == len(masks):
        raise SettingError(
            f"{len(states)} states, {len(weights)} weights and {len(masks)} masks; "
            "give one of each a device"
        )
    bad = [w for w in weights if not (math.isfinite(w) and w >= 0)]
    if bad:
        raise SettingError(f"a device's weight is {bad[0]}; give a number >= 0")
