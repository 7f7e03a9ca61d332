"""Bit packing: words, fields, codes and positions come back, without gaps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec.packing import (
    MAX_RICE,
    BitReader,
    BitWriter,
    num_bits_for,
    pack_codes,
    pack_fields,
    pack_positions,
    unpack_codes,
    unpack_fields,
    unpack_positions,
)
from flwr_slfac.errors import DecodeError

CPU = torch.device("cpu")

words_with_bits = st.lists(
    st.integers(0, 64).flatmap(
        lambda bits: st.tuples(st.integers(0, 2**bits - 1), st.just(bits))
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(words_with_bits, st.integers(0, 60))
def test_words_lie_end_to_end(items: list[tuple[int, int]], cut: int) -> None:
    """The stream is the sum of the words, each shifted to where its bits begin."""
    widths = np.array([bits for _, bits in items], dtype=np.int64)
    words = np.array([word for word, _ in items], dtype=np.uint64)
    starts = np.cumsum(widths) - widths
    total = int(widths.sum())
    writer = BitWriter(total)
    writer.write(words[:cut], starts[:cut])
    writer.write(words[cut:], starts[cut:])
    stream = sum(int(w) << int(s) for w, s in zip(words, starts, strict=True))
    data = writer.getvalue()
    assert bytes(data) == stream.to_bytes((total + 7) // 8, "little")
    found = BitReader(data, total).read(starts)
    masks = np.array([2 ** int(b) - 1 for b in widths], dtype=np.uint64)
    assert (found & masks == words).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_fields_come_back(bits: list[int], num_records: int, seed: int) -> None:
    """Records of fixed-width fields unpack to themselves, in as few bytes as can be."""
    random = np.random.default_rng(seed)
    columns = [random.integers(0, 2**b, num_records) for b in bits]
    data = pack_fields(list(zip(columns, bits, strict=True)))
    assert data.nbytes == (sum(bits) * num_records + 7) // 8
    found = unpack_fields(data, bits, num_records)
    for field, column in zip(found, columns, strict=True):
        np.testing.assert_array_equal(field, column)


def test_a_wrong_number_of_bytes_is_refused() -> None:
    """A reader takes exactly the bytes that its bits need."""
    for num_bytes, num_bits in ((0, 1), (2, 8), (1, 9), (1, 0)):
        with pytest.raises(DecodeError, match="packed bits"):
            BitReader(memoryview(bytes(num_bytes)), num_bits)


@settings(deadline=None)
@given(st.integers(0, 2**40))
def test_num_bits_hold_the_largest(largest: int) -> None:
    """The bits hold the largest value, and one fewer does not."""
    bits = num_bits_for(largest)
    assert largest < 2**bits
    assert bits == 0 or largest >= 2 ** (bits - 1)


@given(st.integers(1, 16), st.integers(0, 200), st.integers(0, 2**31))
def test_packing_is_undone_and_has_no_gaps(bits: int, num: int, seed: int) -> None:
    """Any codes of 1 to 16 bits come back from ceil(n bits / 8) bytes."""
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, 2**bits, num))
    packed = pack_codes(codes, bits)
    assert packed.nbytes == -(-num * bits // 8)
    assert torch.equal(unpack_codes(packed, bits, num, CPU), codes)


def test_packed_bits_are_little_endian() -> None:
    """The first code is in the lowest bits of the first byte."""
    assert bytes(pack_codes(torch.tensor([1, 0, 5]), 3)) == bytes([0b01000001, 0b1])
    assert bytes(pack_codes(torch.tensor([0x1234]), 16)) == b"\x34\x12"


@given(st.sets(st.integers(0, 5000)), st.integers(0, 5000))
def test_places_come_back(places: set[int], beyond: int) -> None:
    """Any set of places survives packing, in any tensor that has them."""
    rising = np.array(sorted(places), dtype=np.int64)
    rice, low, unary = pack_positions(rising)
    num_places = max(places, default=0) + 1 + beyond
    back = unpack_positions(rice, memoryview(low), memoryview(unary), num_places)
    assert np.array_equal(back, rising)


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9])
def test_places_cost_little_more_than_their_entropy(fraction: float) -> None:
    """Rare places cost at most 4 % above their entropy, others no more than a map."""
    chosen = np.random.default_rng(0).random(200_000) < fraction
    _, low, unary = pack_positions(np.flatnonzero(chosen))
    share = chosen.mean()
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    cost = 8 * (len(low) + len(unary)) / chosen.size
    assert cost <= (1.04 * entropy + 0.001 if share < 0.3 else 1.001)


@pytest.mark.parametrize(
    ("rice", "low", "unary"),
    [
        (MAX_RICE + 1, b"", b"\x01"),
        (0, b"\x00", b"\x01"),
        (3, b"", b"\x01"),
        (0, b"", bytes(4)),
        (0, b"", b"\x00\x10"),
        (3, b"\x07\x00", b"\x03\x00"),
    ],
)
def test_places_that_do_not_fit_are_refused(
    rice: int, low: bytes, unary: bytes
) -> None:
    """Places beyond the tensor, and parts of wrong lengths, raise DecodeError."""
    with pytest.raises(DecodeError):
        unpack_positions(rice, memoryview(low), memoryview(unary), 10)
