"""Whether many devices at once stay flat: steps a second, memory, threads, descriptors.

Usage: python -m tests.bench.soak [--devices 64] [--minutes 10] [--write]

Real streams over TLS on the loopback, a real back on the server: rounds of split
training, one after the other, each with a new round's front. The devices share a few
processes; what they send is a frame of their own, coded once, so that the two cores are
the server's. Sampled between two rounds, every few seconds; printed a minute. With
``--write`` the table goes to results/soak.md.
"""

import argparse
import ctypes
import gc
import math
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.optim import SGD

from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Codec, decode, encode, parse_codec
from flwr_slfac.split import (
    Begin,
    Limits,
    Lost,
    Rounds,
    ServerHalf,
    Smashed,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.split.crossing.device_end import encode_targets
from flwr_slfac.traffic import Traffic
from flwr_slfac.transport.stream import (
    DeviceEnd,
    Opening,
    StreamLink,
    StreamService,
    StreamTransport,
)
from tests.bench.many_rounds import resident
from tests.bench.revision import head

RESULT = Path(__file__).parent / "results" / "soak.md"
# Of a device's smashed data: 131,072 values, the fewest that are coded on threads.
SHAPE = (16, 32, 16, 16)
NUM_STEPS = 3
Shape = tuple[int, ...]
SAMPLE_S = 3.0


def be_devices(inbox: Connection, codec: Codec, shape: Shape) -> None:
    """Run a session in a thread for each opening that comes, until None does."""
    torch.set_num_threads(1)
    threads = []
    while (item := inbox.recv()) is not None:
        opening, device = item
        thread = threading.Thread(
            target=be_device, args=(opening, device, codec, shape)
        )
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()


def be_device(opening: Opening, device: int, codec: Codec, shape: Shape) -> None:
    """Answer every request with a frame; look at every gradient."""
    generator = torch.Generator().manual_seed(device)
    x = torch.randn(shape, generator=generator).relu()
    frames = encode(x, codec), encode_targets(torch.arange(shape[0]) % 4)
    front = {"weight": torch.zeros(1000)}

    def answer(request: TrainRequest) -> TrainReply:
        if request.gradient is not None:
            assert decode(request.gradient).shape == shape
        if request.step == NUM_STEPS:
            return TrainReply(device, NUM_STEPS, done=True, front=front)
        return TrainReply(device, NUM_STEPS, Smashed(*frames, shape[0]))

    DeviceEnd(opening, device, answer).run()  # type: ignore[arg-type]


class SharedProcesses:
    """Runs devices in a few processes, a thread each.

    Parameters
    ----------
    num_processes : int
        How many.
    codec : Codec
        Of the activations.
    shape : tuple of int
        Of what each device sends.
    """

    def __init__(self, num_processes: int, codec: Codec, shape: Shape) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._inboxes, self._processes = [], []
        for _ in range(num_processes):
            theirs, ours = spawn.Pipe(duplex=False)
            process = spawn.Process(target=be_devices, args=(theirs, codec, shape))
            process.start()
            theirs.close()
            self._inboxes.append(ours)
            self._processes.append(process)
        self.num_opened = 0

    def open(self, opening: Opening) -> int:
        """Start a device's session; its partition id is its node id."""
        self.num_opened += 1
        inbox = self._inboxes[opening.node % len(self._inboxes)]
        inbox.send((opening, opening.node))
        return 0

    def ended(self, nodes: Iterable[int]) -> dict[int, Lost]:
        """Return nothing: they stay."""
        return {}

    def join(self) -> None:
        """End the processes once their sessions have ended."""
        for inbox in self._inboxes:
            inbox.send(None)
        for process in self._processes:
            process.join(60)
            assert process.exitcode == 0


@dataclass(frozen=True)
class Sample:
    """What was seen between two rounds.

    Parameters
    ----------
    at_s : float
        Seconds since the first round.
    frames_per_s, cpu_ms : float
        Smashed batches since the last sample, and processor time of each; the second
        does not tell what else the machine does.
    resident_mb, in_use_mb : float
        Memory of the server's process, and how much of it glibc's allocator has given
        out (most of what Python's own allocator holds is not in it).
    num_threads, num_files : int
        Alive, and open descriptors.
    """

    at_s: float
    frames_per_s: float
    cpu_ms: float
    resident_mb: float
    in_use_mb: float
    num_threads: int
    num_files: int


def soak(
    num_devices: int,
    seconds: float,
    *,
    num_processes: int = 2,
    shape: Shape = SHAPE,
    codec: str = "slfac",
    codec_threads: int | None = None,
    sample_s: float = SAMPLE_S,
) -> tuple[list[Sample], StreamLink]:
    """Train round after round for so long; return samples and the closed link."""
    coding = parse_codec(codec)
    torch.manual_seed(0)
    back = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape[1:]), 4))
    server = ServerHalf(back, nn.CrossEntropyLoss(), partial(SGD, lr=0.01))
    rounds = Rounds(server, coding, Traffic(), Limits(), codec_threads=codec_threads)
    opener = SharedProcesses(num_processes, coding, shape)
    service = StreamService(StreamTransport(listen="127.0.0.1:0"))
    link = StreamLink(service, opener, 120.0, Limits())
    front = {"weight": torch.zeros(1000)}
    begin = partial(Begin, seed=0, up=coding, release=RELEASE)
    samples: list[Sample] = []
    server_round = num_frames = 0
    start = last = time.monotonic()
    cpu = time.process_time()
    try:
        while last - start < seconds:
            server_round += 1
            told = begin(server_round, front={k: v.clone() for k, v in front.items()})
            result = rounds.train(link, range(num_devices), told)
            assert len(result.finished) == num_devices
            num_frames += num_devices * NUM_STEPS
            now = time.monotonic()
            if now - last >= sample_s:
                used = time.process_time()
                cpu_ms = 1e3 * (used - cpu) / num_frames
                samples.append(seen(now - start, num_frames / (now - last), cpu_ms))
                num_frames, last, cpu = 0, now, used
    finally:
        link.close()
        opener.join()
    # Each device opened one stream, however long it took.
    assert opener.num_opened == num_devices
    return samples, link


