"""Crowds of connections that do nothing, or little, do not change the run beside them.

gRPC's Python limits neither how many connections there are nor what they say before a
stream is open; it closes those that open none within ten seconds.
"""

import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from flwr_slfac.transport.stream import StreamService
from flwr_slfac.transport.stream import slfac_pb2 as pb
from tests.transport.beside import Beside
from tests.transport.fuzzing import Hostile, Watch, resident_bytes
from tests.transport.loopback import LOOPBACK

NUM_CONNECTIONS = 1000
# With both ends in this process they take up to 110 KB.
MOST_BYTES_EACH = 250_000
# The service waits 10 s for a stream.
CLOSED_WITHIN_S = 40.0
# Ten times that by hand: tests/bench/fuzz_stream.py.
FUZZ_S = 60.0


class Crowd:
    """Connections to a service that hold on to what they have.

    Parameters
    ----------
    service : StreamService
        Whose port.
    """

    def __init__(self, service: StreamService) -> None:
        self._identity = service.identity
        self._port = int(service.addresses[0].rpartition(":")[2])
        self._stack = ExitStack()

    def connect(self, *, tls: bool) -> socket.socket:
        """Open a connection, and shake hands where it is one with TLS."""
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        self._stack.callback(plain.close)
        if not tls:
            return plain
        context = ssl.create_default_context(cadata=self._identity.certificate.decode())
        context.set_alpn_protocols(["h2"])
        end = context.wrap_socket(plain, server_hostname=self._identity.name)
        self._stack.callback(end.close)
        return end

    def close(self) -> None:
        """Close all of them."""
        self._stack.close()


def is_closed(end: socket.socket) -> bool:
    """Return whether the other end has closed a connection."""
    end.settimeout(0.0)
    try:
        while end.recv(4096):
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        pass
    return True


@contextmanager
def crowded() -> Iterator[tuple[Beside, Crowd]]:
    """Give a run, and a crowd around its service."""
    service = StreamService(LOOPBACK)
    run, crowd = Beside(service), Crowd(service)
    try:
        yield run, crowd
    finally:
        run.close()
        crowd.close()


@pytest.mark.parametrize("tls", [False, True], ids=["TCP", "TLS"])
def test_a_thousand_idle_connections_change_nothing(tls: bool) -> None:
    """The run ends in the right bits, each takes some memory, and all are closed."""
    with crowded() as (run, crowd):
        before = resident_bytes()
        idle = [crowd.connect(tls=tls) for _ in range(NUM_CONNECTIONS)]
        run.train()
        assert resident_bytes() - before < NUM_CONNECTIONS * MOST_BYTES_EACH
        deadline = time.monotonic() + CLOSED_WITHIN_S
        while idle and time.monotonic() < deadline:
            run.train()
            idle = [end for end in idle if not is_closed(end)]
        assert not idle


def test_slow_writers_change_nothing() -> None:
    """Who says a byte at a time, after TLS or without, keeps nobody from training."""
    hello = pb.ToServer(hello=pb.Hello(token=b"x" * 32)).SerializeToString()
    said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) + hello
    with crowded() as (run, crowd):
        writers = [crowd.connect(tls=number % 2 == 1) for number in range(40)]
        over = threading.Event()

        def write() -> None:
            for position in range(len(said)):
                for writer in writers:
                    with suppress(OSError):
                        writer.sendall(said[position : position + 1])
                if over.wait(0.1):
                    return

        thread = threading.Thread(target=write)
        thread.start()
        while thread.is_alive():
            run.train()
        over.set()
        thread.join()


def test_without_file_descriptors_the_run_goes_on() -> None:
    """Devices that have joined train on while no connection more can be accepted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with crowded() as (run, crowd):
        run.train()
        in_use = max(int(name) for name in os.listdir("/proc/self/fd"))
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 40, hard))
            with suppress(OSError):
                while True:
                    crowd.connect(tls=False)
            # The listener tries, and fails, to accept what still waits for it.
            for _ in range(20):
                run.train()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_hostile_dialogues_change_nothing() -> None:
    """What strangers and devices with a token make up: no error, thread or bit more."""
    service = StreamService(LOOPBACK)
    run, watch = Beside(service), Watch(service)
    run.train()
    num_threads = threading.active_count()
    hostile = [Hostile(service, seed) for seed in (1, 2)]
    deadline = time.monotonic() + FUZZ_S
    threads = [threading.Thread(target=h.run, args=(deadline,)) for h in hostile]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        run.train()
    watch.close()
    assert not watch.escaped
    assert sum(each.counts.total() for each in hostile) > 20
    assert threading.active_count() <= num_threads
    run.close()
