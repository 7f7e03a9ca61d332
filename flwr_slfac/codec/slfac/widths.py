"""Frequency-based bit widths: how many bits each component's codes take."""

import torch

# Below this share of the mean square a variance is rounding noise of a constant.
_VARIANCE_FLOOR = 2.0**-20


def spectral_widths(
    energy: torch.Tensor,
    count: torch.Tensor,
    total: float,
    num_elements: int,
    bit_widths: tuple[int, int],
) -> torch.Tensor:
    """Return the width of each component from its mean spectral energy (SL-FAC's FQC).

    ``b = round(b_min + (b_max - b_min) * log(1 + e) / max log(1 + e))``, where e is a
    component's mean squared coefficient over the variance of the tensor, the maximum is
    taken over all components of the tensor and halves round to even. The paper gives
    the logarithm and the bounds; the mean, the variance and the normaliser are our
    reading.

    Parameters
    ----------
    energy : Tensor (2, R)
        float64: sum of squared coefficients of each component.
    count : Tensor (2, R)
        Number of coefficients of each component; an empty one takes b_min.
    total : float
        Sum of the tensor's elements.
    num_elements : int
        Number of elements of the tensor.
    bit_widths : tuple of int
        b_min and b_max.

    Returns
    -------
    Tensor (2, R)
        int32.
    """
    narrow, wide = bit_widths
    mean_square = float(energy.sum()) / num_elements
    variance = max(
        mean_square - (total / num_elements) ** 2, _VARIANCE_FLOOR * mean_square
    )
    if variance <= 0:
        return torch.full_like(count, narrow, dtype=torch.int32)
    relative = energy / count.clamp(min=1) / variance
    scale = torch.log1p(relative)
    spread = (wide - narrow) * (scale / scale.max())
    return (narrow + spread).round().to(torch.int32)


def equal_widths(count: torch.Tensor, bit_widths: tuple[int, int]) -> torch.Tensor:
    """Return the middle width, rounded down, for every component."""
    return torch.full_like(count, sum(bit_widths) // 2, dtype=torch.int32)
