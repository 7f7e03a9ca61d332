"""Frames of Waterfill coded at once and stream by stream: same bytes, same refusals."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec import Memory, Waterfill, decode, encode
from flwr_slfac.codec.kernels import Energies, kernels
from flwr_slfac.codec.kernels.choice import compiled_kernels
from flwr_slfac.codec.waterfill.class_values import kinds
from flwr_slfac.codec.waterfill.header import Header
from flwr_slfac.codec.waterfill.levels import _levels
from flwr_slfac.codec.waterfill.model import CHANCES, MIDPOINTS
from flwr_slfac.codec.wire import pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError
from tests.codec.extension import assert_refused, needs_extension

pytestmark = needs_extension
CODECS = [
    Waterfill(nrmse=0.1),
    Waterfill(nrmse=0.6, channels=None),
    Waterfill(nrmse=1e-4, basis="dct"),
    Waterfill(bits=2.0),
    Waterfill(step=0.01, basis="identity"),
]
SHAPES = [(), (1,), (70,), (9, 5), (3, 4, 6), (4, 5, 8, 8), (8, 3, 7, 9)]
KINDS = ["noise", "smooth", "relu", "sparse", "spike", "huge", "tiny", "zeros"]


def drawn(shape: tuple[int, ...], kind: str, seed: int) -> torch.Tensor:
    """Return a tensor of a kind."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "smooth" and shape:
        return x.cumsum(-1)
    if kind == "relu":
        return x.relu()
    if kind == "sparse":
        return x * (x.abs() > 1.5)
    if kind == "spike" and x.numel():
        x.view(-1)[0] = 1e5
    return x * {"huge": 1e36, "tiny": 1e-40, "zeros": 0.0}.get(kind, 1.0)


def by(name: str, patch: pytest.MonkeyPatch) -> None:
    """Choose kernels."""
    patch.setenv("SLFAC_KERNELS", name)
    kernels.cache_clear()


