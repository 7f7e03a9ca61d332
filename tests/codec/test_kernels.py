"""The compiled kernels and their reference are one: same bytes, same refusals."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec import Waterfill, decode, encode
from flwr_slfac.codec.kernels import (
    LOWER_BOUND,
    SCALE_BITS,
    ClassGrid,
    classes,
    digits,
    kernels,
    rans,
)
from flwr_slfac.codec.kernels.choice import REFERENCE, compiled_kernels
from flwr_slfac.errors import SettingError
from tests.codec.cases import CASES, Case, golden_tensor
from tests.codec.extension import needs_extension

BOTH = [REFERENCE, *filter(None, [compiled_kernels()])]


@pytest.fixture
def choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let a test choose kernels by the environment variable."""
    kernels.cache_clear()
    yield monkeypatch
    kernels.cache_clear()


def frequencies_of(rng: np.random.Generator, num_symbols: int) -> np.ndarray:
    """Return frequencies (256,) of some symbols, from skewed to even."""
    weights = rng.random(num_symbols) ** rng.choice([0.1, 1, 8]) + 1e-9
    found = np.zeros(256, np.int64)
    room = (1 << SCALE_BITS) - num_symbols
    found[:num_symbols] = 1 + np.floor(room * weights / weights.sum())
    found[found.argmax()] += (1 << SCALE_BITS) - found.sum()
    return found.astype(np.uint16)


def batch(seed: int, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts, frequencies and symbols of some segments."""
    rng = np.random.default_rng(seed)
    num_segments = int(rng.integers(1, 5))
    counts = rng.multinomial(total, rng.dirichlet(np.ones(num_segments)))
    sizes = rng.integers(2, 257, num_segments)
    frequencies = np.stack([frequencies_of(rng, int(size)) for size in sizes])
    symbols = [
        rng.choice(256, count, p=f / 2**SCALE_BITS)
        for count, f in zip(counts, frequencies, strict=True)
    ]
    return counts, frequencies, np.concatenate(symbols).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 700), st.sampled_from([1, 3, 8, 64, 300]))
def test_symbols_come_back(seed: int, total: int, lanes: int) -> None:
    """Decoding undoes encoding, takes every word and ends in the first states."""
    counts, frequencies, symbols = batch(seed, total)
    states = np.full(lanes, LOWER_BOUND, np.uint32)
    words = np.zeros(2 * total + 2, np.uint8)
    begin = rans.encode(states, counts, frequencies, symbols, words, words.nbytes)
    out = np.empty(total, np.uint8)
    # From an odd place, as in a frame.
    data = np.frombuffer(b"?" + words[begin:].tobytes(), np.uint8)
    assert rans.decode(states, counts, frequencies, data, 1, out) == len(data)
    np.testing.assert_array_equal(out, symbols)
    assert (states == LOWER_BOUND).all()


@needs_extension
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)
def test_frames_do_not_depend_on_the_kernels(
    case: Case, choice: pytest.MonkeyPatch
) -> None:
    """Each codec's bytes, and what they decode to, are those of the reference."""
    x = golden_tensor(case.codec)
    found = []
    for name in ("compiled", "reference"):
        choice.setenv("SLFAC_KERNELS", name)
        kernels.cache_clear()
        data = case.encode(x)
        assert kernels().name == name
        found.append((data, decode(data).numpy().tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", [which.name for which in BOTH])
def test_threads_code_side_by_side(name: str, choice: pytest.MonkeyPatch) -> None:
    """Frames coded by two threads at once are those of one."""
    choice.setenv("SLFAC_KERNELS", name)
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(8, 4, 8, 8, 8, generator=generator).cumsum(3)
    codec = Waterfill(nrmse=0.2)
    alone = [encode(x, codec) for x in tensors]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda x: encode(x, codec), tensors))
        assert together == alone
        for one, two in zip(alone, pool.map(decode, together), strict=True):
            torch.testing.assert_close(two, decode(one), rtol=0, atol=0)


def test_a_wrong_choice_is_refused(choice: pytest.MonkeyPatch) -> None:
    """The environment variable takes two names; another one says which."""
    choice.setenv("SLFAC_KERNELS", "fast")
    with pytest.raises(SettingError, match="'compiled' or 'reference'"):
        kernels()


def test_the_log_says_once_which_kernels_run(
    choice: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line names the kernels, when a tensor is first coded."""
    choice.setenv("SLFAC_KERNELS", "reference")
    with caplog.at_level(logging.INFO, "flwr"):
        for _ in range(3):
            encode(torch.arange(6.0), Waterfill(nrmse=0.1))
    lines = [r.message for r in caplog.records if "codecs run" in r.message]
    assert lines == ["codecs run in NumPy: slower, the same bytes"]


def test_the_variable_is_read_by_a_fresh_process() -> None:
    """`SLFAC_KERNELS=reference` is enough to leave the extension out."""
    code = "from flwr_slfac.codec.kernels import kernels; print(kernels().name)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"SLFAC_KERNELS": "reference"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split()[-1] == "reference"


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 300),
    st.sampled_from([(1, 4), (2, 3), (7, 2), (127, 1), (15, 1)]),
    st.sampled_from([np.int8, np.int16, np.int32, np.int64]),
    st.sampled_from([1, 3, 30, 127]),
)
def test_digits_come_back(
    seed: int, num: int, kind: tuple[int, int], dtype: type, largest: int
) -> None:
    """Symbols are counted, and saturated digits; unpacked, they are the limit."""
    rng = np.random.default_rng(seed)
    is_signed = kind != (15, 1)
    low = -largest if is_signed else 0
    values = rng.integers(low, largest, num, endpoint=True).astype(dtype)
    symbols, counts, saturated = digits.pack(values, *kind, is_signed)
    assert saturated == np.count_nonzero(np.abs(values.astype(int)) >= kind[0])
    np.testing.assert_array_equal(counts, np.bincount(symbols, minlength=256))
    back, number = digits.unpack(symbols, num, *kind, is_signed)
    np.testing.assert_array_equal(back, np.clip(values, -kind[0], kind[0]))
    assert number == saturated


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.integers(1, 60),
    st.sampled_from([1, 3, 40]),
    st.sampled_from([np.int8, np.int16, np.int32, np.float32]),
)
def test_classes_are_split_and_joined(
    seed: int, num_rows: int, num_columns: int, spread: int, dtype: type
) -> None:
    """Classes hold elements in the order of rows, and joining undoes it."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(-spread, spread, num_rows))[::-1]
    columns = np.sort(rng.integers(-spread, spread, num_columns))[::-1]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(columns)) + 1])
    grid = ClassGrid(
        rng.permutation(num_rows),
        rows.astype(np.int64),
        np.append(starts, num_columns),
        columns[starts].astype(np.int64),
        int(rng.integers(-5, 90)),
        60,
    )
    matrix = rng.integers(-100, 100, grid.shape).astype(dtype)
    part = classes.split(matrix, grid)
    numbers = rows[:, None] + columns + grid.offset >> 1
    by_class = np.argsort(np.clip(numbers, 0, 59), axis=None, kind="stable")
    np.testing.assert_array_equal(part, matrix[grid.order].reshape(-1)[by_class])
    np.testing.assert_array_equal(classes.join(part, grid), matrix)
