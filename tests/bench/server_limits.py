"""What a device costs the server besides codecs: memory, descriptors, time of a step.

Usage: python -m tests.bench.server_limits [--streams 256] [--rounds 6]

Opens so many real streams over TLS on the loopback, held by threads of two other
processes, and prints what one of them adds to the server; then how long a step takes
whose frames hold next to nothing, so that only what is paid per device and step stays.
Then what the books keep of a device and a round, and how many descriptors this process
may have.
"""

import argparse
import gc
import resource
import statistics
import time
import tracemalloc
from functools import partial

import torch
from torch import nn
from torch.optim import SGD

from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Identity
from flwr_slfac.split import Begin, Limits, Rounds, ServerHalf
from flwr_slfac.traffic import Traffic
from flwr_slfac.transport.stream import StreamLink, StreamService, StreamTransport
from tests.bench.many_rounds import resident
from tests.bench.soak import NUM_STEPS, SharedProcesses, seen

SHAPE = (1, 4)


def of_streams(num_streams: int, num_rounds: int) -> None:
    """Print what open streams cost."""
    service = StreamService(StreamTransport(listen="127.0.0.1:0"))
    opener = SharedProcesses(2, Identity(), SHAPE)
    link = StreamLink(service, opener, 300.0, Limits())
    nodes = list(range(num_streams))
    try:
        of_open_streams(link, nodes, num_rounds)
    finally:
        link.close()
        opener.join()


def of_open_streams(link: StreamLink, nodes: list[int], num_rounds: int) -> None:
    """Print it, given a link to devices that have not joined yet."""
    num_streams = len(nodes)
    link.devices(nodes[:2])  # what the first stream brings along is not a stream's
    before = seen()
    start = time.perf_counter()
    link.devices(nodes)
    seconds = time.perf_counter() - start
    after = seen()
    more = num_streams - 2
    print(f"{more} streams opened in {seconds:.1f} s")
    print(f"KB a stream: {1e3 * (after.resident_mb - before.resident_mb) / more:.0f}")
    print(f"descriptors a stream: {(after.num_files - before.num_files) / more:.2f}")
    print(f"threads: {before.num_threads} before, {after.num_threads} after")
    back = nn.Linear(SHAPE[1], 4)
    server = ServerHalf(back, nn.CrossEntropyLoss(), partial(SGD, lr=0.01))
    rounds = Rounds(server, Identity(), Traffic(), Limits())
    times = []
    for server_round in range(1, num_rounds + 1):
        begin = Begin(
            server_round, 0, {"weight": torch.zeros(1000)}, Identity(), RELEASE
        )
        start, cpu = time.perf_counter(), time.process_time()
        rounds.train(link, nodes, begin)
        num_frames = num_streams * (NUM_STEPS + 1)
        wall_ms = 1e3 * (time.perf_counter() - start) / num_frames
        times.append((wall_ms, 1e3 * (time.process_time() - cpu) / num_frames))
    names = "wall", "server's CPU"
    for name, values in zip(names, zip(*times, strict=True), strict=True):
        print(
            f"ms a device and step, {name}: {statistics.median(values):.2f} "
            f"({min(values):.2f}-{max(values):.2f})"
        )


def of_books(num_devices: int) -> None:
    """Print what the ledger keeps of a device in a round."""
    directions = "up", "down", "targets", "model-up", "model-down", "control"
    traffic = Traffic()
    gc.collect()
    tracemalloc.start()
    for device in range(num_devices):
        for direction in directions:
            traffic.add(1, device, "train", direction, num_bytes=1000)  # type: ignore[arg-type]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"bytes of the ledger a device and round: {size / num_devices:.0f}")
    start = time.perf_counter()
    traffic.num_bytes(server_round=1)
    ms = 1e3 * (time.perf_counter() - start)
    print(f"ms of a sum over {num_devices} devices: {ms:.0f}")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"resident before: {resident():.0f} MB")
    of_streams(options.streams, options.rounds)
    of_books(10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    print(f"descriptors allowed here: {soft} ({hard} if raised)")


if __name__ == "__main__":
    main()
