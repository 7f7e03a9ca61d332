"""A TCP proxy that cuts, delays, fragments, replays and reorders what passes it."""

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

# What is kept of a connection to be replayed: its handshake and what follows.
_MOST_REPLAYED = 2**16
_LONGEST_HOLD_S, _LONGEST_LATE_S = 0.05, 0.2
# For what was sent last to arrive before the connection is reset.
_LINGER_S = 0.05


class Passage:
    """One connection through the proxy.

    Parameters
    ----------
    near, far : socket
        To the device and to the server.
    """

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.heard = bytearray()
        self._held: bytearray | None = None
        self._lock = threading.Lock()

    @property
    def is_stranded(self) -> bool:
        """Whether what the device says is held back."""
        return self._held is not None

    def up(self, data: bytes) -> None:
        """Pass on what the device says, or hold it back."""
        with self._lock:
            if len(self.heard) < _MOST_REPLAYED:
                self.heard += data
            if self._held is not None:
                self._held += data
                return
        self.far.sendall(data)

    def strand(self, hold_s: float, late_s: float) -> None:
        """Hold back what the device says, part from it, deliver all of it later."""
        with self._lock:
            self._held = bytearray()
        time.sleep(hold_s)
        reset(self.near)
        time.sleep(late_s)
        with suppress(OSError):
            self.far.sendall(bytes(self._held))
            time.sleep(_LINGER_S)
        self.close()

    def close(self) -> None:
        """Reset both ends."""
        reset(self.near)
        reset(self.far)


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
    counts : Counter
        Connections by what was done to them: "cut", "strand", "replay".
    """

    def __init__(
        self, port: int, seed: int = 0, fragment: int = 2**16, delay_s: float = 0.0
    ) -> None:
        self._to = port
        self._random = random.Random(seed)
        self._fragment, self._delay_s = fragment, delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.counts: Counter[str] = Counter()
        self.is_open = True
        self._passages: list[Passage] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def num_cuts(self) -> int:
        """Connections that devices lost."""
        return self.counts["cut"] + self.counts["strand"]

    def cut(self) -> None:
        """Reset every connection."""
        for passage in self._taken():
            self.counts["cut"] += 1
            passage.close()

    def strand(self) -> None:
        """Cut every connection, and deliver what was under way after the next one's."""
        for passage in self._taken():
            self.counts["strand"] += 1
            hold_s = self._random.random() * _LONGEST_HOLD_S
            late_s = self._random.random() * _LONGEST_LATE_S
            _in_thread(passage.strand, hold_s, late_s)

    def replay(self) -> None:
        """Open a second connection for each, and say there what was said in it."""
        with self._lock:
            passages = list(self._passages)
        for passage in passages:
            self.counts["replay"] += 1
            _in_thread(self._repeat, bytes(passage.heard))

    def close(self) -> None:
        """Reset every connection and accept no more."""
        self.is_open = False
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _taken(self) -> list[Passage]:
        with self._lock:
            passages, self._passages = self._passages, []
        return passages

    def _repeat(self, heard: bytes) -> None:
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self._to)) as far,
        ):
            far.sendall(heard)
            time.sleep(self._random.random() * _LONGEST_LATE_S)

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
            passage = Passage(near, far)
            with self._lock:
                self._passages.append(passage)
            _in_thread(self._pass_on, passage, True)
            _in_thread(self._pass_on, passage, False)

    def _pass_on(self, passage: Passage, is_up: bool) -> None:
        source = passage.near if is_up else passage.far
        say = passage.up if is_up else passage.near.sendall
        with suppress(OSError):
            while data := source.recv(self._random.randint(1, self._fragment)):
                if self._delay_s:
                    time.sleep(self._random.random() * self._delay_s)
                say(data)
        if not passage.is_stranded:
            passage.close()


def reset(end: socket.socket) -> None:
    """Close a connection that another thread may be reading."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def _in_thread(work, *arguments) -> None:  # type: ignore[no-untyped-def]
    threading.Thread(target=work, args=arguments, name="proxy", daemon=True).start()


@contextmanager
def cutting(
    proxy: Proxy, seed: int, mean_s: float, harms: Sequence[str] = ("cut",)
) -> Iterator[None]:
    """Do harm to every connection at random moments.

    Parameters
    ----------
    proxy : Proxy
        Where they pass.
    seed : int
        Of the moments.
    mean_s : float
        Between two of them.
    harms : sequence of {"cut", "strand", "replay"}
        What is done, by chance.
    """
    moments, over = random.Random(seed), threading.Event()

    def run() -> None:
        while not over.wait(moments.expovariate(1 / mean_s)):
            getattr(proxy, moments.choice(harms))()

    thread = threading.Thread(target=run, name="cutter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
