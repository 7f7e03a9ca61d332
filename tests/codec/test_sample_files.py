"""Samples remembered in files are those remembered in memory, and leave no trace."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from flwr_slfac.codec import (
    Memory,
    SampleMemory,
    Temporal,
    Waterfill,
    decode,
    encode,
)
from flwr_slfac.tensor_files import in_file, is_in_file
from flwr_slfac.transport.packing import pack_state, unpack_state


def mapped(folder: Path) -> int:
    """Return how many files of a folder are mapped into this process."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[4] for line in maps if str(folder) in line})


def batches(num: int, bits: int) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Return batches of samples that change little, in any order, some twice."""
    draw = torch.Generator().manual_seed(bits)
    values = torch.randn(40, 3, 4, 4, generator=draw)
    for step in range(num):
        samples = torch.randint(40, (9,), generator=draw).tolist()
        values = values + 0.02 * torch.randn(values.shape, generator=draw)
        yield values[samples].relu() if step % 3 else values[samples], samples


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("max_bytes", [2**20, 4000, 1])
def test_a_stream_is_that_of_memory(tmp_path: Path, bits: int, max_bytes: int) -> None:
    """The same frames and rows, bit for bit; all rows are in files, none has a name."""
    codec = Temporal(Waterfill(nrmse=0.1), max_bytes=max_bytes, bits=bits)
    here, there, plain = Memory(), Memory(), Memory()
    for x, samples in batches(25, bits):
        frame = encode(x, codec, memory=here, samples=samples)
        assert frame == encode(x, codec, memory=plain, samples=samples)
        SampleMemory(here).move_to(tmp_path)
        decode(frame, memory=there)
        SampleMemory(there).move_to(tmp_path)
        for memory in (here, there):
            rows = {n: t for n, t in memory.items() if n.startswith("temporal.rows.")}
            assert all(is_in_file(t) or not t.numel() for t in rows.values())
            assert SampleMemory(memory).num_bytes == SampleMemory(plain).num_bytes
            assert SampleMemory(memory).num_bytes <= max(max_bytes, 32)
            for one, other in zip(
                SampleMemory(memory).find(np.arange(40), (3, 4, 4)),
                SampleMemory(plain).find(np.arange(40), (3, 4, 4)),
                strict=True,
            ):
                assert np.array_equal(np.asarray(one), np.asarray(other))
        assert list(tmp_path.iterdir()) == []
    in_use = sum(is_in_file(t) for memory in (here, there) for t in memory.values())
    assert mapped(tmp_path) == in_use
    del here, there, rows, memory, one, other
    assert mapped(tmp_path) == 0


def test_a_copy_of_the_dict_is_a_copy_of_the_samples(tmp_path: Path) -> None:
    """It goes back to where the stream was, also when the samples are long replaced."""
    codec, memory = Temporal(Waterfill(nrmse=0.1)), Memory()
    steps = list(batches(12, 16))
    copies, frames = [], []
    for x, samples in steps:
        copies.append(dict(memory))
        frames.append(encode(x, codec, memory=memory, samples=samples))
        SampleMemory(memory).move_to(tmp_path)
    for (x, samples), copy, frame in zip(steps, copies, frames, strict=True):
        assert encode(x, codec, memory=copy, samples=samples) == frame


def test_what_is_stored_of_it_holds_the_rows(tmp_path: Path) -> None:
    """Packed and unpacked it is in memory, goes on alike, and moves to files again."""
    codec, memory = Temporal(Waterfill(nrmse=0.1)), Memory()
    for x, samples in batches(6, 16):
        frame = encode(x, codec, memory=(before := dict(memory)), samples=samples)
        stored: Memory = unpack_state(pack_state(memory))
        assert not any(is_in_file(t) for t in stored.values())
        assert encode(x, codec, memory=stored, samples=samples) == frame
        memory = before
        SampleMemory(memory).move_to(tmp_path)
        SampleMemory(stored).move_to(tmp_path)
        assert all(torch.equal(stored[n], memory[n]) for n in memory)


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """Refuse longer files to this process, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_is_an_error(tmp_path: Path) -> None:
    """What was not moved stays as it is, and no file is left behind."""
    codec, memory = Temporal(Waterfill(nrmse=0.1)), Memory()
    (x, samples), *_ = batches(1, 16)
    encode(x, codec, memory=memory, samples=samples)
    before = dict(memory)
    with small_files(100), pytest.raises(OSError, match="too large"):
        SampleMemory(memory).move_to(tmp_path)
    with pytest.raises(FileNotFoundError):
        SampleMemory(memory).move_to(tmp_path / "none")
    assert all(memory[name] is before[name] for name in before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(5,), (0, 3), (), (2, 3, 4)])
def test_a_tensor_in_a_file_is_the_same(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Of any shape, and also of one that is a view."""
    x = (100 * torch.rand(2, *shape)).to(dtype)
    for part in (x, x[1], x.movedim(0, -1)):
        found = in_file(part, tmp_path)
        assert found.dtype is dtype
        assert torch.equal(found, part)