@pytest.fixture(autouse=True)
def _free_choice() -> None:
    kernels.cache_clear()


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(CODECS),
    st.lists(
        st.tuples(
            st.sampled_from(SHAPES),
            st.sampled_from(KINDS),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 2**32),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_both_ways_make_the_same_streams_of_frames(
    codec: Waterfill,
    steps: list[tuple[tuple[int, ...], str]],
    seed: int,
    dtype: torch.dtype,
) -> None:
    """Frames of a stream, whatever changes in it, and what they decode to, are one."""
    found = []
    for name in ("compiled", "reference"):
        with pytest.MonkeyPatch.context() as patch:
            by(name, patch)
            mine: Memory = {}
            theirs: Memory = {}
            for shape, kind in steps:
                x = drawn(shape, kind, seed)
                x = x.clamp(-6e4, 6e4) if dtype is torch.float16 else x
                frame = encode(x.to(dtype), codec, memory=mine)
                values = decode(frame, memory=theirs).reshape(-1)
                found.append((frame, values.view(torch.uint8).tolist()))
    half = len(found) // 2
    assert found[:half] == found[half:]


@pytest.mark.parametrize("seed", range(8))
def test_both_ways_refuse_the_same_bytes(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mended frames with changed sections give both the same values, or neither any."""
    rng = np.random.default_rng(seed)
    x = drawn((6, 4, 8, 8), KINDS[seed], seed) + drawn((6, 4, 8, 8), "smooth", 1)
    channels = None if seed < 4 else "klt"
    x = x.sum(1, keepdim=True) + 0.01 * x if channels else x
    codec = Waterfill(nrmse=[0.1, 1e-5][seed % 2], channels=channels)
    parts = unpack_frame(encode(x, codec), max_elements=10**6)
    num_refused = 0
    for _ in range(60):
        sections = [bytearray(section) for section in parts.sections]
        changed = sections[int(rng.integers(1, 3))]
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
        if rng.random() < 0.2:
            del changed[int(rng.integers(len(changed))) :]
        bad = [bytes(section) for section in sections]
        frame = pack_frame("waterfill", torch.float32, parts.shape, bad)
        found = []
        for name in ("compiled", "reference"):
            by(name, monkeypatch)
            try:
                found.append(decode(frame).view(torch.int32).tolist())
            except DecodeError:
                found.append(None)
                num_refused += 1
        assert found[0] == found[1]
    assert num_refused > 0


def energies(rng: np.random.Generator, n: int, r: int, s: int) -> Energies:
    """Return some energies of a matrix (s, n * r)."""
    lists = [rng.integers(-9, 9, size) for size in (n, r, min(s, 3))]
    return Energies(*lists, np.arange(s) * min(s, 3) // s, int(rng.integers(0, 40)))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 30)),
    st.sampled_from([np.int8, np.int16, np.int32]),
)
def test_levels_are_those_of_the_definition(
    seed: int, sizes: tuple[int, int, int], dtype: type
) -> None:
    """Both kernels' levels and sums are those of one value after the other."""
    rng = np.random.default_rng(seed)
    told = energies(rng, *sizes)
    most = {np.int8: 120, np.int16: 3e4, np.int32: 4e6}[dtype]
    x = rng.uniform(-1, 1, (sizes[2], sizes[0] * sizes[1])) ** 3 * most
    x = x.astype(np.float32)
    loops = compiled_kernels().frames  # type: ignore[union-attr]
    levels, sums = loops.quantize(x, told, 0.75, np.dtype(dtype))  # type: ignore[union-attr]
    again, same = _levels(x, told, 0.75)
    np.testing.assert_array_equal(levels, again)
    np.testing.assert_array_equal(sums, same)
    scaled = x * np.float32(0.75)
    off = np.clip(scaled, np.float32(-0.1), np.float32(0.1))
    np.testing.assert_array_equal(levels, np.rint(scaled - off))
    assert sums[:, 0].sum() == np.count_nonzero(levels)
    errors = np.rint((levels - scaled).astype(np.float32) * 1024).astype(np.int64)
    assert sums[:, 1].sum() == (np.sign(levels) * errors).sum()
    assert sums[:, 2].sum() == (errors**2).sum()


@pytest.mark.parametrize("nrmse", [0.02, 0.1, 0.4])
def test_a_stream_that_changes_wildly_keeps_its_error(nrmse: float) -> None:
    """Each frame is within 2 percent of the error, whatever the one before it held."""
    codec = Waterfill(nrmse=nrmse)
    memory: Memory = {}
    theirs: Memory = {}
    shape = (16, 8, 16, 16)
    for step in range(12):
        x = drawn(shape, "noise", step)
        kind = step * 7 % 5
        if kind == 1:
            x = torch.nn.functional.avg_pool2d(x.cumsum(3), 3, 1, 1).relu()
        elif kind == 2:
            x = (x + 1).relu() * 1e3
        elif kind == 3:
            x = (x - 1).relu()
        elif kind == 4:
            x = x.cumsum(2).abs() + 1
        decoded = decode(encode(x, codec, memory=memory), memory=theirs)
        error = float((decoded - x).norm() / x.norm())
        assert error == pytest.approx(nrmse, rel=0.02)


def test_the_extension_refuses_frames_that_do_not_fit() -> None:
    """Sizes, groups, kinds and chances are checked before anything is touched."""
    compiled = importlib.import_module("flwr_slfac.codec.kernels.compiled")
    n, r, s = 2, 3, 4
    a, u, v = np.zeros(n, np.int64), np.zeros(r, np.int64), np.zeros(2, np.int64)
    groups, sums = np.array([0, 0, 1, 1]), np.zeros((60, 3), np.int64)
    x, levels = np.ones((s, n * r), np.float32), np.ones((s, n * r), np.int8)
    lists = [
        (1, a[1:]), (2, u[1:]), (3, v[1:]), (4, groups[1:]), (4, groups + 1),
        (4, groups - 1), (1, a + 1001), (2, u - 1001), (3, v + 1001), (1, a[:0]),
    ]  # fmt: skip
    good = [x, a, u, v, groups, 0, 1.0, levels, 1, sums]
    changes = [*lists, (0, x[1:]), (7, levels[1:]), (8, 2), (8, 3), (9, sums[1:])]
    assert_refused(compiled.quantize, good, changes)
    tables = [kinds(), MIDPOINTS, CHANCES]
    of_tables = [
        (0, kinds()[1:]), (0, kinds() + 200), (0, kinds() * 0), (1, MIDPOINTS[1:]),
        (2, CHANCES[1:]), (2, CHANCES - 2**24), (2, CHANCES + 2**24),
    ]  # fmt: skip
    shifts, none = np.zeros(60, np.int64), np.zeros(0, np.int64)
    good = [none, none, a, u, v, groups, 0, shifts, levels, 1, *tables]
    changes = [(place + 1, wrong) for place, wrong in lists]
    changes += [(10 + place, wrong) for place, wrong in of_tables]
    changes += [(1, np.array([1])), (1, np.array([-1])), (7, shifts[1:]), (9, 0)]
    assert_refused(compiled.write_streams, good, [*changes, (8, levels[1:]), (9, 8)])
    parameters, words = compiled.write_streams(*good)
    order, out = np.zeros(n * r, np.int64), np.zeros((s, n * r), np.float32)
    good = [parameters, words, none, n, r, 2, groups, 0, 1.0, *tables, order, out]
    changes = [(9 + place, wrong) for place, wrong in of_tables]
    changes += [
        (3, 3), (3, 0), (3, -1), (3, 2**62), (4, 2), (4, -3), (5, 0), (5, 5),
        (6, groups[1:]), (12, order[1:]), (13, out[1:]), (2, np.array([-1])),
        (2, np.array([2**62, 2**62])), (2, np.array([2**60])),
    ]  # fmt: skip
    assert_refused(compiled.read_streams, good, changes)
    assert compiled.read_streams(*good) == ""
    np.testing.assert_array_equal(out, levels)
    for place, wrong in ((0, parameters[:-1]), (0, parameters + b"0"), (1, words[:4])):
        told = compiled.read_streams(*good[:place], wrong, *good[place + 1 :])
        assert told
    found = np.zeros(n, np.int64)
    good = [parameters, words, np.array([n]), *tables, found]
    changes = [(3 + place, wrong) for place, wrong in of_tables]
    changes += [(2, np.array([-1])), (2, np.array([3])), (6, found[1:])]
    assert_refused(compiled.read_lists, good, changes)


def test_lists_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that brings a channel basis decodes alike at once and one by one."""
    x = drawn((32, 6, 8, 8), "noise", 0)
    x = torch.einsum("ck,nkhw->nchw", drawn((12, 6), "noise", 1), x)
    frame = encode(x, Waterfill(nrmse=0.1))
    head = Header.unpack(unpack_frame(frame, max_elements=10**6).sections[0])
    assert head.brings_rotation
    found = []
    for name in ("compiled", "reference"):
        by(name, monkeypatch)
        found.append(decode(frame))
    assert torch.equal(*found)
    error = float((found[0] - x).norm() / x.norm())
    assert error == pytest.approx(0.1, rel=0.02)
