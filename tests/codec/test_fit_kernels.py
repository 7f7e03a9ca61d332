"""Energies of planes are fitted alike by both kernels, to the bit."""

import importlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec.kernels import PlaneFit, half_units
from flwr_slfac.codec.kernels.choice import REFERENCE, compiled_kernels
from tests.codec.extension import assert_refused, needs_extension


def drawn(num_samples: int, num_channels: int, spread: float, seed: int) -> np.ndarray:
    """Return energies that are about separable, some of them zero."""
    rng = np.random.default_rng(seed)
    octaves = rng.normal(0, spread, (num_samples, 1)) + rng.normal(
        0, spread, num_channels
    )
    energies = np.exp2(octaves) * rng.gamma(0.5, size=octaves.shape)
    return np.ascontiguousarray(energies * (rng.random(octaves.shape) > 0.1))


@needs_extension
@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([1e-30, 1e-3, 1e9]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_both_kernels_give_the_same_bits(
    num_samples: int,
    num_channels: int,
    spread: float,
    level: float,
    alike: bool,
    seed: int,
) -> None:
    """All that is told of energies is that of NumPy."""
    energies = drawn(num_samples, num_channels, spread, seed)
    one, other = (
        way.fit_planes(energies, 49, level, alike)  # type: ignore[union-attr]
        for way in (REFERENCE, compiled_kernels())
    )
    for field in PlaneFit.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_a_product_is_found_again() -> None:
    """Energies that are separable are fitted as they are, planes in their order."""
    a, u = np.array([0.5, 2.0, 0.5]), np.array([64.0, 1.0, 4.0, 16.0])
    fit = REFERENCE.fit_planes(np.multiply.outer(a, u) * 9, 9, 1e-9, False)
    np.testing.assert_allclose(np.multiply.outer(fit.a, fit.u), np.outer(a, u))
    assert fit.a.mean() == pytest.approx(1)
    of_planes = np.outer(fit.a, fit.u).reshape(-1)[fit.order]
    assert (np.diff(of_planes) <= 1e-9).all()
    np.testing.assert_allclose(fit.weights * of_planes, 1, rtol=1e-6)
    assert fit.weighted == pytest.approx(of_planes.size)


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-37, 1e37))
def test_half_units_are_the_nearest(energy: float) -> None:
    """Twice the logarithm is rounded, but for numbers just between."""
    exact = 2 * math.log2(energy)
    if abs(exact % 1 - 0.5) > 1e-9:
        assert half_units(np.array([energy]))[0] == round(exact)


@needs_extension
def test_the_extension_refuses_what_does_not_fit() -> None:
    """Sizes are checked before anything is touched."""
    compiled = importlib.import_module("flwr_slfac.codec.kernels.compiled")
    rows, columns = np.zeros(3), np.zeros(4)
    halves = np.zeros(3, np.int64), np.zeros(4, np.int64)
    found = rows, columns, *halves, np.zeros(12, np.int64), np.zeros(12, np.float32)
    good = [np.ones((3, 4)), 9.0, 1.0, False, *found]
    changes = [(0, np.ones(11)), *((4 + i, part[1:]) for i, part in enumerate(found))]
    assert_refused(compiled.fit_planes, good, changes)
