"""A TCP proxy that cuts, delays and fragments what goes through it."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Passes bytes on between devices and a port of the loopback.

    Parameters
    ----------
    port : int
        Where to pass them to.
    seed : int
        Of the sizes of fragments and of the delays.
    fragment : int
        Most bytes that are passed on at once.
    delay_s : float
        Longest time that a fragment is held back.

    Attributes
    ----------
    port : int
        Where devices are to go.
    num_cuts : int
        Connections that were cut.
    """

    def __init__(
        self, port: int, seed: int = 0, fragment: int = 2**16, delay_s: float = 0.0
    ) -> None:
        self._to = port
        self._random = random.Random(seed)
        self._fragment, self._delay_s = fragment, delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.num_cuts = 0
        self.is_open = True
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        self.num_cuts += len(pairs)
        for pair in pairs:
            for each in pair:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Reset every connection and accept no more."""
        self.is_open = False
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self.is_open:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append((near, far))
            for ends in ((near, far), (far, near)):
                threading.Thread(
                    target=self._pass_on, args=ends, name="proxy", daemon=True
                ).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(self._random.randint(1, self._fragment)):
                if self._delay_s:
                    time.sleep(self._random.random() * self._delay_s)
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextmanager
def cutting(proxy: Proxy, seed: int, mean_s: float) -> Iterator[None]:
    """Cut every connection at random moments."""
    moments, over = random.Random(seed), threading.Event()

    def run() -> None:
        while not over.wait(moments.expovariate(1 / mean_s)):
            proxy.cut()

    thread = threading.Thread(target=run, name="cutter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
