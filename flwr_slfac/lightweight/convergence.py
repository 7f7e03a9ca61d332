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
"""

import math
from dataclasses import dataclass, fields

from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.dropout import require_dropout
from flwr_slfac.lightweight.quantization.qsgd import DEFAULT_BUCKET, qsgd_variance
from flwr_slfac.lightweight.quantization.update_pack import update_variance

# A step of 1 / smoothness, computed by the user in floating point, is not refused.
_SLACK = 1e-12


@dataclass(frozen=True)
class Objective:
    """Constants of the objective, along the path that training takes.

    All are at least 0; those of effects that are absent may stay 0. "Mean" is over
    devices and runs: a bound that holds on every device always is one, too.

    Parameters
    ----------
    gap : float
        f(x0) - inf f.
    smoothness : float
        L: every device's objective has an L-Lipschitz gradient. Above 0.
    noise_variance : float
        sigma^2: mean of ``|g - E g|^2``, g being the stochastic gradient of a device,
        front and back, without dropout.
    front_gradient : float
        G: mean of ``|E g_front|^2 <= G^2``, of the layers before the cut. A sum over
        these layers, so it grows with the cut.
    front_noise_variance : float, optional
        sigma_f^2: the part of `noise_variance` that is the front's; all by default.
    front_norm : float
        U: mean of ``|front's weights|^2 <= U^2``.
    heterogeneity : float
        zeta: mean of ``|grad f_n - grad f|^2 <= zeta^2``. Needed only if some device
        does not hold a coordinate that others hold.
    dropout_variance : float
        tau^2: dropout at the cut adds at most ``r tau^2`` to `noise_variance`.
    dropout_bias : float
        b: dropout at the cut moves a device's mean gradient by at most ``r b``. 0 if
        the back is linear in the activations and the loss in the back's output, or to
        bound the gradient of the objective with dropout.
    gradient_bias : float
        e: any other deviation of the mean gradient, for example of weight gradients
        from activations in 8 bits.

    Raises
    ------
    SettingError
        If a constant is negative or not finite, `smoothness` is 0, or the front's noise
        is above all noise.
    """

    gap: float
    smoothness: float
    noise_variance: float = 0.0
    front_gradient: float = 0.0
    front_noise_variance: float | None = None
    front_norm: float = 0.0
    heterogeneity: float = 0.0
    dropout_variance: float = 0.0
    dropout_bias: float = 0.0
    gradient_bias: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise SettingError(f"{field.name} is {value}; give a number >= 0")
        if self.smoothness == 0:
            raise SettingError("smoothness is 0; give a number above 0")
        if self.front_noise > self.noise_variance:
            raise SettingError(
                f"front_noise_variance is {self.front_noise}, above noise_variance, "
                f"{self.noise_variance}, of which it is a part"
            )

    @property
    def front_noise(self) -> float:
        """The front's part of the noise, sigma_f^2."""
        if self.front_noise_variance is None:
            return self.noise_variance
        return self.front_noise_variance


@dataclass(frozen=True)
class Training:
    """How the objective is trained.

    Parameters
    ----------
    num_steps : int
        T: steps in all, at least 1.
    step_size : float
        eta: learning rate of plain SGD on both halves, above 0.
    num_devices : int (default: 1)
        N: devices; all take part in every step.
    aggregate_every : int (default: 1)
        I: steps between aggregations of the fronts.
    gradient_bits : int, optional
        Bits of the quantized gradients, 2 to 8; None for exact gradients.
    update_bits : int, optional
        Bits of the quantized model updates, without error feedback.
    bucket : int (default: 512)
        Bucket of both quantizers.
    pruning_error : float (default: 0)
        delta in [0, 1]: pruning changes a front by at most delta times its norm.
    coverage : int, optional
        Gamma: each coordinate that any device holds is held by at least so many. By
        default all devices: they share a mask, or none is pruned.
    activation_dropout : float (default: 0)
        p in [0, 1); for a `DropMask`, ``1 - num_kept / num_units``.

    Raises
    ------
    SettingError
        If a field is out of range.
    """

    num_steps: int
    step_size: float
    num_devices: int = 1
    aggregate_every: int = 1
    gradient_bits: int | None = None
    update_bits: int | None = None
    bucket: int = DEFAULT_BUCKET
    pruning_error: float = 0.0
    coverage: int | None = None
    activation_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_devices", "aggregate_every"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SettingError(f"{name} is {value!r}; give a whole number >= 1")
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            raise SettingError(f"step_size is {self.step_size}; give one above 0")
        if not 0 <= self.pruning_error <= 1:
            raise SettingError(
                f"pruning_error is {self.pruning_error}; give a number in [0, 1]"
            )
        if not 1 <= self.holders <= self.num_devices:
            raise SettingError(
                f"coverage is {self.coverage}; give 1 to {self.num_devices} devices"
            )
        require_dropout(self.activation_dropout)
        # Both raise SettingError for bits or buckets out of range.
        _ = self.gradient_variance, self.update_variance

    @property
    def holders(self) -> int:
        """Gamma."""
        return self.num_devices if self.coverage is None else self.coverage

    @property
    def gradient_variance(self) -> float:
        """q: ``E |Q(g) - g|^2 <= q |g|^2``."""
        if self.gradient_bits is None:
            return 0.0
        return qsgd_variance(self.gradient_bits, self.bucket)

    @property
    def update_variance(self) -> float:
        """q_up: the same of a model update."""
        if self.update_bits is None:
            return 0.0
        return update_variance(self.update_bits, self.bucket)

    @property
    def dropout_ratio(self) -> float:
        """r: variance of a kept-and-scaled activation over its square."""
        return self.activation_dropout / (1 - self.activation_dropout)


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
    spread = t.num_devices / t.holders
    noise = o.noise_variance + r * o.dropout_variance
    noise += t.gradient_variance * _front_moment(o, t)
    noise += t.update_variance * _moved_per_step(o, t) ** 2
    strayed = _drift(o, t) + t.pruning_error * o.front_norm
    error = math.sqrt(spread - 1) * o.heterogeneity
    error += math.sqrt(spread) * o.smoothness * strayed
    error += math.sqrt(spread) * (r * o.dropout_bias + o.gradient_bias)
    return Bound(
        start=2 * o.gap / (t.step_size * t.num_steps),
        noise=o.smoothness * t.step_size * noise * spread / t.holders,
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
    return t.step_size * math.sqrt(t.num_devices / t.holders) * (along + about)
