"""How long a step takes over streams, beside a raw socket: one process a device.

Usage: python -m tests.bench.stream_latency [--steps 500] [--write]

A step is a gradient of so many bytes to each device, and as many bytes of smashed data
back, all devices at once, over TLS on the loopback: what `StreamLink.train` takes. The
devices compute nothing. The raw socket carries the same bytes by `sendall` and `recv`.
"""

import argparse
import multiprocessing
import os
import socket
import ssl
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from flwr_slfac.split import Limits, Smashed, TrainReply, TrainRequest
from flwr_slfac.transport.stream import (
    DeviceEnd,
    Opening,
    StreamLink,
    StreamService,
    StreamTransport,
)
from flwr_slfac.transport.stream.certificates import new_identity
from tests.bench.device_processes import ProcessOpener

SIZES = {"1 KB": 2**10, "100 KB": 100 * 2**10, "10 MB": 10 * 2**20}
RESULT = Path(__file__).parent / "results" / "stream_latency.md"
LENGTH = struct.Struct("<Q")


def be_device(opening: Opening, num_bytes: int) -> None:
    """Answer every request with so many bytes."""
    data = os.urandom(num_bytes)

    def answer(request: TrainRequest) -> TrainReply:
        return TrainReply(0, 2**40, Smashed(data, b"", 1))

    DeviceEnd(opening, 0, answer).run()  # type: ignore[arg-type]


def over_streams(num_bytes: int, num_devices: int, num_steps: int) -> list[float]:
    """Return seconds of each step over streams."""
    service = StreamService(StreamTransport(listen="127.0.0.1:0"))
    opener = ProcessOpener(be_device, num_bytes)
    link = StreamLink(service, opener, 60.0, Limits())
    # Every device is told partition id 0 here: nothing sums over them.
    gradient = os.urandom(num_bytes)
    nodes = list(range(num_devices))
    link.devices(nodes)

    def step() -> None:
        requests = [(node, TrainRequest(1, gradient=gradient)) for node in nodes]
        for _ in link.train_each(requests):
            pass

    try:
        return timed(step, num_steps)
    finally:
        link.close()
        opener.join()


def be_echo(port: int, num_bytes: int, certificate: str) -> None:
    """Answer every message on a raw socket with as many bytes."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    data = LENGTH.pack(num_bytes) + os.urandom(num_bytes)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while receive(end):
            end.sendall(data)


def receive(end: ssl.SSLSocket) -> bool:
    """Read one message; return False at the end."""
    try:
        head = end.recv(LENGTH.size)
    except OSError:
        return False
    if not head:
        return False
    (left,) = LENGTH.unpack(head)
    buffer = memoryview(bytearray(left))
    while left:
        left -= end.recv_into(buffer[len(buffer) - left :])
    return True


def over_sockets(num_bytes: int, num_devices: int, num_steps: int) -> list[float]:
    """Return seconds of each step over raw sockets with TLS."""
    identity = new_identity()
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder) / "cert.pem", Path(folder) / "key.pem"
        certificate.write_bytes(identity.certificate)
        key.write_bytes(identity.key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        spawn = multiprocessing.get_context("spawn")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            echoes = [
                spawn.Process(target=be_echo, args=(port, num_bytes, str(certificate)))
                for _ in range(num_devices)
            ]
            for echo in echoes:
                echo.start()
            ends = [
                context.wrap_socket(listener.accept()[0], server_side=True)
                for _ in echoes
            ]
        for end in ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = LENGTH.pack(num_bytes) + os.urandom(num_bytes)

        def step() -> None:
            for end in ends:
                end.sendall(data)
            for end in ends:
                receive(end)

        seconds = timed(step, num_steps)
        for end in ends:
            end.close()
        for echo in echoes:
            echo.join()
        return seconds


def timed(step: Callable[[], None], num_steps: int) -> list[float]:
    """Return seconds of each of so many steps, after some more."""
    for _ in range(max(3, num_steps // 10)):
        step()
    seconds = []
    for _ in range(num_steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print, and write where asked, a table of medians and spreads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = [
        "# A step over streams",
        "",
        "Milliseconds for one step of all devices, bytes both ways, TLS on the",
        "loopback, a process a device, nothing computed (`python -m",
        f"tests.bench.stream_latency --write`), on {os.cpu_count()} cores.",
        "",
        "| bytes | devices | stream p50 | p5-p95 | raw socket p50 | p5-p95 |",
        "|---|---|---|---|---|---|",
    ]
    for name, num_bytes in SIZES.items():
        num_steps = options.steps if num_bytes < 2**20 else max(20, options.steps // 10)
        for num_devices in (1, 4):
            cells = []
            for carry in (over_streams, over_sockets):
                values = carry(num_bytes, num_devices, num_steps)
                cuts = statistics.quantiles([1e3 * v for v in values], n=20)
                cells += [f"{cuts[9]:.2f}", f"{cuts[0]:.2f}-{cuts[18]:.2f}"]
            lines.append(f"| {name} | {num_devices} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if options.write:
        RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
