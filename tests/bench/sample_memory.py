"""What a memory of samples costs: bytes of their names, and memory with rows on a disk.

Usage: python -m tests.bench.sample_memory [--folder FOLDER]

Names: frames of 32 samples of 16 x 16 values, of 600 in random order, which change by
so many standard deviations from epoch to epoch; mean bytes of the third epoch. Memory:
12,288 samples of 8192 values in half precision, in frames of 64; what of it the system
cannot free (RssAnon), in memory and in FOLDER.
"""

import argparse
import ctypes
import re
import statistics
import time
from pathlib import Path

import torch

from flwr_slfac.codec import Float16, Memory, SampleMemory, Temporal, Waterfill, encode

NUM_SAMPLES, BATCH, NUM_FRAMES = 600, 32, 192


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    print("| change | named | known |\n|---|---|---|")
    for change in (0.0, 0.05, 0.2, 1.0):
        named, known = (frame_bytes(change, known=k) for k in (False, True))
        print(f"| {change:g} | {named:.0f} | {known:.0f} |")
    print("\n| rows in | remembered | RssAnon | a frame |\n|---|---|---|---|")
    for where in (None, folder):
        print(f"| {where or 'memory'} | {held(where)} |")


def frame_bytes(change: float, *, known: bool) -> float:
    """Return mean bytes of a frame in the third epoch."""
    draw, memory = torch.Generator().manual_seed(0), Memory()
    codec = Temporal(Waterfill(nrmse=0.1))
    values = torch.randn(NUM_SAMPLES, 16, 16, generator=draw).cumsum(1).cumsum(2)
    sizes: list[int] = []
    for _ in range(3):
        sizes = []
        noise = torch.randn(values.shape, generator=draw)
        x = values + change * values.std() * noise
        for part in torch.randperm(NUM_SAMPLES, generator=draw).split(BATCH):
            how = {"samples": part.tolist(), "samples_known": known}
            frame = encode(x[part], codec, memory=memory, **how)
            sizes += [len(frame)] if len(part) == BATCH else []
    return statistics.mean(sizes)


def held(folder: Path | None) -> str:
    """Return what is remembered, what it takes, and how long a frame takes to move."""
    memory, codec = Memory(), Temporal(Float16(), max_bytes=2**30)
    x = torch.randn(64, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    encode(x, codec, memory=Memory(), samples=range(64))
    before, times = unfreeable(), []
    for step in range(2 * NUM_FRAMES):
        first = 64 * (step % NUM_FRAMES)
        samples = range(first, first + 64)
        encode(x + 0.01 * step, codec, memory=memory, samples=samples)
        start = time.perf_counter()
        SampleMemory(memory).move_to(folder)
        times.append(1e3 * (time.perf_counter() - start))
    took = unfreeable() - before
    kept = SampleMemory(memory).num_bytes / 2**20
    return f"{kept:.0f} MiB | {took:.0f} MiB | {statistics.median(times):.2f} ms"


def unfreeable() -> float:
    """Return MiB of this process that no file holds."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
