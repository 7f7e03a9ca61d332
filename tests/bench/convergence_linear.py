"""Linear models split in two, whose constants of the convergence bound are computed.

A device's front maps the first `cut` of 32 features to 8 activations, each a weighted
sum of its own features; the server adds the other features, weighted by the back::

    features[:cut] * u --sum by eights--> h (8,) --dropout--> sum + features[cut:] @ v

The loss is least squares or logistic, with a ridge. A step takes one example a device,
so the mean, variance and second moment of its gradient, over examples and dropout
masks, are exact sums over 24 examples and at most 28 masks.
"""

import itertools
from dataclasses import dataclass, field
from functools import cache

import torch

from flwr_slfac.lightweight import DropMask, Objective, Training, convergence_bound
from flwr_slfac.lightweight.quantization import pack_update, quantize, unpack_update

NUM_FEATURES, NUM_UNITS, NUM_EXAMPLES = 32, 8, 24
NUM_DEVICES, NUM_RUNS = 4, 3
NUM_STEPS = 48
RIDGE = 0.05
# In units of 1 / L.
STEP = 0.1
Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Data:
    """Examples of every device: features (N, S, F), targets (N, S), kind of loss."""

    features: Tensor
    targets: Tensor
    logistic: bool

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the derivative of the loss in the output."""
        if self.logistic:
            return -targets * torch.sigmoid(-targets * outputs)
        return outputs - targets

    def loss(self, x: Tensor) -> float:
        """Return f of weights (F,)."""
        outputs = self.features @ x
        if self.logistic:
            fit = torch.nn.functional.softplus(-self.targets * outputs).mean()
        else:
            fit = (outputs - self.targets).square().mean() / 2
        return float(fit + RIDGE / 2 * x.square().sum())

    def gradients(self, x: Tensor) -> Tensor:
        """Return each device's gradient (R, N, F) at its own weights (R, N, F)."""
        outputs = torch.einsum("nsf,rnf->rns", self.features, x)
        slopes = self.slope(outputs, self.targets)
        fit = torch.einsum("nsf,rns->rnf", self.features, slopes) / NUM_EXAMPLES
        return fit + RIDGE * x

    @property
    def smoothness(self) -> float:
        """L: the largest curvature of any device's objective."""
        gram = self.features.mT @ self.features / NUM_EXAMPLES
        top = float(torch.linalg.eigvalsh(gram).max())
        return (top / 4 if self.logistic else top) + RIDGE

    @cache  # noqa: B019
    def minimum(self) -> float:
        """Return the smallest loss, by Newton's method on a strongly convex f."""
        x = torch.zeros(NUM_FEATURES, dtype=torch.float64)
        rows, targets = self.features.flatten(0, 1), self.targets.flatten()
        for _ in range(50):
            every = x.expand(1, NUM_DEVICES, -1)
            gradient = self.gradients(every).mean((0, 1))
            chance = torch.sigmoid(rows @ x * targets)
            curvature = (
                chance * (1 - chance) if self.logistic else torch.ones(len(rows))
            )
            hessian = (rows.mT * curvature) @ rows / len(rows)
            hessian += RIDGE * torch.eye(NUM_FEATURES)
            x = x - torch.linalg.solve(hessian, gradient)
        assert gradient.norm() < 1e-9
        return self.loss(x)


def make_data(logistic: bool) -> Data:
    """Return data whose devices differ in features and in the weights behind them."""
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    features = normal(NUM_DEVICES, NUM_EXAMPLES, NUM_FEATURES)
    features = features * (1 + 0.3 * normal(NUM_DEVICES, 1, 1).abs()) / 4
    truth = 2 * normal(NUM_FEATURES) + 0.7 * normal(NUM_DEVICES, NUM_FEATURES)
    outputs = torch.einsum("nsf,nf->ns", features, truth)
    outputs = outputs + 0.2 * normal(NUM_DEVICES, NUM_EXAMPLES)
    return Data(features, outputs.sign() if logistic else outputs, logistic)


@dataclass(frozen=True)
class Setting:
    """One point of the grid; `unlike` devices: only every other one is pruned."""

    cut: int
    aggregate_every: int
    bits: int | None
    rho: float
    unlike: bool
    p: float


@dataclass
class Seen:
    """The constants met on the path, and the squared gradients there.

    A constant is a mean over runs and devices at one step; the largest step counts.
    """

    largest: dict[str, float] = field(default_factory=dict)
    squared: list[float] = field(default_factory=list)

    def note(self, **values: Tensor) -> None:
        """Keep the larger of what was seen and the mean of what is."""
        for name, value in values.items():
            self.largest[name] = max(self.largest.get(name, 0.0), float(value.mean()))


