"""The bound on the gradient: its formula, its limits, and that training keeps it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight import Objective, Training, convergence_bound
from flwr_slfac.lightweight.quantization import qsgd_variance, update_variance
from tests.bench.convergence_linear import STEP, Setting, make_data, run

OBJECTIVE = Objective(
    gap=3.0,
    smoothness=2.0,
    noise_variance=0.7,
    front_gradient=1.5,
    front_noise_variance=0.4,
    front_norm=5.0,
    heterogeneity=0.3,
    dropout_variance=0.6,
    dropout_bias=0.2,
    gradient_bias=0.05,
)
TRAINING = Training(
    num_steps=50,
    step_size=0.02,
    num_devices=6,
    aggregate_every=4,
    gradient_bits=4,
    update_bits=3,
    bucket=64,
    pruning_error=0.1,
    coverage=3,
    activation_dropout=0.25,
)


def test_the_bound_is_the_theorem() -> None:
    """The three terms equal the theorem of the README, written out once more."""
    bound = convergence_bound(OBJECTIVE, TRAINING)
    q, q_up, r = qsgd_variance(4, 64), update_variance(3, 64), 1 / 3
    moment = 1.5**2 + 0.4 + r * 0.6
    noise = math.sqrt(0.4 + r * 0.6 + q * moment)
    squares = sum(j**2 for j in range(4)) / 4
    mean = sum(range(4)) / 4
    drift = 0.02 * math.sqrt(2) * (1.5 * math.sqrt(squares) + noise * math.sqrt(mean))
    wanted_noise = 0.7 + r * 0.6 + q * moment + q_up * (2 * 1.5 + noise) ** 2
    wanted_bias = 0.3 + math.sqrt(2) * (2 * (drift + 0.1 * 5) + r * 0.2 + 0.05)
    assert bound.start == pytest.approx(2 * 3 / (0.02 * 50))
    assert bound.noise == pytest.approx(2 * 0.02 * 6 / 9 * wanted_noise)
    assert bound.bias == pytest.approx(wanted_bias**2)
    assert bound.total == pytest.approx(bound.start + bound.noise + bound.bias)


def test_without_any_reduction_it_is_the_bound_of_sgd() -> None:
    """With I = 1 and nothing pruned, dropped or quantized only SGD's terms are left."""
    objective = Objective(gap=1.0, smoothness=4.0, noise_variance=0.5)
    bound = convergence_bound(objective, Training(100, 0.1, num_devices=5))
    assert bound.total == pytest.approx(2 / (0.1 * 100) + 4 * 0.1 * 0.5 / 5)


@given(st.integers(0, 40), st.integers(2, 7), st.floats(0, 0.9), st.floats(0, 0.9))
def test_less_of_anything_never_lowers_the_bound(
    more: int, bits: int, p: float, delta: float
) -> None:
    """More steps between aggregations, pruning or dropout, fewer bits: no lower."""
    here = convergence_bound(OBJECTIVE, TRAINING).total
    i = TRAINING.aggregate_every
    assert _bound(aggregate_every=i + more) >= here
    assert _bound(gradient_bits=bits) >= _bound(gradient_bits=bits + 1)
    assert _bound(update_bits=bits) >= _bound(update_bits=bits + 1)
    assert _bound(update_bits=bits) >= _bound(update_bits=None)
    assert _bound(pruning_error=delta) >= _bound(pruning_error=delta / 2)
    assert _bound(activation_dropout=p) >= _bound(activation_dropout=p / 2)
    assert _bound(coverage=3) >= _bound(coverage=6)


def test_drift_grows_with_the_layers_before_the_cut_only_if_there_is_any() -> None:
    """With I = 1 the front's gradient is of no account, with I > 1 it is."""
    plain = Training(100, 0.1, num_devices=4)
    deep = replace(OBJECTIVE, front_gradient=9.0)
    assert convergence_bound(deep, plain) == convergence_bound(OBJECTIVE, plain)
    rarely = replace(plain, aggregate_every=2)
    apart = (
        convergence_bound(deep, rarely).bias - convergence_bound(OBJECTIVE, rarely).bias
    )
    assert apart > 0


