import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec.slfac.ablations import equal_widths
from flwr_slfac.codec.slfac.fqc import spectral_widths

energies = st.lists(
    st.tuples(st.floats(0, 1e12), st.floats(0, 1e12)), min_size=1, max_size=6
)


@settings(max_examples=150, deadline=None)
@given(energies, st.sampled_from([(2, 8), (3, 3), (1, 5)]))
def test_widths_by_definition(
    pairs: list[tuple[float, float]], bit_widths: tuple[int, int]
) -> None:
    """A width is the formula's, the largest mean energy has the largest width."""
    energy = torch.tensor(pairs, dtype=torch.float64).t().contiguous()
    count = torch.full(energy.shape, 4)
    num_elements = 8 * len(pairs)
    found = spectral_widths(energy, count, 0.0, num_elements, bit_widths)
    narrow, wide = bit_widths
    variance = sum(map(sum, pairs)) / num_elements
    logs = [[math.log1p(e / 4 / variance) if variance else 0 for e in p] for p in pairs]
    largest = max(map(max, logs))
    for row, pair in enumerate(logs):
        for part, log in enumerate(pair):
            exact = narrow + (wide - narrow) * (log / largest if largest else 0)
            assert abs(int(found[part, row]) - exact) <= 0.5 + 1e-9
    if largest:
        assert int(found.max()) == wide


def test_a_tensor_without_energy_takes_the_smallest_width() -> None:
    """Zeros cost the smallest width."""
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    found = spectral_widths(zeros, torch.ones(2, 3), 0.0, 6, (2, 8))
    assert found.tolist() == [[2, 2, 2], [2, 2, 2]]


def test_a_constant_tensor_has_a_width() -> None:
    """Where the variance is rounding noise, its floor keeps widths in bounds."""
    energy = torch.tensor([[64.0], [0.0]], dtype=torch.float64)
    found = spectral_widths(energy, torch.tensor([[1], [63]]), 64.0, 64, (2, 8))
    assert found.tolist() == [[8], [2]]


@pytest.mark.parametrize(("bit_widths", "middle"), [((2, 8), 5), ((3, 4), 3)])
def test_equal_widths_are_the_middle(bit_widths: tuple[int, int], middle: int) -> None:
    """The ablations give each component the middle width, rounded down."""
    assert equal_widths(torch.ones(2, 2), bit_widths).tolist() == [[middle] * 2] * 2
