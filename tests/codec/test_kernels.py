"""The compiled kernels and their reference are one: same bytes, same refusals."""

import importlib
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
    Kernels,
    kernels,
)
from flwr_slfac.codec.kernels.choice import REFERENCE, compiled_kernels
from flwr_slfac.errors import SettingError
from tests.codec.cases import CASES, Case, golden_tensor
from tests.codec.extension import needs_extension

BOTH = [REFERENCE, *filter(None, [compiled_kernels()])]
both = pytest.mark.parametrize("which", BOTH, ids=lambda which: which.name)


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


def coded(which: Kernels, seed: int, total: int, lanes: int) -> tuple[bytes, bytes]:
    """Return states and words of a batch."""
    counts, frequencies, symbols = batch(seed, total)
    states = np.full(lanes, LOWER_BOUND, np.uint32)
    words = np.zeros(2 * total + 2, np.uint8)
    begin = which.rans_encode(states, counts, frequencies, symbols, words, words.nbytes)
    return states.tobytes(), words[begin:].tobytes()


@needs_extension
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 700), st.sampled_from([1, 3, 8, 64, 300]))
def test_both_kernels_make_the_same_words(seed: int, total: int, lanes: int) -> None:
    """States and words do not depend on which kernels ran."""
    results = {coded(which, seed, total, lanes) for which in BOTH}
    assert len(results) == 1


@both
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 700), st.sampled_from([1, 3, 8, 64, 300]))
def test_symbols_come_back(which: Kernels, seed: int, total: int, lanes: int) -> None:
    """Decoding undoes encoding, takes every word and ends in the first states."""
    counts, frequencies, symbols = batch(seed, total)
    states, words = coded(which, seed, total, lanes)
    at = np.frombuffer(states, np.uint32).copy()
    out = np.empty(total, np.uint8)
    # From an odd place, as in a frame.
    data = np.frombuffer(b"?" + words, np.uint8)
    assert which.rans_decode(at, counts, frequencies, data, 1, out) == len(data)
    np.testing.assert_array_equal(out, symbols)
    assert (at == LOWER_BOUND).all()


@needs_extension
@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 300),
    st.sampled_from([1, 3, 8, 64]),
    st.binary(max_size=300),
)
def test_any_words_are_read_alike(
    seed: int, total: int, lanes: int, data: bytes
) -> None:
    """Hostile states and words give both kernels the same symbols, or none."""
    counts, frequencies, _ = batch(seed, total)
    hostile = np.random.default_rng(seed).integers(0, 2**32, lanes, np.uint32)
    words = np.frombuffer(data, np.uint8)
    results = set()
    for which in BOTH:
        states, out = hostile.copy(), np.empty(total, np.uint8)
        end = which.rans_decode(states, counts, frequencies, words, 0, out)
        results.add((end, out.tobytes(), states.tobytes()) if end >= 0 else end)
    assert len(results) == 1


@needs_extension
def test_the_extension_refuses_what_does_not_fit() -> None:
    """Buffers that do not go together are an error, never read past."""
    compiled = compiled_kernels()
    assert compiled is not None
    counts, frequencies, symbols = batch(0, 100)
    states, words = np.full(4, LOWER_BOUND, np.uint32), np.zeros(202, np.uint8)
    out = np.empty(100, np.uint8)
    wrong = frequencies.copy()
    wrong[0, 0] += 1
    whole = np.zeros_like(frequencies)
    whole[:, 0] = 1 << SCALE_BITS
    for bad in (
        (states, counts, wrong, words, 0, out),
        (states, counts, whole, words, 0, out),
        (states, counts, frequencies, words, 203, out),
        (states, counts, frequencies, words, -1, out),
        (states, counts, frequencies, words, 0, out[:99]),
        (states, -counts, frequencies, words, 0, out),
        (states, counts[:1], frequencies[:0], words, 0, out),
        (states[:0], counts, frequencies, words, 0, out),
        (states.view(np.uint8)[1:5], counts, frequencies, words, 0, out),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            compiled.rans_decode(*bad)
    unknown = symbols.copy()
    frequencies[:, 255] = 0
    frequencies[:, 0] = 0
    frequencies[:, 0] = (1 << SCALE_BITS) - frequencies.sum(1)
    unknown[50] = 255
    for bad in (
        (states, counts, frequencies, symbols, words, 201),
        (states, counts, frequencies, symbols, words, 204),
        (states, counts, frequencies, unknown, words, 202),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            compiled.rans_encode(*bad)
    with pytest.raises(TypeError):
        compiled.rans_decode(bytes(4), counts, frequencies, words, 0, out)


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


@needs_extension
@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 300),
    st.sampled_from([(1, 4), (2, 3), (7, 2), (127, 1), (15, 1)]),
    st.sampled_from([np.int8, np.int16, np.int32, np.int64]),
    st.sampled_from([1, 3, 30, 127]),
)
def test_both_kernels_cut_digits_alike(
    seed: int, num: int, kind: tuple[int, int], dtype: type, largest: int
) -> None:
    """Symbols, counts and saturated digits are the same, and come back the same."""
    rng = np.random.default_rng(seed)
    is_signed = kind != (15, 1)
    low = -largest if is_signed else 0
    values = rng.integers(low, largest, num, endpoint=True).astype(dtype)
    packed = [which.pack_digits(values, *kind, is_signed) for which in BOTH]
    symbols, counts, saturated = packed[0]
    assert saturated == np.count_nonzero(np.abs(values.astype(int)) >= kind[0])
    for other in packed[1:]:
        np.testing.assert_array_equal(other[0], symbols)
        np.testing.assert_array_equal(other[1], counts)
        assert other[2] == saturated
    clipped = np.clip(values, -kind[0], kind[0])
    for which in BOTH:
        digits, number = which.unpack_digits(symbols, num, *kind, is_signed)
        np.testing.assert_array_equal(digits, clipped)
        assert number == saturated


