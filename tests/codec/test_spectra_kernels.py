"""SL-FAC's compiled loops and PyTorch are one: same bytes, same values."""

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec import SLFAC, decode, encode
from flwr_slfac.codec.kernels import SpectraLoops, kernels, scratch
from flwr_slfac.codec.kernels.choice import compiled_kernels
from flwr_slfac.codec.packing import BitReader, BitWriter
from flwr_slfac.codec.slfac.ranges import round_outward
from flwr_slfac.codec.wire import pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError
from tests.codec.extension import assert_refused, needs_extension

pytestmark = needs_extension
CODECS = [
    SLFAC(),
    SLFAC(theta=0.5, bit_widths=(3, 6)),
    SLFAC(theta=1.0, bit_widths=(1, 8)),
    SLFAC(theta=0.99, bit_widths=(8, 8)),
    SLFAC(basis="identity"),
    SLFAC(tokens="td"),
    SLFAC(energy="sum"),
    SLFAC(components="deviation"),
]
KINDS = ["noise", "smooth", "sparse", "zeros", "constant", "huge", "tiny", "subnormal"]


@pytest.fixture(scope="module", autouse=True)
def _restore_choice() -> Iterator[None]:
    """Leave the choice of kernels to the next module."""
    yield
    kernels.cache_clear()


def loops() -> SpectraLoops:
    """Return the compiled loops."""
    found = compiled_kernels()
    assert found is not None
    assert found.spectra is not None
    return found.spectra


