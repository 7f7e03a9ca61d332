"""Planes are transformed alike by both kernels: every bit, of every size and basis."""

import importlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec.kernels import PlaneTransform, kernels
from flwr_slfac.codec.kernels.choice import REFERENCE, compiled_kernels
from flwr_slfac.codec.transforms import (
    forward_rows,
    inverse_rows,
    parse_basis,
    plane_transform,
)
from flwr_slfac.errors import SettingError
from tests.codec.extension import assert_refused, needs_extension

BASES = ["dct", "identity", "haar", "sym4", "db8", "db38:1", "coif1:2"]
SIZES = st.lists(st.integers(1, 64), min_size=1, max_size=2)
# Squares of larger values overflow, which `Waterfill` sees to.
SCALES = {"plain": 1.0, "large": 1e12, "subnormal": 1e-42, "zeros": 0.0}


def drawn(num: int, size: int, kind: str, seed: int) -> np.ndarray:
    """Return planes of a kind, (num, size)."""
    rng = np.random.default_rng(seed)
    planes = rng.standard_normal((num, size)).astype(np.float32)
    if kind == "sparse":
        # Zeros of both signs, as a gradient behind a ReLU has.
        planes *= rng.random(planes.shape) > 0.8
    if kind == "not finite":
        planes[rng.random(planes.shape) > 0.99] = [np.inf, -np.inf, np.nan][seed % 3]
    return planes * np.float32(SCALES.get(kind, 1))


def transform_of(name: str, sizes: list[int]) -> PlaneTransform:
    """Return a basis's stages, or those of the DCT where it cannot do the sizes."""
    try:
        found = plane_transform(parse_basis(name), tuple(sizes))
    except SettingError:
        found = plane_transform(parse_basis("dct"), tuple(sizes))
    assert found is not None
    return found


def same(one: np.ndarray, other: np.ndarray) -> None:
    """Hold that all bits are equal, but which NaN a NaN is."""
    np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
    fine = ~np.isnan(one)
    np.testing.assert_array_equal(one[fine].view(np.int32), other[fine].view(np.int32))


@needs_extension
@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(BASES),
    SIZES,
    st.integers(1, 50),
    st.sampled_from([*SCALES, "sparse"]),
    st.integers(0, 2**32),
)
def test_both_kernels_give_the_same_bits(
    name: str, sizes: list[int], num: int, kind: str, seed: int
) -> None:
    """Coefficients, what is told of them, and planes again, are those of NumPy."""
    transform = transform_of(name, sizes)
    size = transform.height * transform.width
    planes = drawn(num + 3, size, kind, seed)
    rng = np.random.default_rng(seed)
    index = rng.permutation(num + 3)[:num]
    weights = rng.random(num).astype(np.float32)
    both = REFERENCE, compiled_kernels()
    found = []
    for way in both:
        coeffs = np.full((size, num), 7, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            told = way.forward_planes(planes, index, transform, coeffs, weights)  # type: ignore[union-attr]
        found.append((coeffs, *told))
    same(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_array_equal(found[0][2], found[1][2])
    for clamps in (False, True):
        back = [np.full_like(planes, 7) for _ in both]
        for way, result in zip(both, back, strict=True):
            way.inverse_planes(found[0][0], index, transform, result, clamps)  # type: ignore[union-attr]
        same(*back)


@needs_extension
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(BASES),
    SIZES,
    st.integers(1, 50),
    st.sampled_from([*SCALES, "sparse"]),
    st.integers(0, 2**32),
)
def test_spectra_are_scaled_coefficients_to_the_bit(
    name: str, sizes: list[int], num: int, kind: str, seed: int
) -> None:
    """Both kernels give coefficients times their scales, as planes lie."""
    transform = transform_of(name, sizes)
    size = transform.height * transform.width
    planes = drawn(num, size, kind, seed)
    scales = np.random.default_rng(seed).random(size).astype(np.float32)
    coeffs = np.empty((size, num), np.float32)
    REFERENCE.forward_planes(planes, np.arange(num), transform, coeffs)
    for way in (REFERENCE, compiled_kernels()):
        found = np.full_like(planes, 7)
        way.plane_spectra(planes, transform, scales, found)  # type: ignore[union-attr]
        same(found, np.ascontiguousarray((coeffs * scales[:, None]).T))


@needs_extension
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3000), st.sampled_from([*SCALES, "sparse"]))
def test_energies_are_the_same_bits(num: int, size: int, kind: str) -> None:
    """Sums of squares are those of NumPy to the bit, and of float64 to five digits."""
    planes = drawn(num, size, kind, size)
    found = compiled_kernels().plane_energies(planes)  # type: ignore[union-attr]
    np.testing.assert_array_equal(found, REFERENCE.plane_energies(planes))
    if kind != "subnormal":
        expected = np.square(planes.astype(np.float64)).sum(1)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@needs_extension
@pytest.mark.parametrize("seed", range(3))
def test_what_is_not_finite_stays_so_in_both(seed: int) -> None:
    """Infinite and undefined coefficients, as crafted frames have, give the same."""
    transform = transform_of("sym4", [8, 12])
    coeffs = drawn(96, 20, "not finite", seed)
    both = REFERENCE, compiled_kernels()
    back = [np.zeros((20, 96), np.float32) for _ in both]
    for way, result in zip(both, back, strict=True):
        with np.errstate(all="ignore"):
            way.inverse_planes(coeffs, np.arange(20), transform, result, False)  # type: ignore[union-attr]
    same(*back)
    assert not np.isfinite(back[0]).all()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BASES), SIZES, st.integers(1, 40))
