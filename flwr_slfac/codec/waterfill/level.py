"""Reverse water-filling: the distortion and the bits of independent Gaussians."""

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]

# In place of 0 where a logarithm or a quotient is taken, near float64's smallest.
TINY = 1e-300


def water_level(variances: Reals, distortion: float) -> float:
    """Return the level t with ``sum(min(variances, t)) == distortion``.

    Reverse water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3):
    components below the level are not sent, all others bear the same error.

    Parameters
    ----------
    variances : ndarray (n,)
        Of independent Gaussians.
    distortion : float
        Sum of squared errors of all, a variance.
    """
    ascending = np.sort(np.maximum(variances, 0.0))
    below = np.concatenate([[0.0], np.cumsum(ascending)[:-1]])
    levels = (distortion - below) / np.arange(len(ascending), 0, -1)
    fits = np.flatnonzero(levels <= ascending)
    return float(levels[fits[0]] if fits.size else ascending[-1])


def gaussian_bits(variances: Reals, level: float) -> float:
    """Return the bits of one sample of all components at a water level."""
    return float(0.5 * np.log2(np.maximum(variances / max(level, TINY), 1.0)).sum())
