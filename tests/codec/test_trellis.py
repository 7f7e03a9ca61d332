"""The coder "best": both kernels code alike, fewer bytes at the same error."""

import importlib
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec import Temporal, Waterfill, decode, encode
from flwr_slfac.codec.kernels import NUM_GROUPS, STEP_UNIT, Grid, kernels
from flwr_slfac.codec.kernels.choice import REFERENCE, compiled_kernels
from flwr_slfac.codec.kernels.contexts import extension_tables
from flwr_slfac.codec.waterfill.header import TRELLIS, Header
from flwr_slfac.codec.wire import pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError
from tests.codec.extension import assert_refused, needs_extension

STEP, PRICE = 0.7, 82


def grid_of(rng: np.random.Generator, sizes: tuple[int, int, int]) -> Grid:
    """Return a grid of samples, channels and rows, its energies at random."""
    num_samples, num_channels, num_rows = sizes
    num_planes = num_samples * num_channels
    rows = rng.permutation(num_rows)
    widths = [width for width in range(1, num_rows + 1) if num_rows % width == 0]
    return Grid(
        rng.integers(-4, 5, num_samples),
        rng.integers(-9, 10, num_channels),
        rng.integers(-9, 10, 3),
        rng.integers(0, 3, num_rows),
        rng.permutation(num_planes),
        rows,
        np.argsort(rows).astype(np.int32),
        int(rng.choice(widths)),
        14,
    )


def coefficients_of(rng: np.random.Generator, grid: Grid, scale: float) -> np.ndarray:
    """Return coefficients of about the energies of a grid, in the order of columns."""
    planes = (grid.samples[:, None] + grid.channels).reshape(-1)
    halves = grid.frequencies[grid.groups][:, None] + planes[np.argsort(grid.columns)]
    noise = rng.laplace(size=halves.shape)
    return np.ascontiguousarray(scale * noise * 2.0 ** (halves / 4), np.float32)


@needs_extension
@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 12)),
    st.sampled_from([0.01, 0.5, 3.0, 50.0, 1e3]),
)
def test_both_kernels_code_alike(
    seed: int, sizes: tuple[int, int, int], scale: float
) -> None:
    """Bytes, sums of errors, lists and values are the same; errors are as told."""
    rng = np.random.default_rng(seed)
    grid = grid_of(rng, sizes)
    x = coefficients_of(rng, grid, scale)
    lists = [rng.integers(-9, 9, 30), rng.integers(-(2**40), 2**40, 5)]
    taken = np.zeros(NUM_GROUPS, np.float32)
    found, values = [], []
    for which in (REFERENCE, compiled_kernels()):
        assert which is not None
        data, sums = which.encode_trellis(lists, x, grid, STEP_UNIT / STEP, PRICE)
        found.append((data, sums.tolist()))
        decoder = which.open_trellis(memoryview(data))
        for part in lists:
            np.testing.assert_array_equal(decoder.list(len(part)), part)
        values.append(decoder.levels(grid, STEP, taken))
    assert found[0] == found[1]
    np.testing.assert_array_equal(*values)
    error = float(np.linalg.norm(values[0].astype(np.float64) - x))
    told = found[0][1][-1] ** 0.5 * STEP / STEP_UNIT
    # Told errors are of coefficients in 512ths of a step, in float32.
    rounding = x.size**0.5 * STEP / STEP_UNIT + 2e-7 * float(np.linalg.norm(x))
    assert error == pytest.approx(told, abs=rounding)


@needs_extension
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_both_kernels_read_damaged_bytes_alike(seed: int, data: st.DataObject) -> None:
    """Cut or changed bytes are refused by both, or are the same finite values."""
    rng = np.random.default_rng(seed)
    grid = grid_of(rng, (3, 2, 5))
    x = coefficients_of(rng, grid, 1.0)
    good, _ = kernels().encode_trellis([rng.integers(-3, 3, 4)], x, grid, 700.0, PRICE)
    cut = data.draw(st.integers(0, len(good) + 2))
    damaged = bytearray(good.ljust(cut, b"\x80")[:cut])
    for place in data.draw(st.lists(st.integers(0, max(cut - 1, 0)), max_size=3)):
        if cut:
            damaged[place] = data.draw(st.integers(0, 255))
    outcomes = []
    for which in (REFERENCE, compiled_kernels()):
        assert which is not None
        try:
            decoder = which.open_trellis(memoryview(bytes(damaged)))
            values = decoder.list(4).tolist()
            levels = decoder.levels(grid, STEP, np.zeros(NUM_GROUPS, np.float32))
            assert np.isfinite(levels).all()
            outcomes.append((values, levels.tolist()))
        except DecodeError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@needs_extension
