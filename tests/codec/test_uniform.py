"""Uniform, PowerQuant and EasyQuant: what they do, and what they cost."""

import numpy as np
import pytest
import torch

from flwr_slfac.codec import decode, encode
from flwr_slfac.codec.easyquant import EasyQuant
from flwr_slfac.codec.powerquant import PowerQuant
from flwr_slfac.codec.uniform import Uniform
from flwr_slfac.codec.wire import pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError, SettingError


def laplace(*shape: int) -> torch.Tensor:
    """Return values with the heavy tails of smashed data."""
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(4)) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the cosine similarity of two tensors."""
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), 0))


@pytest.mark.parametrize("bits", range(1, 17))
def test_uniform_equals_a_numpy_reference(bits: int) -> None:
    """Decoded values are those of the textbook formula in float64."""
    x = laplace(3, 4, 5, 5)
    lo, hi, last = float(x.min()), float(x.max()), 2**bits - 1
    codes = np.rint((x.double().numpy() - lo) / (hi - lo) * last)
    wanted = lo + codes * (hi - lo) / last
    decoded = decode(encode(x, Uniform(bits))).numpy()
    # A value in the middle of a step may go either way in float32.
    apart = np.abs(decoded - wanted)
    assert (apart <= (hi - lo) / last + 1e-5).all()
    assert np.mean(apart > 1e-5) <= 0.02


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((2, 3, 4, 5), 3), ((2, 4, 6), 6), ((7, 11), 11), ((9,), 1), ((), 1)],
)
def test_a_frame_costs_its_bits_and_its_ranges(
    shape: tuple[int, ...], channels: int
) -> None:
    """A frame is codes of exactly `bits`, two ends a range and a header."""
    x = laplace(*shape)
    for per, ranges in (("tensor", 1), ("channel", channels)):
        frame = unpack_frame(encode(x, Uniform(3, per)), max_elements=10**6)
        assert [s.nbytes for s in frame.sections] == [
            2,
            8 * ranges,
            -(-3 * x.numel() // 8),
        ]


def test_channels_of_unlike_ranges_keep_their_own() -> None:
    """A small channel is not rounded away by a large one with per='channel'."""
    x = laplace(4, 2, 8, 8)
    x[:, 1] *= 1e-4
    by_tensor = decode(encode(x, Uniform(8)))
    by_channel = decode(encode(x, Uniform(8, "channel")))
    error = (by_tensor - x)[:, 1].norm(), (by_channel - x)[:, 1].norm()
    assert error[1] < 0.05 * error[0]


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_powerquant_finds_an_exponent_near_the_best(bits: int) -> None:
    """Its error is within 2 % of the best among exponents tried on the values."""
    x = laplace(4000)
    largest, last = float(x.abs().max()), 2 ** (bits - 1) - 1
    unit = x.double().abs() / largest
    best = min(
        float(
            (
                torch.round(last * unit**a).div(last).pow(1 / a).mul(x.sign()) * largest
                - x
            ).norm()
        )
        for a in torch.linspace(0.25, 1, 100).tolist()
    )
    error = float((decode(encode(x, PowerQuant(bits))) - x).norm())
    assert error <= 1.02 * best


def test_powerquant_is_no_worse_than_the_even_grid() -> None:
    """On bell-shaped data it beats symmetric linear quantization clearly."""
    x = laplace(20_000)
    step = float(x.abs().max()) / 7
    even = (torch.round(x / step) * step - x).norm()
    assert (decode(encode(x, PowerQuant(4))) - x).norm() < 0.7 * even


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_easyquant_finds_a_scale_near_the_best(bits: int) -> None:
    """Its cosine similarity is within 1e-3 of the best among scales tried."""
    x = laplace(4000)
    last = 2 ** (bits - 1) - 1
    first = last / float(x.abs().max())
    best = max(
        cosine(x, torch.round(x * scale * first).clamp(-last, last))
        for scale in torch.linspace(0.5, 2, 200).tolist()
    )
    assert cosine(x, decode(encode(x, EasyQuant(bits)))) >= best - 1e-3


@pytest.mark.parametrize("codec", [PowerQuant(4), EasyQuant(4)])
def test_no_sign_is_sent_where_there_is_none(codec: PowerQuant | EasyQuant) -> None:
    """After a ReLU the sign's bit goes into precision: about half the error."""
    x = laplace(8000).abs()
    signed = x * torch.where(torch.arange(8000) % 2 == 0, 1.0, -1.0)
    ratio = (decode(encode(x, codec)) - x).norm() / (
        decode(encode(signed, codec)) - signed
    ).norm()
    assert ratio < 0.7


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(0),
        lambda: Uniform(17),
        lambda: Uniform(8.0),  # type: ignore[arg-type]
        lambda: Uniform(True),
        lambda: Uniform(per="row"),  # type: ignore[arg-type]
        lambda: PowerQuant(1),
        lambda: PowerQuant(9),
        lambda: EasyQuant(1),
        lambda: EasyQuant(9),
    ],
)
def test_settings_out_of_range_are_refused(make: type) -> None:
    """A wrong number of bits or grouping says what is allowed."""
    with pytest.raises(SettingError, match="give"):
        make()


@pytest.mark.parametrize("codec", [Uniform(), PowerQuant(), EasyQuant()])
@pytest.mark.parametrize("hostile", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_refused(
    codec: Uniform | PowerQuant | EasyQuant, hostile: float
) -> None:
    """NaN in the side information is found, not multiplied into the tensor."""
    frame = unpack_frame(encode(laplace(8), codec), max_elements=10)
    sections = [*frame.sections]
    scale = torch.full((len(sections[1]) // 4,), hostile).numpy().tobytes()
    sections[1] = memoryview(scale)
    with pytest.raises(DecodeError, match="not finite"):
        decode(pack_frame(frame.codec_id, frame.dtype, frame.shape, sections))
