"""What the bound on convergence is of: an objective, and how it is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.dropout import require_dropout
from flwr_slfac.lightweight.quantization.qsgd import DEFAULT_BUCKET, qsgd_variance
from flwr_slfac.lightweight.quantization.update_pack import update_variance


@dataclass(frozen=True)
class Objective:
    """Constants of the objective, along the path that training takes.

    All are at least 0; those of effects that are absent may stay 0. "Mean" is over
    devices, by their weights, and runs: a bound that holds on every device always is
    one, too. f is the mean of the devices' objectives, by their weights.

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
    weights : sequence of float, optional
        One a device, above 0: its number of examples, by which fronts are averaged and
        a joint step weighs its batch. All alike by default.

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
    weights: Sequence[float] | None = None

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
        given = self.weights
        if given is not None and (
            len(given) != self.num_devices
            or not all(math.isfinite(w) and w > 0 for w in given)
        ):
            raise SettingError(
                f"weights is {given!r}; give {self.num_devices} numbers above 0"
            )
        require_dropout(self.activation_dropout)
        # Both raise SettingError for bits or buckets out of range.
        _ = self.gradient_variance, self.update_variance

    @property
    def holders(self) -> int:
        """Gamma."""
        return self.num_devices if self.coverage is None else self.coverage

    @property
    def spread(self) -> float:
        """1/W: all weight over the least that holds a coordinate; N/Gamma if alike."""
        if self.weights is None:
            return self.num_devices / self.holders
        return sum(self.weights) / sum(sorted(self.weights)[: self.holders])

    @property
    def noise_share(self) -> float:
        """w_max/W^2: what is left of devices' noise in a mean; N/Gamma^2 if alike."""
        if self.weights is None:
            return self.spread / self.holders
        return max(self.weights) / sum(self.weights) * self.spread**2

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
