r"""A bound on the gradient of lightweight split training, from constants.

The theorem, its assumptions and its proof are in this folder's README; it is our own
derivation, not the theorem of the paper that the scheme follows (Zhang, Ni, Wang,
2024). In short, with N devices, step eta <= 1/L, aggregation every I steps and every
held coordinate held by at least Gamma devices, the mean over T steps of the expected
squared gradient on the held coordinates is at most::

    2 (f0 - f*) / (eta T)                                                     start
    + L eta N/Gamma^2 (sigma^2 + r tau^2 + q A^2 + q_up (sqrt(I) G + S)^2)    noise
    + ( sqrt(N/Gamma - 1) zeta + sqrt(N/Gamma) (L (D + delta U) + r b + e) )^2 bias

    A^2 = G^2 + sigma_f^2 + r tau^2      a front gradient, squared
    S^2 = sigma_f^2 + r tau^2 + q A^2    its noise, quantized
    D = eta sqrt(N/Gamma) (G sqrt((I-1)(2I-1)/6) + S sqrt((I-1)/2))    drift

q and q_up are the variances of the quantized gradients and updates, r = p / (1 - p).
Where devices weigh unlike, as training weighs them by examples, N/Gamma becomes 1/W and
N/Gamma^2 becomes w_max/W^2: w_max is the largest weight, W the least of all holders of
a coordinate.
"""

import math
from dataclasses import dataclass

from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.trained_problem import Objective, Training

# A step of 1 / smoothness, computed by the user in floating point, is not refused.
_SLACK = 1e-12


@dataclass(frozen=True)
class Bound:
    """The three terms of the bound, each at least 0.

    Attributes
    ----------
    start : float
        Distance to go, which falls with the number of steps.
    noise : float
        Variance, which falls with the step.
    bias : float
        Systematic error: drift of the fronts, pruning, dropout, unlike devices.
    """

    start: float
    noise: float
    bias: float

    @property
    def total(self) -> float:
        """Bound on the mean squared norm of the gradient."""
        return self.start + self.noise + self.bias


def convergence_bound(objective: Objective, training: Training) -> Bound:
    """Bound the mean over steps of ``E |grad f|^2`` on the held coordinates.

    Parameters
    ----------
    objective : Objective
        Constants of what is trained.
    training : Training
        How it is trained.

    Returns
    -------
    Bound
        `total` and its three terms.

    Raises
    ------
    SettingError
        If the step is larger than 1 / smoothness, where the theorem says nothing.

    Examples
    --------
    >>> problem = Objective(gap=1.0, smoothness=2.0, front_gradient=1.0)
    >>> plain = convergence_bound(problem, Training(num_steps=100, step_size=0.1))
    >>> plain
    Bound(start=0.2, noise=0.0, bias=0.0)
    >>> rarely = Training(100, 0.1, num_devices=4, aggregate_every=5)
    >>> round(convergence_bound(problem, rarely).bias, 3)
    0.24
    """
    o, t = objective, training
    if t.step_size * o.smoothness > 1 + _SLACK:
        raise SettingError(
            f"step_size is {t.step_size}; the bound holds up to 1 / smoothness = "
            f"{1 / o.smoothness:g}"
        )
    r = t.dropout_ratio
    spread = t.spread
    noise = o.noise_variance + r * o.dropout_variance
    noise += t.gradient_variance * _front_moment(o, t)
    noise += t.update_variance * _moved_per_step(o, t) ** 2
    strayed = _drift(o, t) + t.pruning_error * o.front_norm
    error = math.sqrt(spread - 1) * o.heterogeneity
    error += math.sqrt(spread) * o.smoothness * strayed
    error += math.sqrt(spread) * (r * o.dropout_bias + o.gradient_bias)
    return Bound(
        start=2 * o.gap / (t.step_size * t.num_steps),
        noise=o.smoothness * t.step_size * noise * t.noise_share,
        bias=error**2,
    )


def _front_moment(o: Objective, t: Training) -> float:
    """A^2: bound the second moment of a front gradient before it is quantized."""
    return o.front_gradient**2 + o.front_noise + t.dropout_ratio * o.dropout_variance


def _front_noise(o: Objective, t: Training) -> float:
    """S: bound the noise of a quantized front gradient, in root mean square."""
    sampled = o.front_noise + t.dropout_ratio * o.dropout_variance
    return math.sqrt(sampled + t.gradient_variance * _front_moment(o, t))


def _moved_per_step(o: Objective, t: Training) -> float:
    """Bound a front's move between aggregations over eta sqrt(I)."""
    return math.sqrt(t.aggregate_every) * o.front_gradient + _front_noise(o, t)


def _drift(o: Objective, t: Training) -> float:
    """D: bound the distance of fronts from their mean, in root mean square."""
    i = t.aggregate_every
    along = o.front_gradient * math.sqrt((i - 1) * (2 * i - 1) / 6)
    about = _front_noise(o, t) * math.sqrt((i - 1) / 2)
    return t.step_size * math.sqrt(t.spread) * (along + about)
