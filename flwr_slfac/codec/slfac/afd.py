"""Adaptive frequency decomposition (AFD): two components of each row's spectrum.

::

    coefficients, coarse to fine --energy from the first on--> split at theta of it
                                     low: before the split | high: the rest
                                                         |
                                    energy and range of each, for the bit widths

Lin et al., "SL-FAC", arXiv 2604.07316, the first of the two stages. How coefficients
are laid out is in `groups`.
"""

from dataclasses import dataclass

import torch

from flwr_slfac.codec.slfac.groups import low_mask, prefix_mask, take_group

# Beyond any coefficient, as values are kept to 2**40 (see `spectra`), and sums with it
# stay finite in float32.
_FAR = 2.0**100


@dataclass(frozen=True)
class Components:
    """The two components of K rows.

    Parameters
    ----------
    split : Tensor (K,)
        int64: number of coefficients in the low component, 1 to n.
    energy : Tensor (2, K)
        float64: sum of squares in each component.
    ends : Tensor (2 ends, 2, K)
        Smallest coefficient and negative of the largest one of each component; 0 where
        it is empty.
    """

    split: torch.Tensor
    energy: torch.Tensor
    ends: torch.Tensor


def join_components(parts: list[Components]) -> Components:
    """Return the components of several chunks as one."""
    if len(parts) == 1:
        return parts[0]
    return Components(
        torch.cat([p.split for p in parts]),
        torch.cat([p.energy for p in parts], 1),
        torch.cat([p.ends for p in parts], 2),
    )


def decompose(groups: torch.Tensor, n: int, theta: float) -> Components:
    """Split each row at the smallest prefix with `theta` of its energy.

    Parameters
    ----------
    groups : Tensor (G, 8, K)
        From `group_by_eight`, coefficients in their order.
    n : int
        Number of coefficients a row.
    theta : float
        Share of the energy, in (0, 1]. A row without energy is split after its first
        coefficient.

    Returns
    -------
    Components
        Of all K rows.
    """
    cumulative = _cumulative_energy(groups, n)
    goal = theta * cumulative[-1]
    index = (cumulative[:-1] < goal).sum(0)
    boundary = take_group(groups, index)
    inside, before, after = _energy_around(boundary, cumulative, index, n)
    split = (inside[:-1] < goal - before).sum(0).add_(8 * index + 1).clamp_(max=n)
    return _components(groups, n, split, boundary, inside, before, after)


def components_at(groups: torch.Tensor, n: int, split: torch.Tensor) -> Components:
    """Describe the components of rows whose split (K,) is known."""
    index = (split - 1) >> 3
    boundary = take_group(groups, index)
    around = _energy_around(boundary, _cumulative_energy(groups, n), index, n)
    return _components(groups, n, split, boundary, *around)


def _cumulative_energy(groups: torch.Tensor, n: int) -> torch.Tensor:
    """Return the energy (G, K) up to and with each group, in float64."""
    energies = groups * groups
    if n % 8:
        energies.view(-1, groups.shape[2])[n:] = 0
    # In one order, as that of `sum` depends on the shape.
    fours = energies[:, :4] + energies[:, 4:]
    total = fours[:, 0]
    for place in range(1, 4):
        total += fours[:, place]
    return total.to(torch.float64).cumsum(0)


def _energy_around(
    boundary: torch.Tensor, cumulative: torch.Tensor, index: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the energy inside boundary groups (cumulative), before and after them."""
    inside = boundary.to(torch.float64).square()
    if n % 8:
        inside *= prefix_mask(n - 8 * index, 8, torch.float64)
    reached = cumulative.gather(0, torch.stack([(index - 1).clamp_(min=0), index]))
    before = reached[0] * (index > 0)
    return inside.cumsum(0), before, cumulative[-1] - reached[1]


def _components(
    groups: torch.Tensor,
    n: int,
    split: torch.Tensor,
    boundary: torch.Tensor,
    inside: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
) -> Components:
    num_groups, dtype = len(groups), groups.dtype
    in_low = inside.gather(0, ((split - 1) & 7)[None])[0]
    energy = torch.stack([before + in_low, after + inside[-1] - in_low])
    # A maximum is the minimum of the negative: both ends in one pass (2, G + 8, K).
    ends = groups.new_empty(2, num_groups + 8, groups.shape[2])
    torch.amin(groups, 1, out=ends[0, :num_groups])
    torch.amax(groups, 1, out=ends[1, :num_groups])
    ends[:, num_groups:] = boundary
    ends[1].neg_()
    index, far = low_mask(split, num_groups, dtype)
    far *= _FAR
    high = torch.add(ends, far)
    # The boundary group is in neither: its coefficients are at the end, one by one.
    high[:, :num_groups].scatter_(1, index.expand(2, 1, -1), _FAR)
    high = high.amin(1)
    low = (ends - far.sub_(_FAR)).amin(1)
    # Which zero is the least of 0 and -0 depends on their places; here it is 0.
    low[0] += 0.0
    low[1].neg_().add_(0.0).neg_()
    # A row that is low throughout has a high component without members.
    high *= split < n
    return Components(split, energy, torch.stack([low, high], 1))
