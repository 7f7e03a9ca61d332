"""Who trains in a round: small pure functions of what is known of the devices.

One of your own, ``sampling = "my_module:my_policy"``, takes the same arguments::

    def fastest(candidates, count, draws):
        return [c.device for c in sorted(candidates, key=lambda c: c.round_s)][:count]
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simulation.functions import find_function, require_function


@dataclass(frozen=True)
class Candidate:
    """What the server knows of a device that is on.

    Parameters
    ----------
    device : int
        Partition id.
    round_s : float
        What its last round took it, without waiting; before it had one, an estimate
        from its profile and link.
    num_examples : int
        Examples of its last round; 0 before it had one.
    loss : float
        Mean training loss of its last round; NaN before it had one.
    last_round : int
        In which it trained last; 0 for never.
    server_round : int
        The round that is sampled for, from 1.
    """

    device: int
    round_s: float
    num_examples: int = 0
    loss: float = math.nan
    last_round: int = 0
    server_round: int = 1


Policy = Callable[[Sequence[Candidate], int, np.random.Generator], Sequence[int]]
# Oort (Lai et al., OSDI 2021): penalty of slow devices, its alpha, and the share of
# devices that are tried without having been seen.
_OORT_ALPHA, _OORT_EXPLORE = 2.0, 0.2


def by_chance(
    candidates: Sequence[Candidate], count: int, draws: np.random.Generator
) -> list[int]:
    """Return devices drawn uniformly, without repetition."""
    order = draws.permutation(len(candidates))[:count]
    return [candidates[place].device for place in order]


def by_speed(
    candidates: Sequence[Candidate], count: int, draws: np.random.Generator
) -> list[int]:
    """Return the devices whose rounds are shortest."""
    return [c.device for c in sorted(candidates, key=lambda c: c.round_s)[:count]]


def by_data(
    candidates: Sequence[Candidate], count: int, draws: np.random.Generator
) -> list[int]:
    """Return devices drawn with the examples of their last rounds as weights.

    One that was not seen yet weighs as much as the mean of those that were.
    """
    seen = [c.num_examples for c in candidates if c.num_examples]
    usual = sum(seen) / len(seen) if seen else 1.0
    weights = np.array([c.num_examples or usual for c in candidates], dtype=np.float64)
    # Efraimidis and Spirakis (2006): weighted, without repetition.
    keys = draws.random(len(candidates)) ** (1 / weights)
    order = np.argsort(-keys, kind="stable")[:count]
    return [candidates[place].device for place in order]


def oort_utility(candidate: Candidate, wanted_s: float) -> float:
    """Return the utility that Oort gives a device.

    ``n * loss * (T / t)^2`` where its round takes t longer than the wanted T, plus
    ``sqrt(0.1 ln R / L)`` of that for not having been asked since round L. Oort takes
    the root mean square of the losses of single examples; known here is their mean.

    Parameters
    ----------
    candidate : Candidate
        One that has trained before.
    wanted_s : float
        The round's length that is aimed at.

    Examples
    --------
    >>> slow = Candidate(0, 20.0, num_examples=10, loss=1.0, last_round=1)
    >>> oort_utility(slow, 10.0)
    2.5
    """
    utility = candidate.num_examples * candidate.loss
    stale = 0.1 * math.log(candidate.server_round) / max(1, candidate.last_round)
    utility *= 1 + math.sqrt(stale)
    if candidate.round_s > wanted_s:
        utility *= (wanted_s / candidate.round_s) ** _OORT_ALPHA
    return utility


def by_oort(
    candidates: Sequence[Candidate], count: int, draws: np.random.Generator
) -> list[int]:
    """Return the devices of the highest utility, and some that are not known yet.

    The wanted length of a round is the median of those known. A fifth of the places,
    or all that known devices do not fill, go to the fastest unknown ones.
    """
    known = [c for c in candidates if c.last_round and not math.isnan(c.loss)]
    fresh = by_speed([c for c in candidates if c not in known], count, draws)
    wanted_s = float(np.median([c.round_s for c in known])) if known else 0.0
    ranked = sorted(known, key=lambda c: (-oort_utility(c, wanted_s), c.device))
    tried = min(len(fresh), max(round(_OORT_EXPLORE * count), count - len(known)))
    return [c.device for c in ranked[: count - tried]] + fresh[:tried]


POLICIES: dict[str, Policy] = {
    "random": by_chance,
    "speed": by_speed,
    "data": by_data,
    "oort": by_oort,
}


def require_policy(name: str) -> None:
    """Raise SettingError unless a name may be a policy's."""
    require_function("sampling", name, POLICIES)


def find_policy(name: str) -> Policy:
    """Return a policy by name.

    Raises
    ------
    SettingError
        If it cannot be found.
    """
    return find_function("sampling", name, POLICIES)
