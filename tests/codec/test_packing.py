import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec.packing import (
    BitReader,
    BitWriter,
    num_bits_for,
    pack_fields,
    unpack_fields,
)
from flwr_slfac.codec.slfac.groups import (
    group_starts,
    merge_codes,
    merge_uneven,
    row_bits,
    spread_codes,
    spread_uneven,
)
from flwr_slfac.errors import DecodeError

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


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_of_one_width(
    dtype: torch.dtype, groups: int, lanes: int, seed: int
) -> None:
    """Eight codes of one width merge to their sum of shifts and spread again."""
    random = np.random.default_rng(seed)
    widths = random.integers(0, 9, (groups, lanes))
    codes = random.integers(0, 2 ** widths[:, None], (groups, 8, lanes))
    words = merge_codes(
        torch.from_numpy(codes).to(dtype), torch.from_numpy(widths).to(dtype)
    )
    for g in range(groups):
        for k in range(lanes):
            expected = sum(
                int(c) << i * int(widths[g, k]) for i, c in enumerate(codes[g, :, k])
            )
            assert int(words[g, k]) % 2**64 == expected
    spread = spread_codes(words, torch.from_numpy(widths).to(torch.int32))
    np.testing.assert_array_equal(spread.numpy(), codes)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_groups_of_unlike_widths(lanes: int, seed: int) -> None:
    """Eight codes of eight widths merge without gaps and spread again."""
    random = np.random.default_rng(seed)
    widths = random.integers(0, 9, (8, lanes))
    codes = random.integers(0, 2**widths)
    words = merge_uneven(
        torch.from_numpy(codes).float(), torch.from_numpy(widths).float()
    )
    starts = widths.cumsum(0) - widths
    for k in range(lanes):
        expected = sum(
            int(c) << int(s) for c, s in zip(codes[:, k], starts[:, k], strict=True)
        )
        assert int(words[k]) % 2**64 == expected
    spread = spread_uneven(words, torch.from_numpy(widths))
    np.testing.assert_array_equal(spread.numpy(), codes)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.data())
def test_groups_begin_where_codes_do(n: int, data: st.DataObject) -> None:
    """Group g of a row begins with code 8 g of it."""
    rows = data.draw(
        st.lists(
            st.tuples(st.integers(1, n), st.integers(0, 8), st.integers(0, 8)),
            min_size=1,
            max_size=5,
        )
    )
    split, low, high = np.array(rows).T
    starts = group_starts(split, np.stack([low, high]), n, 5)
    position = 5
    for row, (k, b_low, b_high) in enumerate(rows):
        for code in range(n):
            if code % 8 == 0:
                assert starts[row, code // 8] == position
            position += b_low if code < k else b_high
    assert row_bits(split, np.stack([low, high]), n).sum() == position - 5


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
