"""Adaptive frequency decomposition: which coefficients form the two components.

Coefficients lie coefficient by coefficient: ``(n, K)`` for K rows (one row is one
sample's channel), grouped by eight as ``(G, 8, K)``. A row's low component is its
first `split` coefficients, the high one the rest; the group that holds coefficient
``split - 1`` is its *boundary group*, all groups before it are low, all after it high.
So per-coefficient work is plain arithmetic on groups, and only boundary groups need
care.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

# Beyond any coefficient (see `spectra._SAFE_EXPONENT`), and squares stay finite.
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


def join(parts: list[Components]) -> Components:
    """Return the components of several chunks as one."""
    if len(parts) == 1:
        return parts[0]
    return Components(
        torch.cat([p.split for p in parts]),
        torch.cat([p.energy for p in parts], 1),
        torch.cat([p.ends for p in parts], 2),
    )


def group_by_eight(coeffs: torch.Tensor) -> torch.Tensor:
    """Return (n, K) as (G, 8, K), the last coefficient repeated to fill up."""
    n, lanes = coeffs.shape
    if n % 8:
        coeffs = torch.cat([coeffs, coeffs[-1:].expand(8 - n % 8, lanes)])
    return coeffs.reshape(-1, 8, lanes)


def low_mask(
    split: torch.Tensor, num_groups: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the boundary group (K,) of each row, and what is low (num_groups + 8, K).

    The mask is 1 for each group before the boundary group, then, in its last eight
    rows, for each low coefficient of the boundary group; else 0. Masks are numbers: on
    a CPU, arithmetic with them takes a fifth of the time of comparisons and `where`.
    """
    last = split - 1
    index = last >> 3
    steps = _mask_steps(num_groups, split.device, dtype)
    mask = steps.new_empty(num_groups + 8, len(split))
    torch.sub(index, steps[:num_groups], out=mask[:num_groups])
    torch.sub(last & 7, steps[num_groups:], out=mask[num_groups:])
    return index, mask.clamp_(0, 1)


