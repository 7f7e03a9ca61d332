"""Streams over loopback with TLS: the service and devices' ends, without Flower."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from flwr_slfac.split import (
    DeviceHalf,
    EvaluateRequest,
    Limits,
    LocalLink,
    Lost,
    TrainRequest,
)
from flwr_slfac.transport import Reply, Request
from flwr_slfac.transport.stream import (
    Answer,
    DeviceEnd,
    Opening,
    StreamLink,
    StreamService,
    StreamTransport,
)

LOOPBACK = StreamTransport(listen="127.0.0.1:0")
# Devices have processes of their own: threads share torch's generator.
_ONE_AT_A_TIME = threading.Lock()
Change = Callable[[Opening], Opening]


def answer_with(half: DeviceHalf) -> Answer:
    """Return what answers requests by a device's half."""

    def answer(request: Request) -> Reply:
        with _ONE_AT_A_TIME:
            if isinstance(request, TrainRequest):
                return half.train(request)
            if isinstance(request, EvaluateRequest):
                return half.evaluate(request)
            return half.describe(channels=request.channels)

    return answer


def ahead_of(half: DeviceHalf) -> Callable[[], Reply | None]:
    """Return what answers the next request before it comes."""

    def ahead() -> Reply | None:
        with _ONE_AT_A_TIME:
            return half.run_ahead()

    return ahead


class ThreadOpener:
    """Runs each session of a device in a thread.

    Parameters
    ----------
    answers : mapping of int to Answer
        What answers for each device, by partition id; the node id is 1000 more.
    change : callable
        What becomes of an opening on its way.
    ahead : mapping of int to callable
        What answers the next request before it comes, by partition id.
    """

    def __init__(
        self,
        answers: Mapping[int, Answer],
        change: Change = lambda opening: opening,
        ahead: Mapping[int, Callable[[], Reply | None]] | None = None,
    ) -> None:
        self.answers, self.change = dict(answers), change
        self.ahead = dict(ahead or {})
        self.openings: list[Opening] = []
        self.errors: dict[int, Exception] = {}
        self.threads: list[threading.Thread] = []
        self._ended: dict[int, Lost] = {}

    def open(self, opening: Opening) -> int:
        """Start the device's end in a thread."""
        self.openings.append(opening)
        self._ended.pop(opening.node, None)
        thread = threading.Thread(target=self._run, args=(self.change(opening),))
        thread.daemon = True
        self.threads.append(thread)
        thread.start()
        return 0

    def ended(self, nodes: Iterable[int]) -> dict[int, Lost]:
        """Return the sessions that ended."""
        return {n: self._ended.pop(n) for n in list(nodes) if n in self._ended}

    def join(self) -> None:
        """Wait until every session has ended."""
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def _run(self, opening: Opening) -> None:
        device = opening.node - 1000
        try:
            ahead = self.ahead.get(device, lambda: None)
            DeviceEnd(opening, device, self.answers[device], ahead).run()
            why = Lost("it ended its session")
        except Exception as error:
            self.errors[device] = error
            why = Lost(f"{type(error).__name__}: {error}")
        # What became of a session says nothing of the one that followed it.
        last = [o for o in self.openings if o.node == opening.node][-1]
        if last.token == opening.token:
            self._ended[opening.node] = why


class Loopback(LocalLink):
    """A local link that goes over streams: partition ids outside, node ids inside."""

    def __init__(self, halves: Sequence[DeviceHalf], link: StreamLink) -> None:
        super().__init__(halves)
        self.link = link

    def describe(self, keys, *, channels):  # type: ignore[no-untyped-def]
        return _back(self.link.describe([1000 + k for k in keys], channels=channels))

    def devices(self, keys):  # type: ignore[no-untyped-def]
        return _back(self.link.devices([1000 + k for k in keys]))

    def train_each(self, requests):  # type: ignore[no-untyped-def]
        asked = ((1000 + key, request) for key, request in requests)
        return ((key - 1000, each) for key, each in self.link.train_each(asked))

    def evaluate_each(self, requests):  # type: ignore[no-untyped-def]
        asked = ((1000 + key, request) for key, request in requests)
        return ((key - 1000, each) for key, each in self.link.evaluate_each(asked))


def _back(answers):  # type: ignore[no-untyped-def]
    return {key - 1000: answer for key, answer in answers.items()}


@contextmanager
def linked(
    answers: Mapping[int, Answer],
    *,
    change: Change = lambda opening: opening,
    timeout_s: float = 30.0,
    limits: Limits | None = None,
    setting: StreamTransport = LOOPBACK,
    ahead: Mapping[int, Callable[[], Reply | None]] | None = None,
) -> Iterator[tuple[StreamLink, ThreadOpener]]:
    """Give a link to devices in threads, and end all of it."""
    service = StreamService(setting)
    opener = ThreadOpener(answers, change, ahead)
    link = StreamLink(service, opener, timeout_s, limits or Limits())
    try:
        yield link, opener
    finally:
        link.close()
    opener.join()


def through(port: int) -> Change:
    """Return what has devices go through a port of the loopback."""
    return lambda opening: replace(opening, addresses=(f"127.0.0.1:{port}",))
