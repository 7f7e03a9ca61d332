"""A run that trains over a live service again and again, beside what harms it."""

from collections.abc import Callable

from flwr_slfac.split import DeviceHalf, Limits, LocalLink, train_locally
from flwr_slfac.states import State
from flwr_slfac.transport import Reply, Request
from flwr_slfac.transport.stream import Answer, StreamLink, StreamService
from tests.split import builders
from tests.transport.loopback import Loopback, ThreadOpener, answer_with

SIZES = [24, 16]


class Beside:
    """Two devices whose sessions outlive their trainings.

    Parameters
    ----------
    service : StreamService
        Stopped by `close`.
    """

    def __init__(self, service: StreamService) -> None:
        self._halves: list[DeviceHalf] = []
        answers: dict[int, Answer] = {k: self._answer(k) for k in range(len(SIZES))}
        self._opener = ThreadOpener(answers)
        self._link = StreamLink(service, self._opener, 120.0, Limits())
        self._expected = self._train(LocalLink)

    def train(self) -> None:
        """Train once; raises unless it ends as in one process."""
        front, back = self._train(self._link_of)
        builders.assert_same(dict(front), dict(self._expected[0]))
        builders.assert_same(dict(back), dict(self._expected[1]))

    def close(self) -> None:
        """Let the devices go, and see that no session of theirs broke."""
        self._link.close()
        self._opener.join()
        assert not self._opener.errors
        assert len(self._opener.openings) <= len(SIZES)

    def _answer(self, number: int) -> Answer:
        def answer(request: Request) -> Reply:
            return answer_with(self._halves[number])(request)

        return answer

    def _link_of(self, halves: list[DeviceHalf]) -> Loopback:
        self._halves = list(halves)
        return Loopback(halves, self._link)

    def _train(self, make_link: Callable[..., LocalLink]) -> tuple[State, State]:
        front, back = builders.halves()
        server = builders.server(back)
        devices = builders.devices(front, SIZES, keep_optimizer=True)
        result = train_locally(
            devices, front.state_dict(), server, num_rounds=2, make_link=make_link
        )
        assert not any(each.lost for each in result.rounds)
        return result.front, server.snapshot()