@lru_cache(maxsize=64)
def _mask_steps(
    num_groups: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Return a column of each group's number, then of -1 to 6."""
    group = torch.arange(num_groups, device=device, dtype=dtype)
    place = torch.arange(-1, 7, device=device, dtype=dtype)
    return torch.cat([group, place])[:, None]


def first_mask(count: torch.Tensor, num: int, dtype: torch.dtype) -> torch.Tensor:
    """Return 1 for the first `count` (K,) of `num` entries (num, K), else 0."""
    number = torch.arange(num, device=count.device, dtype=dtype)
    return (count.to(dtype) - number[:, None]).clamp_(0, 1)


def pick(pair: torch.Tensor, is_low: torch.Tensor) -> torch.Tensor:
    """Return the low or the high one of finite pairs (..., 2, K) by a mask of 0 and 1.

    The mask is (G, K); the result (..., G, K) is exact.
    """
    low, high = pair[..., :1, :], pair[..., 1:, :]
    return torch.addcmul(high * (1 - is_low), low, is_low)


def take_group(groups: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return group `index` (K,) of each row of (G, 8, K) as (8, K)."""
    return groups.gather(0, index.expand(1, 8, -1))[0]


def put_group(groups: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> None:
    """Write (8, K) into group `index` (K,) of each row of (G, 8, K)."""
    groups.scatter_(0, index.expand(1, 8, -1), values[None])


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
    """
    cumulative = _cumulative_energy(groups, n)
    goal = theta * cumulative[-1]
    index = (cumulative[:-1] < goal).sum(0)
    here = take_group(groups, index)
    inside, before, after = _around(here, cumulative, index, n)
    split = (inside[:-1] < goal - before).sum(0).add_(8 * index + 1).clamp_(max=n)
    return _describe(groups, n, split, here, inside, before, after)


def describe(groups: torch.Tensor, n: int, split: torch.Tensor) -> Components:
    """Describe the components of rows whose split (K,) is known."""
    index = (split - 1) >> 3
    here = take_group(groups, index)
    around = _around(here, _cumulative_energy(groups, n), index, n)
    return _describe(groups, n, split, here, *around)


def largest_first(groups: torch.Tensor, n: int) -> torch.Tensor:
    """Return (n, K): each row's coefficients ordered by magnitude, largest first."""
    magnitude = groups.reshape(-1, groups.shape[2])[:n].abs()
    return magnitude.argsort(dim=0, descending=True, stable=True)


def partition(member: torch.Tensor) -> torch.Tensor:
    """Return the order (n, K) that brings members (n, K) first, else kept as it is."""
    return (~member).to(torch.uint8).argsort(dim=0, stable=True)


def by_magnitude(
    coeffs: torch.Tensor, theta: float
) -> tuple[torch.Tensor, Components, torch.Tensor]:
    """Take each row's largest coefficients into the low component.

    Returns
    -------
    tuple of Tensor (n, K), Components, Tensor (n, K)
        The coefficients, low ones first, else kept as they were; their components;
        which ones are low, in the order given.
    """
    n = len(coeffs)
    rank = largest_first(group_by_eight(coeffs), n)
    sizes = group_by_eight(coeffs.gather(0, rank))
    split = decompose(sizes, n, theta).split
    member = torch.zeros_like(rank, dtype=torch.bool)
    low = first_mask(split, n, torch.float32)
    member.scatter_(0, rank, low.to(torch.bool))
    ordered = coeffs.gather(0, partition(member))
    return ordered, describe(group_by_eight(ordered), n, split), member


def _cumulative_energy(groups: torch.Tensor, n: int) -> torch.Tensor:
    """Return the energy (G, K) up to and with each group, in float64."""
    energies = groups * groups
    if n % 8:
        energies.view(-1, groups.shape[2])[n:] = 0
    return energies.sum(1).to(torch.float64).cumsum(0)


def _around(
    here: torch.Tensor, cumulative: torch.Tensor, index: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the energy inside boundary groups (cumulative), before and after them."""
    inside = here.to(torch.float64).square()
    if n % 8:
        inside *= first_mask(n - 8 * index, 8, torch.float64)
    reached = cumulative.gather(0, torch.stack([(index - 1).clamp_(min=0), index]))
    before = reached[0] * (index > 0)
    return inside.cumsum(0), before, cumulative[-1] - reached[1]


def _describe(
    groups: torch.Tensor,
    n: int,
    split: torch.Tensor,
    here: torch.Tensor,
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
    ends[:, num_groups:] = here
    ends[1].neg_()
    index, far = low_mask(split, num_groups, dtype)
    far *= _FAR
    high = torch.add(ends, far)
    # The boundary group is in neither: its coefficients are at the end, one by one.
    high[:, :num_groups].scatter_(1, index.expand(2, 1, -1), _FAR)
    high = high.amin(1)
    low = (ends - far.sub_(_FAR)).amin(1)
    # A row that is low throughout has a high component without members.
    high *= split < n
    return Components(split, energy, torch.stack([low, high], 1))


def deviation_order(chunks: list[torch.Tensor]) -> torch.Tensor:
    """Return coefficient positions (n,) by standard deviation over rows, largest first.

    Parameters
    ----------
    chunks : list of Tensor (n, K)
        The coefficients of all rows.
    """
    num_rows = sum(c.shape[1] for c in chunks)
    mean = (
        torch.stack([c.sum(1, dtype=torch.float64) for c in chunks]).sum(0) / num_rows
    )
    squares = [(c.to(torch.float64) - mean[:, None]).square().sum(1) for c in chunks]
    return torch.argsort(torch.stack(squares).sum(0), descending=True, stable=True)


def spectrum_dims(shape: tuple[int, ...], over_features: bool) -> tuple[int, ...]:
    """Return the dimensions that spectra run along, none for a scalar.

    The last two of (..., C, H, W); T, or T and D `over_features`, of (N, T, D); the
    last of (N, D) and (D,). Maps of 1 x 1 and sequences of one token are vectors.
    """
    ndim = len(shape)
    if ndim > 3:
        is_map = shape[-2] * shape[-1] != 1
        return (ndim - 2, ndim - 1) if is_map else (ndim - 3,)
    if ndim == 3:
        if shape[1] == 1:
            return (2,)
        return (1, 2) if over_features else (1,)
    return (ndim - 1,) if ndim else ()


def to_rows(tensor: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor that is not empty as (R, n) or (R, h, w), `dims` last."""
    if not dims:
        return tensor.reshape(1, 1)
    sizes = [tensor.shape[d] for d in dims]
    last = tuple(range(-len(dims), 0))
    return tensor.movedim(dims, last).reshape(-1, *sizes)


def from_rows(
    rows: torch.Tensor, dims: tuple[int, ...], shape: tuple[int, ...]
) -> torch.Tensor:
    """Undo `to_rows`; the result is contiguous."""
    if not dims:
        return rows.reshape(shape)
    rest = [s for d, s in enumerate(shape) if d not in dims]
    last = tuple(range(-len(dims), 0))
    moved = rows.reshape(*rest, *rows.shape[1:]).movedim(last, dims)
    return moved.contiguous()