@pytest.mark.parametrize("logistic", [False, True])
@pytest.mark.parametrize(
    "setting",
    [
        Setting(16, 1, None, 0.0, False, 0.0),
        Setting(16, 8, 3, 0.0, False, 0.0),
        Setting(24, 4, 8, 0.3, True, 0.25),
        Setting(8, 4, None, 0.3, False, 0.5),
    ],
)
def test_training_stays_under_the_bound(setting: Setting, logistic: bool) -> None:
    """On linear models whose constants are computed, the measured mean obeys it."""
    data = make_data(logistic)
    measured, objective, training = run(data, setting, 24, STEP / data.smoothness)
    assert measured <= convergence_bound(objective, training).total


@given(st.integers(1, 6), st.floats(1e-3, 1e3))
def test_equal_weights_are_no_weights(coverage: int, weight: float) -> None:
    """Devices that weigh alike have the bound of the plain theorem."""
    weighted = _bound(coverage=coverage, weights=[weight] * 6)
    assert weighted == pytest.approx(_bound(coverage=coverage))


def test_unlike_weights_enter_as_the_theorem_says() -> None:
    """N/Gamma becomes 1/W of the lightest holders, N/Gamma^2 becomes w_max/W^2."""
    training = replace(TRAINING, weights=[5, 1, 4, 2, 3, 5])
    assert training.spread == pytest.approx(20 / (1 + 2 + 3))
    assert training.noise_share == pytest.approx(5 / 20 * (20 / 6) ** 2)
    alike = replace(TRAINING, weights=None)
    for one, other in ((training.spread, alike.spread), (20 / 6, 2)):
        assert one > other
    assert _bound(weights=training.weights) > _bound()


def test_weighted_training_stays_under_its_bound_only() -> None:
    """Of quadratics by weight, noise breaks the bound of equal weights, not its own.

    Devices of examples 20, 1, 1, 1; the run starts in the optimum, so all is noise.
    """
    weights, num_steps, eta, dims = [20, 1, 1, 1], 20000, 0.1, 5
    generator = torch.Generator().manual_seed(0)
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    centres = torch.randn(4, dims, generator=generator, dtype=torch.float64)
    best = share @ centres
    x, squares = best.clone(), 0.0
    for _ in range(num_steps):
        squares += float((x - best).square().sum())
        noise = torch.randn(4, dims, generator=generator, dtype=torch.float64)
        x = x - eta * (share @ (x - centres + noise))
    objective = Objective(gap=0.0, smoothness=1.0, noise_variance=dims)
    plain = Training(num_steps, eta, num_devices=4)
    measured = squares / num_steps
    assert measured > convergence_bound(objective, plain).total
    own = replace(plain, weights=weights)
    assert measured <= convergence_bound(objective, own).total


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gap", -1.0),
        ("gap", math.nan),
        ("smoothness", 0.0),
        ("smoothness", math.inf),
        ("noise_variance", -1e-9),
        ("front_noise_variance", 0.8),
        ("dropout_bias", -1.0),
    ],
)
def test_constants_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    """A negative, infinite or contradictory constant raises SettingError."""
    with pytest.raises(SettingError, match=name):
        replace(OBJECTIVE, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", 0),
        ("num_devices", 1.5),
        ("aggregate_every", 0),
        ("step_size", 0.0),
        ("step_size", math.nan),
        ("pruning_error", 1.1),
        ("coverage", 7),
        ("coverage", 0),
        ("activation_dropout", 1.0),
        ("bits", 9),
        ("weights", (1.0, 2.0)),
        ("weights", (1.0, 2.0, 3.0, 4.0, 5.0, 0.0)),
        ("weights", (1.0, 2.0, 3.0, 4.0, 5.0, math.inf)),
        ("bucket", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    """A setting outside its range raises SettingError that names it."""
    field = "gradient_bits" if name == "bits" else name
    with pytest.raises(SettingError, match=name):
        replace(TRAINING, **{field: value})


def test_a_step_beyond_the_theorem_is_refused() -> None:
    """The theorem holds up to 1 / L; a larger step raises and names the limit."""
    assert convergence_bound(OBJECTIVE, replace(TRAINING, step_size=0.5)).total > 0
    with pytest.raises(SettingError, match=r"1 / smoothness = 0\.5"):
        convergence_bound(OBJECTIVE, replace(TRAINING, step_size=0.51))


def _bound(**changes: object) -> float:
    return convergence_bound(OBJECTIVE, replace(TRAINING, **changes)).total  # type: ignore[arg-type]
