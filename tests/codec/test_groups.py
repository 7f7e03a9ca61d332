"""Code words of eight: merged to the sum of shifts, spread again, end to end."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec.slfac.groups import (
    group_starts,
    merge_codes,
    merge_uneven,
    row_bits,
    spread_codes,
    spread_uneven,
)


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