def test_planes_of_float32_are_those_of_float64(
    name: str, sizes: list[int], num: int
) -> None:
    """The stages are the basis: PyTorch's products in float64 say the same."""
    basis = parse_basis(name)
    rows = torch.from_numpy(drawn(num, int(np.prod(sizes)), "plain", num))
    rows = rows.view(num, *sizes)
    try:
        expected = forward_rows(rows.double(), basis)
    except SettingError:
        return
    coeffs = forward_rows(rows, basis)
    torch.testing.assert_close(coeffs.double(), expected, rtol=0, atol=3e-5)
    back = inverse_rows(coeffs, basis)
    torch.testing.assert_close(back, rows, rtol=0, atol=6e-5)


@pytest.mark.parametrize("view", ["permuted", "strided", "expanded"])
def test_rows_may_lie_anyhow(view: str) -> None:
    """How rows lie in memory does not show, nor do the planes beside them."""
    x = torch.randn(12, 8, 8, generator=torch.Generator().manual_seed(0))
    x = {
        "permuted": x.transpose(1, 2),
        "strided": x[::2, :, ::2],
        "expanded": x[:1].expand(5, 8, 8),
    }[view]
    basis = parse_basis("dct")
    assert torch.equal(forward_rows(x, basis), forward_rows(x.contiguous(), basis))
    alone = [forward_rows(row[None], basis) for row in x]
    assert torch.equal(forward_rows(x, basis), torch.cat(alone, -1))


def test_threads_do_not_share_tiles() -> None:
    """Coefficients of two threads at once are those of one."""
    basis = parse_basis("sym4")
    rows = [torch.randn(40 + i, 16, 4 + 2 * i) for i in range(20)]
    alone = [forward_rows(part, basis) for part in rows]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = pool.map(lambda part: forward_rows(part, basis), rows)
            assert all(map(torch.equal, found, alone))


def test_large_planes_have_no_stages() -> None:
    """A size beyond the longest line leaves the plane to PyTorch."""
    assert plane_transform(parse_basis("dct"), (65,)) is None
    assert plane_transform(parse_basis("sym4"), (8, 128)) is None
    assert plane_transform(parse_basis("dct"), (0, 3)) is None


@needs_extension
def test_the_extension_refuses_planes_that_do_not_fit() -> None:
    """Sizes, indices and stages are checked before anything is touched."""
    compiled = importlib.import_module("flwr_slfac.codec.kernels.compiled")
    transform = transform_of("dct", [4, 6])
    numbers, weights = transform.packed
    planes, index = np.ones((5, 24), np.float32), np.array([4, 0, 2])
    coeffs, room = np.ones((24, 3), np.float32), np.zeros(3000, np.float32)
    of_planes, sums, ends = np.ones(3, np.float32), np.zeros(24), np.zeros(2, "f4")
    told = [sums, ends]
    good = [planes, index, numbers, weights, of_planes, room, coeffs, *told]
    stages = [(2, numbers[:-1]), (2, numbers[:2]), (3, weights[1:]), (2, numbers[:0])]
    for place in range(numbers.size):
        for wrong in (-1, 65, 2**30):
            changed = numbers.copy()
            changed[place] = wrong
            # Whether a line is a row is so for any number but zero.
            stages += [(2, changed)] if not _is_flag(numbers, place) else []
    changes = [
        (0, planes[:4]), (1, index + 1), (1, index - 1), (1, index[1:]),
        (4, of_planes[1:]), (5, room[:900]), (6, coeffs[1:]), (7, sums[1:]),
        (8, ends[1:]), *stages,
    ]  # fmt: skip
    assert_refused(compiled.forward_planes, good, changes)
    scales, spectra = np.ones(24, np.float32), np.zeros((5, 24), np.float32)
    good = [planes, numbers, weights, scales, room, spectra]
    changes = [
        (0, planes[:4]), (1, numbers[1:]), (2, weights[1:]), (3, scales[1:]),
        (4, room[:900]), (5, spectra[1:]),
    ]  # fmt: skip
    assert_refused(compiled.plane_spectra, good, changes)
    numbers, weights = transform.packed_inverse
    good = [coeffs, index, numbers, weights, True, room, planes]
    changes = [
        (0, coeffs[1:]), (1, index + 1), (1, index - 1), (2, numbers[1:]),
        (3, weights[1:]), (5, room[:900]), (6, planes[:4]),
    ]  # fmt: skip
    assert_refused(compiled.inverse_planes, good, changes)
    good = [planes, 24, np.zeros(5)]
    changes = [(0, planes[:4]), (1, 0), (1, 25), (1, -24), (2, np.zeros(0))]
    assert_refused(compiled.plane_energies, good, changes)


def _is_flag(numbers: np.ndarray, place: int) -> bool:
    """Return whether a number of a program says which dimension it is along."""
    at = 3
    for _ in range(numbers[2]):
        if place == at + 2:
            return True
        num_groups, at = numbers[at + 4], at + 5
        for _ in range(num_groups):
            at += 2 + numbers[at] + numbers[at + 1]
    return False


def test_the_kernels_that_run_have_planes() -> None:
    """Whichever kernels run, rows of one plane come back."""
    found = kernels()
    transform = transform_of("haar", [2, 2])
    coeffs, back = np.zeros((4, 1), np.float32), np.zeros((1, 4), np.float32)
    planes = np.array([[1, 2, 3, 4]], np.float32)
    found.forward_planes(planes, np.zeros(1, np.int64), transform, coeffs)
    assert coeffs[0, 0] == pytest.approx(5)
    found.inverse_planes(coeffs, np.zeros(1, np.int64), transform, back)
    np.testing.assert_allclose(back, planes, atol=1e-6)
