"""Codecs without a transform: exact, half precision, narrowed integers."""

import re
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_slfac.codec import BFloat16, Float16, Identity, Integers, decode, encode
from flwr_slfac.codec.wire import DTYPES, pack_frame
from flwr_slfac.errors import DecodeError, EncodeError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = tuple(d for d in DTYPES if not d.is_floating_point)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors agree in dtype, shape and every byte."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(
            a.contiguous().reshape(-1).view(torch.uint8),
            b.contiguous().reshape(-1).view(torch.uint8),
        )
    )


@given(st.sampled_from(DTYPES), st.binary(min_size=48, max_size=48))
def test_identity_carries_every_bit(dtype: torch.dtype, data: bytes) -> None:
    """Whatever the bits of a tensor, NaN payloads included, they come back."""
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    x = (raw % 2 if dtype is torch.bool else raw).view(dtype).reshape(2, 3, -1)
    assert same_bits(decode(encode(x, Identity())), x)


def test_identity_costs_its_elements_and_one_header() -> None:
    """The frame of a float32 map is its elements and at most 64 bytes."""
    x = torch.zeros(4, 8, 5, 5)
    assert len(encode(x, Identity())) <= 4 * x.numel() + 64


@pytest.mark.parametrize("codec", [Float16(), BFloat16()])
@given(values=st.lists(st.floats(-60000, 60000, width=32), max_size=20))
def test_halves_keep_their_documented_bound(
    codec: Float16 | BFloat16, values: list[float]
) -> None:
    """The relative error is at most half a unit in the last place."""
    x = torch.tensor(values, dtype=torch.float32)
    error = (decode(encode(x, codec)) - x).abs().double()
    if isinstance(codec, Float16):
        bound = (x.double().abs() * 2**-11).clamp_min(2**-25)
    else:
        bound = (x.double().abs() * 2**-8).clamp_min(2**-134)
    assert (error <= bound).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_halves_are_exact_on_values_that_a_half_holds(dtype: torch.dtype) -> None:
    """Small integers survive both half codecs in every dtype."""
    x = torch.arange(-128, 129).to(dtype)
    assert same_bits(decode(encode(x, Float16())), x)
    assert same_bits(decode(encode(x, BFloat16())), x)


@pytest.mark.parametrize(
    ("codec", "value"), [(Float16(), 65520.0), (BFloat16(), 3.4e38)]
)
def test_a_half_refuses_what_overflows_it(
    codec: Float16 | BFloat16, value: float
) -> None:
    """Overflow is an error that names the value, never a silent infinity."""
    with pytest.raises(EncodeError, match=re.escape(f"magnitude {value:g} overflows")):
        encode(torch.tensor([1.0, -value]), codec)


def test_the_largest_half_is_never_decoded_to_infinity() -> None:
    """A finite float16 tensor stays finite through bfloat16, which rounds it up."""
    x = torch.tensor([65504.0, -65504.0], dtype=torch.float16)
    back = decode(encode(x, BFloat16()))
    assert back.isfinite().all()
    assert ((back.double() - x.double()).abs() <= x.double().abs() * 2**-8).all()


@given(
    st.sampled_from(INTEGERS), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9)
)
def test_integers_come_back_exactly(dtype: torch.dtype, values: list[int]) -> None:
    """Every integer tensor comes back with its dtype and values."""
    x = torch.tensor(values, dtype=torch.int64).to(dtype)
    assert same_bits(decode(encode(x, Integers())), x)


@pytest.mark.parametrize(
    ("low", "high", "width_bytes"),
    [
        (0, 255, 1),
        (-128, 127, 1),
        (-1, 128, 2),
        (0, 32767, 2),
        (0, 32768, 4),
        (-(2**31), 2**31 - 1, 4),
        (0, 2**31, 8),
        (-(2**63), 2**63 - 1, 8),
    ],
)
def test_integers_take_the_narrowest_width(
    low: int, high: int, width_bytes: int
) -> None:
    """The width on the wire is the least of 1, 2, 4 and 8 bytes that holds all."""
    x = torch.tensor([low, high] * 500)
    overhead = len(encode(torch.zeros(0, dtype=torch.int64), Integers()))
    assert len(encode(x, Integers())) == overhead + 1000 * width_bytes


def test_floats_are_not_integers() -> None:
    """A float tensor is refused with the dtypes that would do."""
    with pytest.raises(EncodeError, match=r"not take torch\.float32; it takes uint"):
        encode(torch.zeros(2), Integers())


@pytest.mark.parametrize(
    ("codec_id", "dtype", "sections"),
    [
        ("identity", torch.float32, []),
        ("identity", torch.float32, [bytes(7)]),
        ("identity", torch.float32, [bytes(9)]),
        ("identity", torch.float32, [bytes(4), bytes(4)]),
        ("float16", torch.float32, [bytes(8)]),
        ("float16", torch.int64, [bytes(4)]),
        ("bfloat16", torch.float32, [bytes(3)]),
        ("integers", torch.int64, [b"\x00"]),
        ("integers", torch.int64, [b"", bytes(2)]),
        ("integers", torch.int64, [b"\x00\x00", bytes(2)]),
        ("integers", torch.int64, [b"\x05", bytes(2)]),
        ("integers", torch.int64, [b"\x01", bytes(3)]),
        ("integers", torch.float32, [b"\x00", bytes(2)]),
    ],
)
def test_sections_of_a_wrong_form_are_refused(
    codec_id: str, dtype: torch.dtype, sections: list[bytes]
) -> None:
    """Wrong counts, lengths and codes of sections raise DecodeError."""
    with pytest.raises(DecodeError):
        decode(pack_frame(codec_id, dtype, (2,), sections))


@pytest.mark.parametrize("codec_id", ["identity", "integers"])
def test_hostile_booleans_decode_to_zero_and_one(codec_id: str) -> None:
    """A byte that is no boolean is refused or made one; torch trusts its storage."""
    sections = {"identity": [b"\x07\x00"], "integers": [b"\x00", b"\x07\x00"]}
    data = pack_frame(codec_id, torch.bool, (2,), sections[codec_id])
    try:
        back = decode(data)
    except DecodeError:
        return
    assert back.view(torch.uint8).tolist() == [1, 0]


def test_lengths_are_checked_before_the_tensor_is_allocated() -> None:
    """A tiny frame that declares 2**50 elements fails on its length, not on memory."""
    for codec_id in ("identity", "float16", "bfloat16"):
        data = pack_frame(codec_id, torch.float64, (2**25, 2**25), [bytes(8)])
        with pytest.raises(DecodeError, match="8 bytes cannot fill"):
            decode(data, max_elements=2**50)


def test_integers_on_the_wire_are_little_endian() -> None:
    """The bytes of the data section are those of a little-endian array."""
    x = torch.tensor([-2, 300])
    assert encode(x, Integers())[-8:-4] == struct.pack("<2h", -2, 300)


def test_an_empty_tensor_of_any_strides_is_coded() -> None:
    """Strides of an empty tensor, such as NumPy's 0, have no say."""
    x = torch.zeros(4).as_strided((0,), (0,))
    assert decode(encode(x, Identity())).shape == (0,)
    assert decode(encode(x, Float16())).shape == (0,)
