"""Which cut, compression and pruning suit which device: closed forms, no training.

::

    legal_cuts(model) ─ bytes, FLOPs per cut ─┐
    profiles, channel ─ speeds, rates, watts ─┼─► seconds and joules of every device,
    ratios, pruned shares ────────────────────┘   cut, ratio and share ─► the mildest
                                                  that keeps to the budget
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_slfac import CutPoint, SettingError
from simulation.channel import Channel
from simulation.clock import Server
from simulation.plan_costs import Costs, Fleet, Question, round_costs
from simulation.profiles import Profile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """A choice for every device; arrays are of shape (N,).

    Parameters
    ----------
    cuts : ndarray of int64
        Place of each device's cut in the list that was given.
    ratios, shares : ndarray
        Its compression ratio and pruned share.
    round_s, round_j : ndarray
        What a round takes on it, and what it spends: compute, and radio in both
        directions.
    round_bytes : ndarray
        What crosses in a round, both ways.
    in_budget, fits : ndarray of bool
        Whether it keeps to the budget, and whether its memory holds the front. A device
        for which nothing does both has the fastest that fits, or, where nothing fits,
        the smallest.
    """

    cuts: Ints
    ratios: Floats
    shares: Floats
    round_s: Floats
    round_j: Floats
    round_bytes: Floats
    in_budget: NDArray[np.bool_]
    fits: NDArray[np.bool_]


def plan(
    cuts: Sequence[CutPoint],
    profiles: Sequence[Profile],
    channel: Channel,
    server: Server,
    question: Question,
) -> Plan:
    """Choose for every device the mildest setting that keeps to the budget.

    Milder is the smaller compression ratio, then the smaller pruned share; at equal
    mildness the fastest cut is taken. What neither costs accuracy nor breaks the budget
    is so preferred to what is merely faster.

    Parameters
    ----------
    cuts : sequence of CutPoint
        One or more.
    profiles : sequence of Profile
        N devices.
    channel : Channel
        What carries their bytes; in a cell all N are taken to send at once.
    server : Server
        How fast the server is.
    question : Question
        Candidates and budget.

    Raises
    ------
    SettingError
        If there is no cut or no device.
    """
    if not cuts or not profiles:
        raise SettingError(
            f"there are {len(cuts)} cuts and {len(profiles)} devices; give one of each"
        )
    fleet = Fleet.of(profiles, channel)
    chosen = _Chosen(len(profiles))
    for ratio in sorted(question.compression_ratios):
        for share in sorted(question.pruned_shares):
            costs = round_costs(fleet, cuts, server, question, ratio, share)
            chosen.offer(costs, fleet.memory, question.budget_s, ratio, share)
    return chosen.plan()


class _Chosen:
    """The best offer so far for each device, offers coming in from the mildest on."""

    def __init__(self, num_devices: int) -> None:
        self._rank = np.full(num_devices, 3)
        self._key = np.full(num_devices, np.inf)
        self._columns = {name: np.zeros(num_devices) for name in _COLUMNS}

    def offer(
        self, costs: Costs, memory: Floats, budget_s: float, ratio: float, share: float
    ) -> None:
        """Take for each device its best cut, if it beats what it has.

        Rank 0 fits and keeps to the budget, 1 fits, 2 does not fit. In rank 0 the first
        offer stays, since it is the mildest; in 1 the fastest, in 2 the smallest wins.
        """
        fits = costs.memory_bytes <= memory
        in_budget = costs.round_s <= budget_s
        rank = np.where(fits, np.where(in_budget, 0, 1), 2)
        size = np.broadcast_to(costs.memory_bytes, rank.shape)
        key = np.where(fits, costs.round_s, size)
        best = rank.min(axis=1, keepdims=True)
        cut = np.where(rank == best, key, np.inf).argmin(axis=1)
        row = np.arange(len(cut))
        rank, key = best[:, 0], key[row, cut]
        better = (rank < self._rank) | ((rank == self._rank) & (key < self._key))
        better &= ~((self._rank == 0) & (rank == 0))
        self._rank[better], self._key[better] = rank[better], key[better]
        found = (
            cut,
            np.full(len(cut), ratio),
            np.full(len(cut), share),
            costs.round_s[row, cut],
            costs.round_j[row, cut],
            costs.round_bytes[row, cut],
            in_budget[row, cut],
        )
        for name, values in zip(_COLUMNS, found, strict=True):
            self._columns[name][better] = values[better]

    def plan(self) -> Plan:
        """Return the choice."""
        own = self._columns
        return Plan(
            own["cuts"].astype(np.int64),
            own["ratios"],
            own["shares"],
            own["round_s"],
            own["round_j"],
            own["round_bytes"],
            own["in_budget"].astype(bool),
            self._rank < 2,
        )


_COLUMNS = (
    *("cuts", "ratios", "shares"),
    *("round_s", "round_j", "round_bytes", "in_budget"),
)