def all_masks(p: float) -> Tensor:
    """Return every dropout mask (M, D), scaled; one of ones without dropout."""
    kept = DropMask((1, NUM_UNITS), p, 0).num_kept
    rows = [
        [float(i in subset) for i in range(NUM_UNITS)]
        for subset in itertools.combinations(range(NUM_UNITS), kept)
    ]
    return torch.tensor(rows, dtype=torch.float64) * NUM_UNITS / kept


def over_features(masks: Tensor, cut: int) -> Tensor:
    """Return masks of units (..., D) as factors of the features (..., F)."""
    front = masks.repeat_interleave(cut // NUM_UNITS, -1)
    return torch.cat([front, torch.ones(*masks.shape[:-1], NUM_FEATURES - cut)], -1)


def outcomes(data: Data, x: Tensor, factors: Tensor, held: Tensor) -> Tensor:
    """Return the gradient (R, N, S * M, F) of every example and mask, where held."""
    inputs = data.features[:, :, None] * factors
    outputs = torch.einsum("nsmf,rnf->rnsm", inputs, x)
    slopes = data.slope(outputs, data.targets[..., None])
    every = torch.einsum("rnsm,nsmf->rnsmf", slopes, inputs).flatten(2, 3)
    return (every + RIDGE * x[:, :, None]) * held[:, :, None]


def note_constants(
    seen: Seen, data: Data, setting: Setting, x: Tensor, mean: Tensor, held: Tensor
) -> None:
    """Compute what the theorem assumes, at the weights of this step."""
    cut = setting.cut
    ones = torch.ones(1, NUM_FEATURES, dtype=torch.float64)
    plain = outcomes(data, x, ones, held)
    every = plain
    if setting.p:
        every = outcomes(data, x, over_features(all_masks(setting.p), cut), held)
    shift = every.mean(2) - plain.mean(2)
    noise, dropped = (g.var(2, correction=0) for g in (plain, every))
    gradients = data.gradients(mean[:, None].expand_as(x))
    spread = gradients - gradients.mean(1, keepdim=True)
    seen.note(
        noise_variance=noise.sum(-1),
        front_noise_variance=noise[..., :cut].sum(-1),
        dropout_variance=(dropped - noise).sum(-1),
        dropout_bias=shift.square().sum(-1),
        front_gradient=every.mean(2)[..., :cut].square().sum(-1),
        heterogeneity=spread.square().sum(-1),
    )
    somebody = held.amax(1)
    squared = (gradients.mean(1) * somebody).square().sum(-1).mean()
    seen.squared.append(float(squared))


def hold(setting: Setting, front: Tensor) -> Tensor:
    """Return which features (R, N, F) each device holds: the largest of its front."""
    cut = setting.cut
    held = torch.ones(NUM_RUNS, NUM_DEVICES, NUM_FEATURES, dtype=torch.float64)
    smallest = front.abs().argsort(-1)[:, : round(setting.rho * cut)]
    pruned = torch.ones(NUM_RUNS, cut, dtype=torch.float64)
    pruned.scatter_(1, smallest, 0.0)
    step = 2 if setting.unlike else 1
    held[:, ::step, :cut] = pruned[:, None]
    return held


def sampled_gradients(
    data: Data, setting: Setting, x: Tensor, step: int, generator: torch.Generator
) -> Tensor:
    """Return one stochastic gradient (R, N, F) a device: one example, one mask."""
    picks = torch.randint(NUM_EXAMPLES, (NUM_RUNS, NUM_DEVICES), generator=generator)
    devices = torch.arange(NUM_DEVICES)
    inputs, targets = data.features[devices, picks], data.targets[devices, picks]
    if setting.p:
        ones = torch.ones(1, NUM_UNITS, dtype=torch.float64)
        masks = []
        for i in range(NUM_RUNS * NUM_DEVICES):
            mask = DropMask((1, NUM_UNITS), setting.p, seed=step * 1000 + i)
            masks.append(mask.scatter(mask.gather(ones))[0])
        units = torch.stack(masks).reshape(NUM_RUNS, NUM_DEVICES, NUM_UNITS)
        inputs = inputs * over_features(units, setting.cut)
    slopes = data.slope((inputs * x).sum(-1), targets)
    return slopes[..., None] * inputs + RIDGE * x


def sent(
    before: Tensor, after: Tensor, bits: int | None, generator: torch.Generator
) -> Tensor:
    """Return fronts (R, N, cut) as they arrive."""
    if bits is None:
        return after
    rows = []
    for old, new in zip(before.flatten(0, 1), after.flatten(0, 1), strict=True):
        data = pack_update({"w": new}, {"w": old}, bits, generator, bucket=old.numel())
        rows.append(unpack_update(data, {"w": old})["w"])
    return torch.stack(rows).reshape(after.shape)


def run(
    data: Data, setting: Setting, num_steps: int, step_size: float
) -> tuple[float, Objective, Training]:
    """Train and return the measured mean, and what the bound is computed from."""
    cut, every, bits = setting.cut, setting.aggregate_every, setting.bits
    generator = torch.Generator().manual_seed(1)
    seen = Seen()
    mean = torch.full((NUM_RUNS, NUM_FEATURES), 0.5, dtype=torch.float64)
    held = hold(setting, mean[:, :cut])
    x = received = mean[:, None] * held
    for step in range(num_steps):
        if step % every == 0:
            held = hold(setting, mean[:, :cut])
            x = received = mean[:, None] * held
            lost = ((1 - held) * mean[:, None]).square().sum(-1).mean()
            norm = mean[:, :cut].square().sum(-1).mean()
            seen.note(pruning_error=lost / norm, front_norm=norm)
        note_constants(seen, data, setting, x, mean, held)
        gradient = sampled_gradients(data, setting, x, step, generator) * held
        if bits is not None:
            front = gradient[..., :cut].contiguous()
            gradient[..., :cut] = quantize(front, bits, generator, bucket=cut)
        x = x - step_size * gradient
        x[..., cut:] = x[..., cut:].mean(1, keepdim=True)
        if (step + 1) % every == 0:
            x = torch.cat(
                [
                    sent(received[..., :cut], x[..., :cut], bits, generator),
                    x[..., cut:],
                ],
                -1,
            )
        holders = held.sum(1)
        average = (x * held).sum(1) / holders.clamp(min=1)
        mean = torch.where(holders > 0, average, mean)
    return sum(seen.squared) / num_steps, *bound_inputs(
        seen, data, setting, num_steps, step_size
    )


def bound_inputs(
    seen: Seen, data: Data, setting: Setting, num_steps: int, step_size: float
) -> tuple[Objective, Training]:
    """Return the constants that were met, and the settings."""
    most = seen.largest
    root = {name: max(value, 0.0) ** 0.5 for name, value in most.items()}
    training = Training(
        num_steps=num_steps,
        step_size=step_size,
        num_devices=NUM_DEVICES,
        aggregate_every=setting.aggregate_every,
        gradient_bits=setting.bits,
        update_bits=setting.bits,
        bucket=setting.cut,
        pruning_error=root["pruning_error"],
        coverage=NUM_DEVICES // 2 if setting.unlike else NUM_DEVICES,
        activation_dropout=setting.p,
    )
    r = training.dropout_ratio
    start = torch.full((NUM_FEATURES,), 0.5, dtype=torch.float64)
    objective = Objective(
        gap=data.loss(start) - data.minimum(),
        smoothness=data.smoothness,
        noise_variance=most["noise_variance"],
        front_noise_variance=most["front_noise_variance"],
        front_gradient=root["front_gradient"],
        front_norm=root["front_norm"],
        heterogeneity=root["heterogeneity"],
        dropout_variance=max(most["dropout_variance"], 0.0) / r if r else 0.0,
        dropout_bias=root["dropout_bias"] / r if r else 0.0,
    )
    return objective, training


def grid() -> list[Setting]:
    """Return every combination, cuts first."""
    return [
        Setting(cut, every, bits, rho, unlike, p)
        for cut in (8, 16, 24)
        for every in (1, 4, 16)
        for bits in (None, 8, 3)
        for rho, unlike in ((0.0, False), (0.3, False), (0.3, True))
        for p in (0.0, 0.25)
    ]


@dataclass(frozen=True)
class Point:
    """A point of the grid, what was measured there and what the bound says."""

    setting: Setting
    measured: float
    bound: float


def check(logistic: bool, num_steps: int = NUM_STEPS) -> list[Point]:
    """Measure the whole grid, and compute the bound at each point."""
    data = make_data(logistic)
    points = []
    for setting in grid():
        measured, objective, training = run(
            data, setting, num_steps, STEP / data.smoothness
        )
        bound = convergence_bound(objective, training).total
        points.append(Point(setting, measured, bound))
    return points