def test_the_extension_refuses_what_does_not_fit() -> None:
    """Sizes, ranges and types are checked before anything is coded."""
    compiled = importlib.import_module("flwr_slfac.codec.kernels.compiled")
    rng, tables = np.random.default_rng(0), extension_tables()
    grid = grid_of(rng, (2, 3, 4))
    x, sums = np.ones((4, 6), np.float32), np.empty(3 * NUM_GROUPS + 1, np.int64)
    lists, sizes = np.arange(5), np.array([2, 3])
    ends = (grid.width, grid.offset, 700.0, PRICE, tables, sums)
    good = [lists, sizes, x, *grid.arrays, *ends]
    wrong_grids = [
        (0, grid.samples[:1]), (1, grid.channels[:0]), (2, grid.frequencies[:0]),
        (0, grid.samples + 2000), (3, grid.groups + 3), (3, grid.groups[:3]),
        (4, grid.columns + 1), (5, grid.order + 1), (5, grid.order - 1),
        (6, grid.rank[:3]), (7, 3), (7, 0), (8, 10**6),
    ]  # fmt: skip
    assert_refused(
        compiled.encode_trellis,
        good,
        [
            (0, lists[:4]), (0, lists + 2**41), (1, np.array([6, -1])), (2, x[:3]),
            (2, x.astype(np.float64)), (12, 0.0), (12, float("nan")), (13, -1),
            (14, tables[:-1]), (15, sums[1:]), *((3 + i, w) for i, w in wrong_grids),
        ],
    )  # fmt: skip
    state = np.zeros(compiled.open_trellis(bytearray(), b"", tables) // 8, np.int64)
    data = compiled.encode_trellis(*good)
    compiled.open_trellis(state, data, tables)
    for size in sizes:
        compiled.decode_list(state, data, tables, np.empty(size, np.int64))
    taken = np.zeros(NUM_GROUPS, np.float32)
    ends = (grid.width, grid.offset, STEP, taken, tables, np.empty((4, 6), np.float32))
    assert_refused(
        compiled.decode_trellis,
        [state, data, *grid.arrays, *ends],
        [
            (0, state[1:]), (12, taken[1:]), (13, tables[1:]), (14, x[:3].copy()),
            *((2 + i, w) for i, w in wrong_grids),
        ],
    )  # fmt: skip
    assert_refused(
        compiled.decode_list,
        [state, data, tables, np.empty(0, np.int64)],
        [(0, state[1:]), (2, tables[1:]), (3, np.empty(3, np.uint8))],
    )


def smooth_maps(seed: int, *shape: int) -> torch.Tensor:
    """Return maps of few sources, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    num_samples, num_channels, size = shape
    x = torch.randn(num_samples, 3, size, size, generator=generator)
    mix = torch.randn(num_channels, 3, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    noise = torch.randn(num_samples, num_channels, size, size, generator=generator)
    return torch.einsum("kc,nchw->nkhw", mix, smooth) + 0.05 * noise


def relative_error(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the L2 error over the norm."""
    return float((x - y).norm() / x.norm())


TENSORS = {
    "maps": smooth_maps(0, 6, 4, 8),
    "maps after relu": smooth_maps(1, 8, 4, 8).relu(),
    "tokens": smooth_maps(2, 8, 8, 4).flatten(2).transpose(1, 2),
    "sparse vectors": (9 * smooth_maps(3, 32, 48, 1).flatten(1) - 1).relu(),
}
every_tensor = pytest.mark.parametrize("x", TENSORS.values(), ids=TENSORS.keys())


@every_tensor
@pytest.mark.parametrize("nrmse", [0.05, 0.4])
def test_fewer_bytes_at_the_same_error(x: torch.Tensor, nrmse: float) -> None:
    """The error is at most 2 percent above what was asked for, and bytes are fewer."""
    plain = encode(x, Waterfill(nrmse=nrmse))
    best = encode(x, Waterfill(nrmse=nrmse, coder="best"))
    assert relative_error(x, decode(best)) <= 1.02 * nrmse
    assert len(best) < len(plain)


@needs_extension
def test_frames_do_not_depend_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole search for a step ends at the same bytes."""
    x, codec = smooth_maps(4, 5, 3, 6), Waterfill(nrmse=0.3, coder="best")
    frames, values = [], []
    for name in ("reference", "compiled"):
        monkeypatch.setenv("SLFAC_KERNELS", name)
        kernels.cache_clear()
        frames.append(encode(x, codec))
        values.append(decode(frames[0]))
    monkeypatch.undo()
    kernels.cache_clear()
    assert frames[0] == frames[1]
    assert torch.equal(*values)
    head = Header.unpack(unpack_frame(frames[0], max_elements=x.numel()).sections[0])
    assert head.is_trellis


def test_targets_of_bits_and_step_are_met() -> None:
    """Of a rate, the error is less; of a step, the bytes are, at the same error."""
    x = TENSORS["maps after relu"]
    errors, sizes = {}, {}
    for target in ({"bits": 1.5}, {"step": 0.3}):
        for coder in ("range", "best"):
            data = encode(x, Waterfill(coder=coder, **target))  # type: ignore[arg-type]
            key = next(iter(target)), coder
            errors[key], sizes[key] = relative_error(x, decode(data)), len(data)
    assert 8 * sizes["bits", "best"] / x.numel() == pytest.approx(1.5, rel=0.02)
    assert errors["bits", "best"] < 0.97 * errors["bits", "range"]
    assert sizes["step", "best"] < sizes["step", "range"]
    assert errors["step", "best"] == pytest.approx(errors["step", "range"], rel=0.05)


def test_streams_reuse_the_channel_basis() -> None:
    """Frames after the first need the memory of both sides, and meet the error."""
    mine: dict[str, torch.Tensor] = {}
    theirs: dict[str, torch.Tensor] = {}
    codec = Waterfill(nrmse=0.2, coder="best")
    for seed in (5, 5, 5):
        x = smooth_maps(seed, 6, 8, 6)
        data = encode(x, codec, memory=mine)
        assert relative_error(x, decode(data, memory=theirs)) <= 1.02 * 0.2
    head = Header.unpack(unpack_frame(data, max_elements=x.numel()).sections[0])
    assert head.is_trellis
    with pytest.raises(DecodeError, match="not received"):
        decode(data)


def test_temporal_takes_it_inside() -> None:
    """What changed of samples is coded by it."""
    sizes = []
    for coder in ("range", "best"):
        memory: dict[str, torch.Tensor] = {}
        codec = Temporal(inner=Waterfill(nrmse=0.2, coder=coder))
        x = smooth_maps(7, 8, 4, 8)
        data = encode(x, codec, memory=memory, samples=torch.arange(8))
        sizes.append(len(data))
    assert sizes[1] < sizes[0]


def test_a_frame_of_two_coders_is_refused() -> None:
    """The other coder's frames have other sections, and none is missing."""
    x = TENSORS["maps"]
    data = encode(x, Waterfill(nrmse=0.2, coder="best"))
    frame = unpack_frame(data, max_elements=x.numel())
    head, levels = map(bytes, frame.sections)
    assert head[1] & TRELLIS
    both = head[:1] + bytes([head[1] ^ TRELLIS]) + head[2:]
    wrong = [[both, levels], [head], [head, levels, b""], [head, levels[:6]]]
    for sections in wrong:
        with pytest.raises(DecodeError):
            decode(pack_frame("waterfill", frame.dtype, frame.shape, sections))


@pytest.mark.parametrize("offset", [-(2**15), 2**15 - 1])
def test_no_offset_of_classes_breaks_the_decoder(offset: int) -> None:
    """Energies far beyond any class are taken for the nearest one."""
    x = TENSORS["tokens"]
    data = encode(x, Waterfill(nrmse=0.4, coder="best"))
    frame = unpack_frame(data, max_elements=x.numel())
    head, levels = map(bytes, frame.sections)
    crafted = replace(Header.unpack(memoryview(head)), offset=offset).pack()
    data = pack_frame("waterfill", frame.dtype, frame.shape, [crafted, levels])
    with suppress(DecodeError):
        assert decode(data).isfinite().all()
