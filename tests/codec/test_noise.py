"""Errors as a share of the mini-batch's noise, and weights by frequency."""

import math

import pytest
import torch

from flwr_slfac.codec import Waterfill, decode, encode, parse_codec
from flwr_slfac.codec.base import Hints
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.waterfill.weights import Weights
from flwr_slfac.codec.wire import pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError, EncodeError, SettingError


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth(*shape: int, seed: int = 1) -> torch.Tensor:
    """Return maps whose power falls with frequency, after a ReLU."""
    x = drawn(*shape, seed=seed)
    for dim in range(2, x.ndim):
        x = x.cumsum(dim)
    return x.relu()


def dct_matrix(size: int) -> torch.Tensor:
    """Return the orthonormal DCT-II from its definition."""
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (n + 0.5) * n[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def weighted(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Return the weighted spectrum of maps, from the definition."""
    height, width = x.shape[-2:]
    spectrum = dct_matrix(height) @ x.double() @ dct_matrix(width).T
    factors = []
    for bands, size in zip(weights.bands, (height, width), strict=True):
        octave = [math.floor(2 * math.log2(1 + u)) for u in range(size)]
        places = {band: place for place, band in enumerate(sorted(set(octave)))}
        factors.append(torch.tensor([2.0 ** (-bands[places[o]] / 2) for o in octave]))
    return spectrum * factors[0][:, None] * factors[1]


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.4])
def test_activations_err_by_a_share_of_what_differs_between_samples(
    noise: float,
) -> None:
    """What all samples have in common allows no error."""
    x = drawn(16, 8, 12, 12) + 3 * drawn(1, 8, 12, 12, seed=1)
    between = float((x - x.mean(0)).square().sum()) * 16 / 15
    error = decode(encode(x, Waterfill(noise=noise))) - x
    assert float(error.square().sum()) == pytest.approx(noise * between, rel=0.05)
    alone = x[:1]
    error = decode(encode(alone, Waterfill(noise=noise))) - alone
    between = float((alone - alone.mean((2, 3), keepdim=True)).square().sum())
    between *= 144 / 143
    assert float(error.square().sum()) == pytest.approx(noise * between, rel=0.05)


def test_samples_that_are_alike_are_coded_all_the_same() -> None:
    """Equal samples, or one without energy, leave a finite budget."""
    x = drawn(1, 4, 8, 8).expand(6, 4, 8, 8)
    error = decode(encode(x, Waterfill(noise=0.1))) - x
    assert float(error.norm() / x.norm()) < 0.02
    zeros = torch.zeros(3, 4, 8, 8)
    assert torch.equal(decode(encode(zeros, Waterfill(noise=0.1))), zeros)


@pytest.mark.parametrize("shape", [(64, 32), (16, 49, 64), (16, 8, 12, 12)])
def test_what_differs_is_kept_beside_a_large_common_part(
    shape: tuple[int, ...],
) -> None:
    """A common part that is 150 times as large as what differs takes no more of it."""
    x = 150 * drawn(1, *shape[1:], seed=1) + drawn(*shape)
    between = float((x - x.mean(0)).square().sum()) * len(x) / (len(x) - 1)
    error = decode(encode(x, Waterfill(noise=0.1))) - x
    assert float(error.square().sum()) == pytest.approx(0.1 * between, rel=0.1)


@pytest.mark.parametrize("shape", [(12, 6, 16, 16), (9, 4, 7, 20), (16, 3, 1, 32)])
def test_a_gradient_errs_by_a_share_of_its_weighted_energy(
    shape: tuple[int, ...],
) -> None:
    """Frequencies that activations have little of take most of the error."""
    gradient, activations = drawn(*shape), smooth(*shape)
    codec = Waterfill(noise=0.1)
    frame = encode(gradient, codec, role="gradient", activations=activations)
    error = decode(frame) - gradient
    weights = Weights.of(activations)
    assert weights is not None
    share = weighted(error, weights).square().sum()
    share /= weighted(gradient, weights).square().sum()
    assert float(share) == pytest.approx(0.1, rel=0.06)
    plain = encode(gradient, codec, role="gradient")
    assert float((decode(plain) - gradient).norm() / gradient.norm()) == pytest.approx(
        math.sqrt(0.1), rel=0.03
    )
    assert len(frame) < (0.9 if shape[2] > 1 else 1) * len(plain)


def test_weights_are_the_fourth_root_of_the_power_of_a_band() -> None:
    """A band with 2**-8 of the power of the strongest is halved twice."""
    spectrum = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    spectrum[0, 0, 0, 0], spectrum[0, 0, 1, 0], spectrum[0, 0, 0, 2] = 1, 2**-4, 2**-8
    matrix = dct_matrix(4)
    activations = (matrix.T @ spectrum @ matrix).float()
    # With its negative, so that there is no constant part to leave out.
    activations = torch.cat([activations, -activations])
    # Bands of four frequencies are each alone.
    weights = Weights.of(activations)
    assert weights is not None
    assert weights.bands == ((0, 4, 15, 15), (0, 15, 8, 15))


def test_a_constant_part_of_a_channel_does_not_weigh() -> None:
    """An offset is nothing that the layers before have had, and biases are kept."""
    white = drawn(16, 8, 12, 12)
    offsets = 2.0 ** torch.arange(-1.0, 7.0)[:, None, None]
    weights = Weights.of(white + offsets)
    assert weights is not None
    assert max(map(max, weights.bands)) <= 1
    gradient, codec = drawn(16, 8, 12, 12, seed=1), Waterfill(noise=0.1)
    for constant in (offsets, offsets + 0.1):
        activations = constant.expand(16, 8, 12, 12)
        frame = encode(gradient, codec, role="gradient", activations=activations)
        assert frame == encode(gradient, codec, role="gradient")
    # Differences between samples alone leave the lowest frequency its full weight.
    lows = [b[0] for b in (Weights.of(drawn(4, 3, 8, 8).diff(dim=2)) or weights).bands]
    assert lows == [0, 0]


@pytest.mark.parametrize("dead", [0, 1, 15])
def test_weights_are_those_of_all_channels(dead: int) -> None:
    """In large tensors, too, one dead channel does not speak for all."""
    activations = smooth(64, 16, 32, 32)
    whole = Weights.of(activations)
    activations[:, dead] = 0
    weights = Weights.of(activations)
    assert whole is not None
    assert weights is not None
    for bands, others in zip(weights.bands, whole.bands, strict=True):
        assert max(abs(a - b) for a, b in zip(bands, others, strict=True)) <= 1


@pytest.mark.parametrize("basis", ["auto", "dct", "identity"])
@pytest.mark.parametrize("shape", [(1, 8, 12, 12), (64, 16, 2, 2), (8, 16, 6)])
def test_weights_do_not_blow_up_a_gradient(shape: tuple[int, ...], basis: str) -> None:
    """Whatever activations lack, the error stays below the gradient's energy."""
    tokens = len(shape) == 3
    flat = drawn(shape[0], 1, shape[2]) if tokens else drawn(*shape[:2], 1, 1)
    activations = flat.expand(shape)
    single = torch.zeros(shape)
    single[0, 0, 0] = 1
    codec = Waterfill(noise=0.4, basis=basis)
    for gradient in (smooth(*shape), drawn(*shape), single):
        frame = encode(gradient, codec, role="gradient", activations=activations)
        assert float((decode(frame) - gradient).norm()) <= 1.01 * float(gradient.norm())


@pytest.mark.parametrize("shape", [(5,), (4, 9), (4, 9, 1, 1), (2, 7, 5), (2, 2, 3, 4)])
def test_any_shape_of_gradient_is_weighted_or_left_alone(
    shape: tuple[int, ...],
) -> None:
    """Vectors and tokens are left alone, maps of one value too."""
    gradient, activations = drawn(*shape), drawn(*shape, seed=1)
    codec = parse_codec("waterfill(noise=0.1)")
    frame = encode(gradient, codec, role="gradient", activations=activations)
    assert decode(frame).shape == gradient.shape
    memory: dict[str, torch.Tensor] = {}
    other: dict[str, torch.Tensor] = {}
    for step in range(3):
        frame = encode(
            gradient * (step + 1),
            codec,
            role="gradient",
            activations=activations,
            memory=memory,
        )
        error = decode(frame, memory=other) - gradient * (step + 1)
        assert float(error.norm()) < float(gradient.norm()) * (step + 1)


@pytest.mark.parametrize("basis", ["auto", "haar"])
def test_what_no_dct_is_coded_of_is_not_weighed(basis: str) -> None:
    """Neither sequences, nor maps in a basis that was asked for instead."""
    shape = (8, 16, 6) if basis == "auto" else (8, 6, 16, 16)
    gradient, activations = drawn(*shape), drawn(*shape, seed=1).cumsum(1).cumsum(-1)
    codec = Waterfill(noise=0.1, basis=basis)
    frame = encode(gradient, codec, role="gradient", activations=activations)
    assert frame == encode(gradient, codec, role="gradient")


def test_maps_of_any_size_are_weighed_alike() -> None:
    """Planes that PyTorch transforms weigh as those of the kernels do."""
    gradient, activations = drawn(4, 3, 1, 80), smooth(4, 3, 1, 80)
    weights = Weights.of(activations)
    assert weights is not None
    found = weights.spectra(gradient.flatten(2), PlaneShape.of(gradient.shape))
    expected = weighted(gradient, weights).flatten(2).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    frame = encode(
        gradient, Waterfill(noise=0.1), role="gradient", activations=activations
    )
    error = weighted(decode(frame) - gradient, weights).square().sum()
    share = float(error / weighted(gradient, weights).square().sum())
    assert share == pytest.approx(0.1, rel=0.06)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_activations_of_any_dtype_give_weights(dtype: torch.dtype) -> None:
    """Half and double precision are taken as they come."""
    gradient = drawn(4, 3, 8, 8).to(dtype)
    activations = smooth(4, 3, 8, 8).to(dtype)
    codec = Waterfill(noise=0.1)
    frame = encode(gradient, codec, role="gradient", activations=activations)
    assert decode(frame).dtype is dtype


def test_activations_without_energy_weigh_nothing() -> None:
    """A dead front does not stop its gradient."""
    gradient = drawn(4, 3, 8, 8)
    codec = Waterfill(noise=0.1)
    frame = encode(
        gradient, codec, role="gradient", activations=torch.zeros(4, 3, 8, 8)
    )
    assert frame == encode(gradient, codec, role="gradient")


def test_wrong_settings_are_refused() -> None:
    """Shares, other targets beside them, and activations of another shape."""
    for noise in (0.0, 1.0, -0.1, math.nan, True):
        with pytest.raises(SettingError, match="noise"):
            Waterfill(noise=noise)
    with pytest.raises(SettingError, match="nrmse and noise"):
        Waterfill(nrmse=0.1, noise=0.1)
    with pytest.raises(EncodeError, match="same shape"):
        encode(
            drawn(2, 3, 4, 4),
            Waterfill(noise=0.1),
            role="gradient",
            activations=drawn(2, 3, 4, 5),
        )


def test_weights_that_do_not_fit_are_refused() -> None:
    """A frame with other weights than its planes have bands is no frame."""
    gradient, activations = drawn(4, 3, 8, 8), smooth(4, 3, 8, 8)
    codec = Waterfill(noise=0.1)
    whole = encode(gradient, codec, role="gradient", activations=activations)
    frame = unpack_frame(whole, max_elements=10**6)
    head = bytes(frame.sections[0])
    assert head[12] == 0
    named = head[:12] + b"\3dct" + head[13:]
    for wrong in (head + b"\0", head[:-1], head[: -len(head) + 14], named):
        sections = [wrong, *frame.sections[1:]]
        data = pack_frame("waterfill", frame.dtype, frame.shape, sections)
        with pytest.raises(DecodeError):
            decode(data)


def test_the_error_that_a_share_of_noise_means_is_settled_by_the_tensor() -> None:
    """`settled` gives the relative error of the norm, and the same frame."""
    x = (drawn(8, 4, 8, 8) + 2).relu()
    codec = Waterfill(noise=0.1)
    settled = codec.settled(x, Hints())
    between = float((x - x.mean(0)).square().sum()) * 8 / 7
    expected = math.sqrt(0.1 * between / float(x.square().sum()))
    assert settled.nrmse == pytest.approx(expected, rel=1e-5)
    assert codec.aiming_at(0.5) == Waterfill(noise=0.25)
    assert codec.relative_error == pytest.approx(math.sqrt(0.1))


@pytest.mark.parametrize(("side", "is_kept"), [(32, True), (512, False)])
def test_the_weights_of_large_planes_are_not_kept(side: int, is_kept: bool) -> None:
    """Crafted heads, each with other weights, take no memory that lasts."""
    shape = PlaneShape(1, 1, (side, side))
    weights = Weights.of(torch.randn(1, 1, side, side))
    assert weights is not None
    assert (weights.scales(shape) is weights.scales(shape)) is is_kept