def drawn(shape: tuple[int, ...], kind: str, seed: int) -> torch.Tensor:
    """Return a tensor of a kind."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if kind == "smooth":
        return x.cumsum(-1).relu()
    if kind == "sparse":
        # Zeros of both signs, as a gradient behind a ReLU has.
        return x * (torch.rand(shape, generator=generator) > 0.8)
    scale = {"zeros": 0.0, "huge": 1e37, "tiny": 1e-30, "subnormal": 1e-42}
    return torch.full(shape, 0.7) if kind == "constant" else x * scale.get(kind, 1)


def by(name: str, patch: pytest.MonkeyPatch) -> None:
    """Choose kernels."""
    patch.setenv("SLFAC_KERNELS", name)
    kernels.cache_clear()


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(CODECS),
    st.lists(st.integers(1, 40), max_size=4),
    st.sampled_from(KINDS),
    st.integers(0, 2**32),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_both_ways_make_the_same_frames(
    codec: SLFAC, shape: list[int], kind: str, seed: int, dtype: torch.dtype
) -> None:
    """Frames, and every bit of what they decode to, are those of PyTorch."""
    x = drawn(tuple(shape), kind, seed)
    if dtype is torch.float16:
        x = x.clamp(-6e4, 6e4)
    found = []
    for name in ("compiled", "reference"):
        with pytest.MonkeyPatch.context() as patch:
            by(name, patch)
            frame = encode(x.to(dtype), codec)
            found.append((frame, decode(frame).reshape(-1).view(torch.uint8).tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (16, 16), (65, 33), (3, 600)])
def test_many_rows_and_chunks_make_the_same_frames(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where a chunk is not all rows, and rows fill no block."""
    x = drawn((7, 23, *sizes), "smooth", 3)
    for module in ("spectra.ENCODE_CHUNK", "codes.DECODE_CHUNK", "fused.DECODE_CHUNK"):
        monkeypatch.setattr(f"flwr_slfac.codec.slfac.{module}", 1)
    found = []
    for name in ("compiled", "reference"):
        by(name, monkeypatch)
        frame = encode(x, SLFAC())
        found.append((frame, decode(frame)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("view", ["permuted", "strided", "expanded", "offset"])
def test_views_are_coded_as_their_values(
    view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a tensor lies in memory does not show."""
    x = drawn((6, 5, 9, 8), "smooth", 1)
    x = {
        "permuted": x.permute(1, 0, 3, 2),
        "strided": x[::2, :, ::3, ::2],
        "expanded": x[:1].expand(6, 5, 9, 8),
        "offset": x[2:, 1:, 3:, 1:],
    }[view]
    by("compiled", monkeypatch)
    assert encode(x, SLFAC()) == encode(x.contiguous(), SLFAC())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-(2.0**40), 2.0**40, width=32), min_size=2, max_size=40).filter(
        lambda ends: len(ends) % 2 == 0
    ),
    st.integers(40, 60) | st.integers(-60, 40),
)
def test_ranges_are_rounded_outward_alike(ends: list[float], exponent: int) -> None:
    """The compiled float16 ends are those of PyTorch, signs of zero included."""
    pairs = np.array(ends, np.float32).reshape(2, 1, -1)
    pairs = np.clip(pairs, -(2.0**exponent), 2.0**exponent).astype(np.float32)
    expected = round_outward(torch.from_numpy(pairs), exponent)
    found = loops().ranges(pairs, exponent)
    np.testing.assert_array_equal(
        found.view(np.uint16), expected.numpy().view(np.uint16)
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 64), st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_records_are_packed_alike(bits: int, values: list[int]) -> None:
    """Records of any width are those of `BitWriter`, and come back."""
    words = np.array([v & (1 << bits) - 1 for v in values], np.uint64)
    starts = bits * np.arange(words.size)
    writer = BitWriter(bits * words.size)
    writer.write(words, starts)
    packed = loops().pack_records(words, bits)
    assert bytes(packed) == bytes(writer.getvalue())
    np.testing.assert_array_equal(
        loops().unpack_records(packed, bits, words.size), words
    )
    read = BitReader(packed, bits * words.size).read(starts)
    np.testing.assert_array_equal(read & np.uint64((1 << bits) - 1), words)


def test_threads_do_not_share_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of two threads at once are those of one; each keeps its own buffers."""
    by("compiled", monkeypatch)
    tensors = [drawn((4, 8, 16, 9 + i), "smooth", i) for i in range(12)]
    alone = [encode(x, SLFAC()) for x in tensors]
    values = [decode(data) for data in alone]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda x: encode(x, SLFAC()), tensors)) == alone
        for one, two in zip(values, pool.map(decode, alone), strict=True):
            assert torch.equal(one, two)
        other = pool.submit(scratch, "test", (4,), torch.float32).result()
    assert other.data_ptr() != scratch("test", (4,), torch.float32).data_ptr()


def test_what_is_decoded_does_not_lie_in_a_buffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A decoded tensor is not changed by what is coded after it."""
    by("compiled", monkeypatch)
    for shape in ((4, 3, 8, 8), (2, 70), (1, 1, 64, 80), (3, 1, 5), (2, 65, 1)):
        first = decode(encode(drawn(shape, "noise", 1), SLFAC()))
        kept = first.clone()
        decode(encode(drawn(shape, "noise", 2), SLFAC()))
        assert torch.equal(first, kept)


def test_a_swapped_range_is_refused_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends that are swapped or not finite are no range, whichever way decodes."""
    parts = unpack_frame(
        encode(drawn((2, 2, 4, 4), "noise", 0), SLFAC()), max_elements=99
    )
    for ends in ([2.0, 1.0], [np.nan, 1.0], [-np.inf, 1.0], [0.0, np.inf]):
        sections = [bytes(s) for s in parts.sections]
        ranges = np.frombuffer(sections[2], np.float16).copy()
        ranges[0], ranges[4] = ends
        sections[2] = ranges.tobytes()
        frame = pack_frame("slfac", torch.float32, parts.shape, sections)
        for name in ("compiled", "reference"):
            by(name, monkeypatch)
            with pytest.raises(DecodeError, match="a range is not finite"):
                decode(frame)


def test_the_extension_refuses_rows_that_do_not_fit() -> None:
    """Sizes, orders, splits and widths are checked before anything is touched."""
    compiled = importlib.import_module("flwr_slfac.codec.kernels.compiled")
    n, rows = 11, 3
    floats = np.zeros((n, rows), np.float32)
    order, store = np.arange(n), np.zeros(16 * rows, np.float32)
    split, energy = np.zeros(rows, np.int64), np.zeros((2, rows))
    ends = np.zeros((2, 2, rows), np.float32)
    good = [floats, n, rows, order, 0.9, store, 0, split, energy, ends]
    compiled.spectra_split(*good)
    assert split.tolist() == [1, 1, 1]
    changes = [
        (0, floats[1:]), (1, 12), (1, 0), (1, -1), (1, 2**62), (2, 2), (2, -3),
        (3, order[1:]), (3, order + 1), (3, order - 1), (5, store[1:]), (6, 1),
        (6, -1), (7, split[1:]), (8, energy[:1]), (9, ends[:1]), (6, 2**62),
    ]  # fmt: skip
    assert_refused(compiled.spectra_split, good, changes)
    levels = [np.zeros((2, rows), np.float32) for _ in range(2)]
    widths = np.full((2, rows), 3, np.int32)
    packed = np.zeros((3 * n * rows + 7) // 8, np.uint8)
    good = [store, n, split, *levels, widths, packed]
    compiled.spectra_pack(*good)
    changes = [
        (0, store[1:]), (1, 10), (1, 0), (1, 2**62), (2, split - 1), (2, split + n),
        (2, split[1:]), (3, levels[0][1:]), (5, widths + 6), (5, widths - 4),
        (5, widths[:1]), (6, packed[1:]),
    ]  # fmt: skip
    assert_refused(compiled.spectra_pack, good, changes)
    good = [packed, 0, n, 0, rows, split, *levels, widths, order, floats]
    assert compiled.spectra_unpack(*good) == 3 * n * rows
    # Past the end there are zeros.
    assert compiled.spectra_unpack(packed, 2**60, *good[2:]) > 2**60
    changes = [
        (1, -1), (2, 12), (2, 0), (3, 1), (3, -1), (4, 2), (4, -1), (5, split + n),
        (8, widths + 6), (9, order + 1), (9, order[1:]), (10, floats[1:]),
    ]  # fmt: skip
    assert_refused(compiled.spectra_unpack, good, changes)
    halves, used = np.zeros((2, 2, rows), np.float16), np.zeros((2, rows), np.int32)
    good = [ends + 1, 0, halves]
    changes = [
        (0, ends + 2), (0, ends + np.nan), (1, 1001), (1, -1001), (2, halves[1:]),
    ]  # fmt: skip
    assert_refused(compiled.spectra_ranges, good, changes)
    good = [halves, 0, widths, True, *levels, used]
    changes = [(0, halves[1:]), (1, 1001), (2, widths[1:]), (4, levels[0][1:])]
    assert_refused(compiled.spectra_levels, good, changes)
    good = [floats, n, rows, floats.copy()]
    changes = [(1, 0), (1, 10), (1, 2**62), (2, -1), (3, floats[1:].copy())]
    assert_refused(compiled.transpose, good, changes)
    words, out = np.zeros(5, np.uint64), np.zeros(5, np.uint8)
    for work, good in (
        (compiled.pack_records, [words, 8, out]),
        (compiled.unpack_records, [out, 8, words]),
    ):
        assert_refused(work, good, [(1, 65), (1, -1), (1, 6), (1, 9)])


def test_columns_become_the_rows_that_are_named() -> None:
    """Column k of any matrix is row index[k]; what does not fit is refused."""
    compiled = importlib.import_module("flwr_slfac.codec.kernels.compiled")
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (3, 7), (16, 8), (21, 30)):
        matrix = rng.random((rows, columns), np.float32)
        index, out = (
            rng.permutation(columns + 2)[:columns],
            np.zeros((columns + 2, rows)),
        )
        out = out.astype(np.float32)
        good = [matrix, rows, columns, index, out]
        changes = [
            (0, matrix[1:]), (1, 0), (2, columns + 1), (3, index[1:]), (3, index - 99),
            (3, index + columns + 2), (4, out[:0]), (4, out.reshape(-1)[1:]),
        ]  # fmt: skip
        if rows == 1:
            changes.pop()
        assert_refused(compiled.place_columns, good, changes)
        np.testing.assert_array_equal(out[index], matrix.T)
