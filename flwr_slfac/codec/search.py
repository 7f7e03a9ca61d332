"""Search of one number on a grid: the power or the clipping level of a quantizer.

PowerQuant searches a power by squared error, EasyQuant a clipping level by cosine
similarity; their own codecs do so on a histogram of the whole tensor, SL-FAC's
ablations on the coefficients. The grids stand where they are used, with their reasons.
"""

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch


@overload
def search_grid(
    grid: Sequence[float], merit: Callable[[float], float], *, tolerance: float = ...
) -> float: ...


@overload
def search_grid(
    grid: Sequence[float],
    merit: Callable[[float], torch.Tensor],
    *,
    tolerance: float = ...,
) -> torch.Tensor: ...


def search_grid(
    grid: Sequence[float], merit: Callable[[float], Any], *, tolerance: float = 0.0
) -> Any:
    """Return the grid's number of the most merit, the first of equal ones.

    Parameters
    ----------
    grid : sequence of float
        What to try, the preferred first; at least one.
    merit : callable
        From a number of the grid to its merit, or to a tensor of merits, each of which
        is searched for itself.
    tolerance : float
        A later number has to be better by more than this share of the merit. Merits
        must not be negative where it is above 0.

    Returns
    -------
    float or Tensor
        A tensor, float64, of the shape and on the device of the merits if they are one.
    """
    best = merit(grid[0])
    chosen: Any = grid[0]
    if isinstance(best, torch.Tensor):
        chosen = torch.full_like(best, grid[0], dtype=torch.float64)
    for number in grid[1:]:
        found = merit(number)
        is_better = found > best * (1 + tolerance)
        if isinstance(is_better, torch.Tensor):
            best = torch.where(is_better, found, best)
            chosen = torch.where(is_better, number, chosen)
        elif is_better:
            best, chosen = found, number
    return chosen
