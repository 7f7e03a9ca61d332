"""Which thread codes a device's frames: one of a few, or the round's own.

A codec keeps its state by stream, so what is coded for different devices at once comes
to the same bits as one after the other. All else of a step (features, the back, the
ledger, who is lost) stays in the round's thread, in the order of devices.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from threading import Thread
from types import TracebackType
from typing import TypeVar

import torch

from flwr_slfac.counts import require_count

T = TypeVar("T")
Key = TypeVar("Key")

# Measured (tests/bench/results/server_throughput.md): below it, two threads take longer
# than one, since most of the time goes to Python, which one thread runs at a time.
_LEAST_ELEMENTS = 2**17
# By the same table, the share of a frame's time in which no other frame is coded.
_MOST_BY_DEFAULT = 8


class CodecPool:
    """Threads for the codec work of one phase of a round; a context manager.

    Torch computes on one thread in each of them, so that as many cores are busy as
    there are threads. No thread is left when the context ends, however it ends.

    Parameters
    ----------
    num_threads : int or None
        How many; 1 for none beside the caller's, None for one a core that this process
        may use, 8 at most.

    Raises
    ------
    SettingError
        If it is below 1.

    Examples
    --------
    >>> with CodecPool(2) as pool:
    ...     pool.submit(lambda: "in the caller's thread", num_elements=1).result()
    "in the caller's thread"
    """

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = _by_cores() if num_threads is None else num_threads
        require_count("codec_threads", self.num_threads)
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> "CodecPool":
        if self.num_threads > 1:
            self._threads = ThreadPoolExecutor(
                self.num_threads,
                "slfac-codec",
                initializer=_compute_on_one_thread,
                initargs=(torch.get_num_threads(),),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def submit(self, run: Callable[[], T], num_elements: int) -> "Future[T]":
        """Have work done, here and now if it is small; its future holds what it raised.

        Parameters
        ----------
        run : callable
            Does it, on any thread; touches nothing that other work touches.
        num_elements : int
            About how many values it codes.
        """
        if self._threads is not None and num_elements >= _LEAST_ELEMENTS:
            return self._threads.submit(run)
        future: Future[T] = Future()
        try:
            future.set_result(run())
        except Exception as error:  # told where the result is asked for
            future.set_exception(error)
        return future

    def as_done(
        self, works: Mapping[Key, tuple[Callable[[], T], int]]
    ) -> "Iterator[tuple[Key, Future[T]]]":
        """Have much work done; give each future, with its key, as soon as it is done.

        Parameters
        ----------
        works : mapping
            By key, the two arguments of `submit`.
        """
        waiting: dict[Future[T], Key] = {}
        for key, work in works.items():
            future = self.submit(*work)
            if future.done():
                yield key, future
            else:
                waiting[future] = key
        for future in as_completed(waiting):
            yield waiting[future], future


def _by_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), _MOST_BY_DEFAULT)
    return min(os.cpu_count() or 1, _MOST_BY_DEFAULT)


def _compute_on_one_thread(callers: int) -> None:
    """Keep torch to one thread in this one; the caller's number stays what it is."""
    # The first look at the number sets it to what was noted last: not after this.
    torch.get_num_threads()
    torch.set_num_threads(1)
    # That was also noted for threads which start later: another one notes it back.
    other = Thread(target=torch.set_num_threads, args=(callers,))
    other.start()
    other.join()