def seen(at_s: float = 0.0, frames_per_s: float = 0.0, cpu_ms: float = 0.0) -> Sample:
    """Return a sample of this process."""
    gc.collect()
    num_files = len(os.listdir("/proc/self/fd"))
    num_threads = len(os.listdir("/proc/self/task"))
    memory = resident(), in_use()
    return Sample(at_s, frames_per_s, cpu_ms, *memory, num_threads, num_files)


class _Mallinfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns, sums over all arenas."""

    _fields_: ClassVar = [(f"field_{i}", ctypes.c_size_t) for i in range(10)]


def in_use() -> float:
    """Return what the allocator has given out, in MB; NaN where it is not glibc's."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return math.nan
    libc.mallinfo2.restype = _Mallinfo
    info = libc.mallinfo2()
    # hblkhd and uordblks: bytes of blocks with pages of their own, and of all others.
    return (info.field_4 + info.field_7) / 1e6


def main() -> None:
    """Print a line a minute, and write the table where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--codec", default="slfac")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples, _ = soak(
        options.devices,
        60 * options.minutes,
        num_processes=options.processes,
        codec=options.codec,
    )
    lines = [
        f"# {options.devices} devices at once for {options.minutes:g} minutes",
        "",
        f"`python -m tests.bench.soak --devices {options.devices} --minutes "
        f"{options.minutes:g} --codec {options.codec} --write`, commit {head()},",
        f"{os.cpu_count()} cores, x86-64, CPU only, shared with other work. Frames of",
        f"{'x'.join(map(str, SHAPE))} values up, as many down; {NUM_STEPS} steps a",
        f"round; {options.processes} processes hold the devices.",
        "",
        "Of the server's process, a sample every few seconds:",
        "",
        "| minute | frames/s median (min-max) | CPU ms a frame | resident MB "
        "| in use MB | threads | descriptors |",
        "|---|---|---|---|---|---|---|",
    ]
    for minute in range(int(samples[-1].at_s // 60) + 1):
        own = [s for s in samples if minute == int(s.at_s // 60)]
        if own:
            lines.append(line_of(minute + 1, own))
    print("\n".join(lines), flush=True)
    if options.write:
        RESULT.write_text("\n".join(lines) + "\n")


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median, the least and the most."""
    few = (statistics.median(values), min(values), max(values))
    middle, low, high = (f"{value:.{digits}f}" for value in few)
    return f"{middle} ({low}-{high})"


def line_of(minute: int, samples: list[Sample]) -> str:
    """Return a minute's line of the table."""
    cells = [
        str(minute),
        spread([s.frames_per_s for s in samples], 0),
        spread([s.cpu_ms for s in samples], 1),
        spread([s.resident_mb for s in samples], 1),
        spread([s.in_use_mb for s in samples], 1),
        spread([s.num_threads for s in samples], 0),
        spread([s.num_files for s in samples], 0),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
