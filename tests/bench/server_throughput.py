"""How many frames a second a server codes, against the number of codec threads.

Usage: python -m tests.bench.server_throughput [--devices 8] [--repeats 10] [--write]

A frame is one device's step on the server: its smashed data decoded and a gradient of
the same shape encoded, on a `CodecPool`, as `Rounds` has it done; no network, no back.
Each device has streams of its own. With 1 thread there is no pool. Processor time tells
what a frame costs a core, whatever else the machine does; wall time tells what threads
gain, which other work on the same cores hides: the first line shows how much, by work
that needs no Python. ``--write`` replaces the table in results/server_throughput.md.
"""

import argparse
import math
import os
import re
import statistics
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from flwr_slfac.codec import Codec, decode, encode, parse_codec
from flwr_slfac.split.codec_pool import CodecPool
from tests.bench.revision import head
from tests.bench.soak import spread

CODECS = (
    "identity",
    "uniform(bits=4)",
    "slfac",
    "waterfill(nrmse=0.1)",
)
SHAPES = {
    "1 KB": (4, 4, 4, 4),
    "64 KB": (16, 16, 8, 8),
    "1 MB": (64, 16, 16, 16),
    "4 MB": (64, 64, 16, 16),
}
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
        self.num_bytes = len(self._frame) + len(encode(self._gradient, codec))
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


class Control:
    """Work of about 20 ms a device that needs no Python and little memory."""

    def __init__(self, num_devices: int) -> None:
        self._num_devices, self._data = num_devices, bytes(2**20)
        self.num_bytes = 0

    def step(self, pool: CodecPool) -> None:
        """Do it for every device."""
        works = dict.fromkeys(range(self._num_devices), (self._sum, 2**20))
        for _, done in pool.as_done(works):
            done.result()

    def _sum(self) -> None:
        for _ in range(20):
            zlib.crc32(self._data)


@dataclass(frozen=True)
class Speed:
    """What was measured with one number of threads.

    Parameters
    ----------
    frames_per_s : list of float
        By the clock.
    cpu_ms : list of float
        Processor time of a frame.
    """

    frames_per_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def measured(
    runs: Mapping[int, Streams | Control], num_devices: int, repeats: int
) -> dict[int, Speed]:
    """Return speeds by number of threads; these take turns."""
    speeds = {n: Speed() for n in runs}
    for repeat in range(repeats + 1):
        for num_threads, run in runs.items():
            with CodecPool(num_threads) as pool:
                start, cpu = time.perf_counter(), time.process_time()
                run.step(pool)
                seconds = time.perf_counter() - start
                cpu = time.process_time() - cpu
            if repeat:
                speeds[num_threads].frames_per_s.append(num_devices / seconds)
                speeds[num_threads].cpu_ms.append(1e3 * cpu / num_devices)
    return speeds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
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
        "| codec | float32 | KB both ways | CPU ms a frame | frames/s, 1 thread "
        "| 2 threads | by medians | by bests |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    num_devices, repeats = options.devices, options.repeats
    control = Control(num_devices)
    speeds = measured(dict.fromkeys(THREADS, control), num_devices, repeats)
    lines.append(line_of("(no Python)", "", 0, speeds))
    print(lines[-1], flush=True)
    for text in CODECS:
        for name, shape in SHAPES.items():
            codec = parse_codec(text)
            runs = {n: Streams(codec, shape, num_devices) for n in THREADS}
            speeds = measured(runs, num_devices, repeats)
            lines.append(line_of(text, name, runs[1].num_bytes, speeds))
            print(lines[-1], flush=True)
    if options.write:
        old = RESULT.read_text()
        table = "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->"
        new = re.sub(r"<!-- table -->.*<!-- end -->", lambda _: table, old, flags=re.S)
        RESULT.write_text(new)


def line_of(codec: str, size: str, num_bytes: int, speeds: Mapping[int, Speed]) -> str:
    """Return a line of the table."""
    one, two = (speeds[n].frames_per_s for n in THREADS)
    cells = [
        codec,
        size,
        f"{num_bytes / 1024:.1f}",
        spread(speeds[1].cpu_ms, 2),
        spread(one, 0),
        spread(two, 0),
        f"{statistics.median(two) / statistics.median(one):.2f}",
        f"{max(two) / max(one):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
