import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import pywt
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec.layout import from_rows, to_rows
from flwr_slfac.codec.transforms import (
    Basis,
    forward_rows,
    inverse_rows,
    order_1d,
    order_2d,
    parse_basis,
)
from flwr_slfac.errors import SettingError

WAVELETS = ["haar", "db2", "db4", "sym4", "coif1", "db8:1", "db2:2", "sym20", "db38"]


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return the same normal values for the same shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype)


def forward(x: torch.Tensor, basis: Basis, dims: Sequence[int]) -> torch.Tensor:
    """Transform a tensor along one or two of its dimensions, which stay in place."""
    dims = [d % x.ndim for d in dims]
    coeffs = forward_rows(to_rows(x, dims), basis)
    return from_rows(coeffs.movedim(-1, 0).contiguous(), dims, x.shape)


def inverse(coeffs: torch.Tensor, basis: Basis, dims: Sequence[int]) -> torch.Tensor:
    """Undo `forward`."""
    dims = [d % coeffs.ndim for d in dims]
    rows = inverse_rows(to_rows(coeffs, dims).movedim(0, -1).contiguous(), basis)
    return from_rows(rows.contiguous(), dims, coeffs.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (8, 8), (28, 28), (3, 600)])
def test_dct_equals_scipy(size: tuple[int, int], dtype: torch.dtype) -> None:
    """The DCT of any plane, odd or longer than a matrix, is scipy's."""
    x = random(2, 3, *size, dtype=dtype)
    expected = scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho")
    found = forward(x, parse_basis("dct"), (2, 3))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 511, 513, 1000])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_dct_along_one_dimension(n: int, dim: int) -> None:
    """Along any one dimension, the DCT is scipy's and its inverse undoes it."""
    shape = [2, 3, 2]
    shape[dim] = n
    x = random(*shape, dtype=torch.float32)
    coeffs = forward(x, parse_basis("dct"), (dim,))
    expected = scipy.fft.dct(x.numpy(), axis=dim, norm="ortho")
    np.testing.assert_allclose(coeffs.numpy(), expected, atol=1e-5)
    back = inverse(coeffs, parse_basis("dct"), (dim,))
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", WAVELETS)
@pytest.mark.parametrize("n", [4, 12, 28, 64, 1040])
def test_wavelets_equal_pywt(name: str, n: int) -> None:
    """Wavelet coefficients along a line are those of pywt.wavedec."""
    basis = parse_basis(name)
    x = random(3, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        parts = pywt.wavedec(x, basis.name, "periodization", basis.num_levels(n))
    coeffs = forward(x, basis, (1,))
    np.testing.assert_allclose(coeffs.numpy(), np.concatenate(parts, 1), atol=1e-5)
    torch.testing.assert_close(inverse(coeffs, basis, (1,)), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["haar", "db2:2", "sym4:1", "coif1"])
@pytest.mark.parametrize("size", [(4, 4), (28, 28), (8, 12), (1200, 4)])
def test_wavelet_planes_equal_pywt(name: str, size: tuple[int, int]) -> None:
    """Planes are pywt.wavedec2's, and the order is that of its coefficients."""
    basis = parse_basis(name)
    x = random(2, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        parts = pywt.wavedec2(
            x.numpy(), basis.name, "periodization", basis.num_levels(*size)
        )
    coeffs = forward(x, basis, (1, 2))
    laid_out, _ = pywt.coeffs_to_array(parts, axes=(1, 2))
    np.testing.assert_allclose(coeffs.numpy(), laid_out, atol=1e-5)
    bands = [parts[0], *(band for bands in parts[1:] for band in bands)]
    flat = np.concatenate([b.reshape(2, -1) for b in bands], 1)
    ordered = coeffs.reshape(2, -1)[:, order_2d(basis, *size)]
    np.testing.assert_allclose(ordered.numpy(), flat, atol=1e-5)
    torch.testing.assert_close(inverse(coeffs, basis, (1, 2)), x, atol=1e-6, rtol=0)


def test_every_orthogonal_wavelet_is_orthonormal() -> None:
    """Whatever parse_basis takes has a matrix whose rows are orthonormal."""
    accepted = 0
    for name in pywt.wavelist(kind="discrete"):
        try:
            basis = parse_basis(name)
        except SettingError:
            assert name == "dmey" or not pywt.Wavelet(name).orthogonal
            continue
        accepted += 1
        matrix = forward_rows(torch.eye(16, dtype=torch.float64), basis)
        torch.testing.assert_close(
            matrix @ matrix.t(), torch.eye(16, dtype=torch.float64), atol=1e-6, rtol=0
        )
    assert accepted > 70


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["dct", "identity", "haar:1", "db2:1"]),
    st.lists(st.integers(1, 9), min_size=2, max_size=4),
    st.data(),
)
def test_inverse_undoes_forward(
    name: str, shape: list[int], data: st.DataObject
) -> None:
    """Any one or two dimensions of any tensor can be transformed and brought back."""
    basis = parse_basis(name)
    if basis.is_wavelet:
        shape = [2 * s for s in shape]
    dims = data.draw(
        st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=2, unique=True)
    )
    x = random(*shape, dtype=torch.float32)
    kept = x.clone()
    coeffs = forward(x, basis, dims)
    assert coeffs.shape == x.shape
    torch.testing.assert_close(coeffs.norm(), x.norm())
    torch.testing.assert_close(inverse(coeffs, basis, dims), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(x, kept, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["dct", "identity", "haar:1"])
def test_empty_tensors_pass(name: str) -> None:
    """A tensor without rows is transformed to one."""
    x = torch.empty(0, 4, 6)
    assert forward(x, parse_basis(name), (1, 2)).shape == (0, 4, 6)
    assert inverse(x, parse_basis(name), (1, 2)).shape == (0, 4, 6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_zigzag_is_a_walk_by_diagonals(h: int, w: int) -> None:
    """The order is a permutation whose neighbours touch, from the top left corner."""
    order = order_2d(parse_basis("dct"), h, w)
    assert sorted(order.tolist()) == list(range(h * w))
    row, column = order // w, order % w
    assert (row + column).diff().min() >= 0 if h * w > 1 else True
    assert (
        int((row.diff().abs() + column.diff().abs()).max()) <= 2 if h * w > 1 else True
    )
    assert order[0] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dtc", "no basis is named 'dtc'"),
        ("bior2.2", "not orthogonal"),
        ("dmey", "not orthogonal"),
        ("haar:", "level"),
        ("haar:0", "level"),
        ("haar:99", "level"),
        ("haar:-1", "level"),
        ("dct:2", "no level"),
        ("", "no basis"),
    ],
)
def test_wrong_names_are_refused(text: str, said: str) -> None:
    """An unknown or a biorthogonal basis and a wrong level each say what is wrong."""
    with pytest.raises(SettingError, match=said):
        parse_basis(text)


@pytest.mark.parametrize(
    ("name", "sizes"), [("haar", (7,)), ("haar:2", (6, 8)), ("db2", (1, 8))]
)
def test_sizes_that_do_not_halve_are_refused(name: str, sizes: tuple[int, ...]) -> None:
    """A wavelet says which multiple a size must be, and that the DCT takes any."""
    with pytest.raises(SettingError, match=r"multiples of .*use 'dct'"):
        forward(torch.zeros(2, *sizes), parse_basis(name), range(1, len(sizes) + 1))


def test_bases_print_as_they_are_read() -> None:
    """The text of a basis reads back to an equal basis."""
    for text in ("dct", "identity", "haar", "db2:2"):
        assert str(parse_basis(text)) == text
        assert parse_basis(str(Basis("sym4", 3))) == Basis("sym4", 3)


def test_a_line_lies_in_order() -> None:
    """Coefficients of a line are coarse to fine as they are."""
    assert order_1d(parse_basis("dct"), 3).tolist() == [0, 1, 2]


def test_half_precision_is_refused() -> None:
    """A basis works in float32 or float64: nothing is widened silently."""
    with pytest.raises(SettingError, match="float32 or float64"):
        forward(torch.zeros(2, 2).half(), parse_basis("dct"), (1,))