@needs_extension
@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.integers(1, 60),
    st.sampled_from([1, 3, 40]),
    st.sampled_from([np.int8, np.int16, np.int32, np.float32]),
)
def test_both_kernels_split_and_join_alike(
    seed: int, num_rows: int, num_columns: int, spread: int, dtype: type
) -> None:
    """Classes hold the same elements in the same order, and joining undoes it."""
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
    parts = [which.split(matrix, grid) for which in BOTH]
    classes = rows[:, None] + columns + grid.offset >> 1
    by_class = np.argsort(np.clip(classes, 0, 59), axis=None, kind="stable")
    expected = matrix[grid.order].reshape(-1)[by_class]
    for which, part in zip(BOTH, parts, strict=True):
        np.testing.assert_array_equal(part, expected)
        np.testing.assert_array_equal(which.join(part, grid), matrix)


@needs_extension
def test_the_extension_refuses_digits_and_grids_that_do_not_fit() -> None:
    """Sizes, orders and types are checked before anything is written."""
    compiled = importlib.import_module("flwr_slfac.codec.kernels.compiled")
    values, counts = np.zeros(10, np.int8), np.zeros(256, np.int64)
    symbols = np.zeros(5, np.uint8)
    for bad in (
        (values, 1, 7, 2, True, symbols[:4], counts),
        (values, 3, 7, 2, True, symbols, counts),
        (values, 1, 128, 1, True, values.view(np.uint8), counts),
        (values, 1, 7, 3, True, symbols, counts),
        (values, 1, 0, 2, True, symbols, counts),
        (values, 1, 7, 2, True, symbols, counts[:255]),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            compiled.pack_digits(*bad)
    for short in (
        (symbols, 7, 2, True, values[:8]),
        (symbols, 7, 2, True, np.zeros(11, np.int8)),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            compiled.unpack_digits(*short)
    rows, starts = np.arange(2)[::-1].copy(), np.array([0, 2, 5])
    good = [values, 1, rows, rows, starts, rows, 0, 60, np.zeros(10, np.int8)]
    compiled.split(*good)
    for place, wrong in (
        (0, values[:9]),
        (1, 0),
        (1, 9),
        (2, np.array([0, 2])),
        (2, np.array([-1, 0])),
        (3, rows[:1]),
        (4, np.array([1, 2, 5])),
        (4, np.array([0, 6, 5])),
        (4, np.array([0, 2, 2**60])),
        (7, 0),
        (7, 257),
        (8, np.zeros(11, np.int8)),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            compiled.join(*good[:place], wrong, *good[place + 1 :])


@needs_extension
@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(1, 4), (2, 3), (7, 2), (127, 1), (15, 1)]),
    st.integers(1, 256),
    st.sampled_from([1, 100, 2**27]),
)
def test_both_kernels_fit_the_same_models(
    seed: int, kind: tuple[int, int], num_seen: int, most: int
) -> None:
    """Models of any counts are the same bytes."""
    rng = np.random.default_rng(seed)
    is_signed = kind != (15, 1)
    num_symbols = (kind[0] * (1 + is_signed) + 1) ** kind[1]
    counts = np.zeros(256, np.int64)
    seen = rng.permutation(num_symbols)[:num_seen]
    counts[seen] = rng.integers(1, most, seen.size, endpoint=True)
    midpoints = np.sort(rng.integers(0, 2**24, int(rng.integers(0, 255))))
    found = [which.fit_model(counts, *kind, is_signed, midpoints) for which in BOTH]
    assert found[0] == found[1]


@needs_extension
@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 300),
    st.sampled_from([np.int8, np.int64]),
    st.floats(0, width=32),
    st.floats(-1, 1, width=32),
)
def test_both_kernels_bring_levels_to_the_same_values(
    seed: int, num: int, dtype: type, step: float, share: float
) -> None:
    """Values are the same to the bit, overflow included."""
    rng = np.random.default_rng(seed)
    most = 127 if dtype is np.int8 else 2**40
    levels = rng.integers(-most, most, num, endpoint=True).astype(dtype)
    levels[rng.random(num) < 0.5] = 0
    taken = float(np.float32(share) * np.float32(min(step, 1e38)))
    found = []
    for which in BOTH:
        out = np.empty(num, np.float32)
        which.to_values(levels, step, taken, out)
        found.append(out)
    np.testing.assert_array_equal(found[0], found[1])


@needs_extension
def test_the_extension_refuses_models_and_levels_that_do_not_fit() -> None:
    """Counts, midpoints, levels and values of another size or sign are refused."""
    compiled = importlib.import_module("flwr_slfac.codec.kernels.compiled")
    counts, between = np.ones(256, np.int64), np.arange(254)
    for bad in (
        (counts[1:], 127, 1, True, between),
        (counts, 128, 1, True, between),
        (counts, 0, 1, True, between),
        (counts, 7, 3, True, between),
        (-counts, 127, 1, True, between),
        (counts << 36, 127, 1, True, between),
        (counts, 127, 1, True, np.arange(256)),
        (counts, 127, 1, True, between.view(np.uint8)[1:-7]),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            compiled.fit_model(*bad)
    levels, out = np.zeros(8, np.int8), np.zeros(8, np.float32)
    for wrong in (
        (levels, 2, 1.0, 0.0, out),
        (levels, 8, 1.0, 0.0, out),
        (levels[1:], 1, 1.0, 0.0, out),
        (levels, 1, 1.0, 0.0, out.view(np.uint8)[1:-3]),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            compiled.to_values(*wrong)
