"""Trials of plans: both kernels count alike, and what suits a tensor is found."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec import Waterfill, encode
from flwr_slfac.codec.kernels import NUM_KEYS
from flwr_slfac.codec.kernels.choice import REFERENCE, compiled_kernels
from tests.codec.extension import needs_extension

# About what of a small frame does not depend on the choice.
_HEADER_BYTES = 60


@needs_extension
@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(1, 600),
    st.sampled_from([0.1, 3.0, 1e4, 1e12]),
)
def test_both_kernels_count_levels_alike(
    seed: int, num_rows: int, num_columns: int, scale: float
) -> None:
    """Counts by class and octave are the same, of any columns, halves included."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((num_rows, num_columns)).astype(np.float32) * scale
    halves = np.rint(matrix) + np.float32(0.6)
    matrix = np.where(rng.random(matrix.shape) < 0.2, halves, matrix)
    matrix = np.ascontiguousarray(matrix, np.float32)
    rows = rng.integers(-60, 60, num_rows).astype(np.int16)
    columns = rng.integers(-60, 60, num_columns).astype(np.int16)
    first, last = sorted(rng.integers(0, num_columns, 2, endpoint=True).tolist())
    found = []
    for which in (REFERENCE, compiled_kernels()):
        assert which is not None
        counts = np.zeros((60, NUM_KEYS), np.int64)
        which.count_levels(matrix, first, last, rows, columns, 17, 0.75, counts)
        found.append(counts)
    np.testing.assert_array_equal(*found)
    assert found[0].sum() == num_rows * (last - first)


@needs_extension
def test_the_extension_refuses_counts_that_do_not_fit() -> None:
    """Sizes, columns and types are checked before anything is counted."""
    count = importlib.import_module("flwr_slfac.codec.kernels.compiled").count_levels
    matrix, counts = np.ones((2, 3), np.float32), np.zeros((60, NUM_KEYS), np.int64)
    rows, columns = np.zeros(2, np.int16), np.zeros(3, np.int16)
    good = [matrix, 0, 3, rows, columns, 0, 1.0, counts]
    count(*good)
    for place, wrong in (
        (0, matrix[:1]), (1, -1), (2, 4), (1, 4), (3, rows[:1]), (4, columns[:2]),
        (3, rows[:0]), (5, 2**40), (7, counts[1:]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="does not fit"):
            count(*good[:place], wrong, *good[place + 1 :])


def sparse_vectors() -> torch.Tensor:
    """Return vectors that share a shape of energies, mostly zero."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    return (x - 1.2).relu()


def smooth_maps() -> torch.Tensor:
    """Return smooth maps of few sources."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 4, 16, 16, generator=generator).cumsum(2).cumsum(3)
    mix = torch.randn(16, 4, generator=generator)
    return torch.einsum("kc,nchw->nkhw", mix, x)


def steps_of_edges() -> torch.Tensor:
    """Return maps that are constant in squares."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(32, 4, 4, 4, generator=generator)
    return x.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize("make", [sparse_vectors, smooth_maps, steps_of_edges])
@pytest.mark.parametrize("nrmse", [0.05, 0.2, 0.5])
def test_auto_is_near_the_best_fixed_choice(make: object, nrmse: float) -> None:
    """No basis, with or without channels, takes 15 percent and a header's size less."""
    x = make()  # type: ignore[operator]
    auto = len(encode(x, Waterfill(nrmse=nrmse)))
    bases = ["dct"] if x.ndim == 2 else ["identity", "dct", "haar", "sym4"]
    for basis in bases:
        for channels in ("klt", None):
            codec = Waterfill(nrmse=nrmse, basis=basis, channels=channels)
            fixed = len(encode(x, codec))
            assert auto < 1.15 * fixed + _HEADER_BYTES, (basis, channels)
