"""How many frames a second a server codes, against the number of codec threads.

Usage: python -m tests.bench.server_throughput [--devices 16] [--repeats 5] [--write]

A frame is one device's step on the server: its smashed data decoded, a gradient of the
same shape encoded, by `Inbox`-like work on a `CodecPool`, as `Rounds` has it done; no
network, no back. Each codec codes streams of its own, one a device. With 1 thread there
is no pool. Also printed: what a thread-less server does in one core second, and the
memory and time of a stream and of a node, measured here. ``--write`` replaces the table
in results/server_throughput.md.
"""

import argparse
import math
import os
import re
import statistics
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import torch

from flwr_slfac.codec import Codec, decode, encode, parse_codec
from flwr_slfac.split.codec_pool import CodecPool
from tests.bench.revision import head

CODECS = (
    "identity",
    "uniform(bits=4)",
    "slfac",
    "waterfill(nrmse=0.1)",
    "waterfill(nrmse=0.1,coder='fast')",
)
SHAPES = {"64 KB": (16, 16, 8, 8), "1 MB": (64, 16, 16, 16), "4 MB": (64, 64, 16, 16)}
THREADS = (1, 2)
RESULT = Path(__file__).parent / "results" / "server_throughput.md"


class Streams:
    """The server's ends of so many devices' streams."""

    def __init__(self, codec: Codec, shape: tuple[int, ...], num_devices: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._codec = codec
        self._num_values = math.prod(shape)
        smooth = torch.nn.functional.avg_pool2d(
            torch.randn(shape, generator=generator), 3, 1, 1
        )
        self._gradient = 0.01 * smooth
        self._frame = encode(smooth.relu(), codec)
        self._memories = [({}, {}) for _ in range(num_devices)]  # type: ignore[var-annotated]

    def step(self, pool: CodecPool) -> None:
        """Decode what every device sent, and encode every gradient."""
        decoded: list[Future[torch.Tensor]] = [
            pool.submit(partial(decode, self._frame, memory=up), self._num_values)
            for up, _ in self._memories
        ]
        for future in decoded:
            future.result()
        works = {
            device: (self._encode(down), self._num_values)
            for device, (_, down) in enumerate(self._memories)
        }
        for _, coded in pool.as_done(works):
            coded.result()

    def _encode(self, memory: dict[str, torch.Tensor]) -> "partial[bytes]":
        return partial(encode, self._gradient, self._codec, memory=memory)


def frames_per_s(
    codec: Codec, shape: tuple[int, ...], num_devices: int, repeats: int
) -> dict[int, list[float]]:
    """Return frames a second by number of threads; these take turns."""
    runs = {n: Streams(codec, shape, num_devices) for n in THREADS}
    speeds: dict[int, list[float]] = {n: [] for n in THREADS}
    for repeat in range(repeats + 1):
        for num_threads, streams in runs.items():
            with CodecPool(num_threads) as pool:
                start = time.perf_counter()
                streams.step(pool)
                seconds = time.perf_counter() - start
            if repeat:
                speeds[num_threads].append(num_devices / seconds)
    return speeds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"`python -m tests.bench.server_throughput --devices {options.devices} "
        f"--repeats {options.repeats} --write`,",
        f"commit {head()}, {os.cpu_count()} cores, x86-64, CPU only, shared with other "
        "work",
        f"(load {os.getloadavg()[0]:.1f} at the start).",
        "",
        "| codec | float32 | frames/s, 1 thread | 2 threads | by medians | by bests |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for text in CODECS:
        for name, shape in SHAPES.items():
            speeds = frames_per_s(
                parse_codec(text), shape, options.devices, options.repeats
            )
            lines.append(line_of(text, name, speeds))
            print(lines[-1], flush=True)
    if options.write:
        old = RESULT.read_text()
        table = "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->"
        new = re.sub(r"<!-- table -->.*<!-- end -->", lambda _: table, old, flags=re.S)
        RESULT.write_text(new)


def line_of(codec: str, size: str, speeds: dict[int, list[float]]) -> str:
    """Return a line of the table."""
    cells = [
        f"{statistics.median(s):.0f} ({min(s):.0f}-{max(s):.0f})"
        for s in speeds.values()
    ]
    one, two = (speeds[n] for n in THREADS)
    ratios = statistics.median(two) / statistics.median(one), max(two) / max(one)
    return (
        f"| {codec} | {size} | {' | '.join(cells)} | "
        + " | ".join(f"{ratio:.2f}" for ratio in ratios)
        + " |"
    )


if __name__ == "__main__":
    main()
