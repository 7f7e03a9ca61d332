"""A proxy that carries TCP at the rate and delay of another link."""

import asyncio
import csv
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PART_BYTES = 4096
_AT_ONCE_S = 1e-3
Rate = Callable[[float], float]  # from seconds since the start to bits per second


def constant(bits_per_s: float) -> Rate:
    """Return a rate that does not change."""
    return lambda seconds: bits_per_s


def recorded(path: Path) -> Rate:
    """Return the rate of a file with ``time_s`` and ``rate_bit_per_s``, repeated."""
    with path.open() as file:
        rates = [float(row["rate_bit_per_s"]) for row in csv.DictReader(file)]
    return lambda seconds: rates[int(seconds) % len(rates)]


class SlowLink:
    """One device's link: what it sends shares a rate, and so does what it gets.

    Parameters
    ----------
    port : int
        Where the server listens on this machine.
    up, down : callable
        Rates from and to the device.
    one_way_s : float
        Delay in either direction.

    Attributes
    ----------
    address : str
        What the device connects to.
    """

    def __init__(self, port: int, up: Rate, down: Rate, one_way_s: float) -> None:
        self._port, self._rates, self._one_way_s = port, (up, down), one_way_s
        self._start = time.monotonic()
        self._free = [0.0, 0.0]  # when either direction has sent what it was given
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.address = asyncio.run_coroutine_threadsafe(
            self._listen(), self._loop
        ).result()

    async def _listen(self) -> str:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        ways = self._pump(0, reader, there[1]), self._pump(1, there[0], writer)
        await asyncio.gather(*ways)

    async def _pump(
        self, way: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send on what is read, at the rate of a direction and after the delay."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while (item := await under_way.get())[1]:
                await asyncio.sleep(max(0.0, item[0] - time.monotonic()))
                writer.write(item[1])
                await writer.drain()
            writer.close()

        delivering = asyncio.ensure_future(deliver())
        try:
            while True:
                asked = time.monotonic()
                if not (part := await reader.read(_PART_BYTES)):
                    break
                came = time.monotonic()
                # What had come already follows at once: a late wake is not the link's.
                begins = max(self._free[way], came if came - asked > _AT_ONCE_S else 0)
                self._free[way] = self._sent(way, begins, 8 * len(part))
                await asyncio.sleep(max(0.0, self._free[way] - time.monotonic()))
                under_way.put_nowait((self._free[way] + self._one_way_s, part))
        except OSError:
            pass
        under_way.put_nowait((0.0, b""))
        with suppress(OSError):
            await delivering

    def _sent(self, way: int, begins: float, bits: float) -> float:
        """Return when so many bits are through, at rates that change every second."""
        now = begins - self._start
        while True:
            rate = self._rates[way](now)
            left = int(now) + 1 - now
            if bits <= rate * left:
                return self._start + now + bits / rate
            bits -= rate * left
            now = float(int(now) + 1)
