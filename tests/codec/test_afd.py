import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec.slfac.ablations import deviation_order, largest_first, partition
from flwr_slfac.codec.slfac.afd import components_at, decompose
from flwr_slfac.codec.slfac.groups import group_by_eight


def coefficients(n: int, lanes: int, seed: int) -> torch.Tensor:
    """Return whole numbers, whose energies are exact in any order of summing."""
    random = np.random.default_rng(seed)
    values = random.integers(-9, 10, (n, lanes)) * (random.random((n, lanes)) < 0.7)
    return torch.from_numpy(values).to(torch.float64)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.25, 0.5, 0.75, 0.9375, 1.0]),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_components_by_definition(
    dtype: torch.dtype, n: int, lanes: int, seed: int, theta: float
) -> None:
    """The split is the smallest prefix with theta of the energy; ends are min, max."""
    coeffs = coefficients(n, lanes, seed)
    found = decompose(group_by_eight(coeffs.to(dtype)), n, theta)
    for k in range(lanes):
        row = coeffs[:, k].numpy()
        total = (row**2).sum()
        split = next(
            i for i in range(1, n + 1) if (row[:i] ** 2).sum() >= theta * total
        )
        assert int(found.split[k]) == split
        for part, values in enumerate((row[:split], row[split:])):
            assert float(found.energy[part, k]) == (values**2).sum()
            assert float(found.ends[0, part, k]) == min(values, default=0)
            assert float(-found.ends[1, part, k]) == max(values, default=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_known_splits_give_the_components_of_decompose(
    n: int, lanes: int, seed: int
) -> None:
    """Components of a given split are those that decompose finds with it."""
    groups = group_by_eight(coefficients(n, lanes, seed))
    found = decompose(groups, n, 0.5)
    again = components_at(groups, n, found.split)
    for name in ("split", "energy", "ends"):
        assert torch.equal(getattr(found, name), getattr(again, name))


def test_the_tensor_is_not_written_to() -> None:
    """Decomposing float64 coefficients leaves them as they are."""
    coeffs = coefficients(24, 5, 1)
    kept = coeffs.clone()
    decompose(group_by_eight(coeffs), 24, 0.9)
    assert torch.equal(coeffs, kept)


def test_orders_of_the_ablations() -> None:
    """Largest magnitudes first; members first; largest deviations first."""
    coeffs = torch.tensor([[1.0, 0.0], [-5.0, 2.0], [3.0, 2.0]])
    assert largest_first(group_by_eight(coeffs), 3).t().tolist() == [
        [1, 2, 0],
        [1, 2, 0],
    ]
    member = torch.tensor([[False], [True], [False], [True]])
    assert partition(member).t().tolist() == [[1, 3, 0, 2]]
    chunks = [torch.tensor([[1.0, 1.0], [0.0, 4.0]]), torch.tensor([[2.0], [0.0]])]
    assert deviation_order(chunks).tolist() == [1, 0]
