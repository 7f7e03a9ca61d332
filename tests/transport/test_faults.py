"""Law 6 over streams: what breaks is mended, or costs one device its round."""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest

from flwr_slfac.split import (
    DeviceHalf,
    Limits,
    LocalLink,
    TrainReply,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.local import LocalResult
from flwr_slfac.states import State
from flwr_slfac.transport import Reply, Request
from flwr_slfac.transport.stream import (
    Answer,
    Opening,
    StreamLink,
    StreamLostError,
    StreamService,
)
from tests.flower.oracle import LossyLink
from tests.split import builders
from tests.transport.loopback import (
    LOOPBACK,
    Loopback,
    ThreadOpener,
    ahead_of,
    answer_with,
    linked,
    through,
)
from tests.transport.proxy import Proxy, cutting

SIZES = [24, 16, 20]
# Training steps of a round and the last reply, then one evaluation.
REQUESTS = {0: 3 + 1 + 1, 1: 2 + 1 + 1, 2: 3 + 1 + 1}
Spoil = Callable[[Answer, int, Proxy], Answer]


class Run:
    """Devices behind a proxy that breaks what passes, for one training.

    Parameters
    ----------
    spoil : callable
        From what answers, the partition id and the proxy to what answers instead.
    only : int or None
        The device that goes through the proxy; None for all.
    timeout_s : float
        Of a step.
    depth : int
        Of the pipeline.
    fragment, delay_s
        As `Proxy`'s.
    mean_s, harms
        As `cutting`'s; nothing is done with 0.
    """

    def __init__(
        self,
        spoil: Spoil,
        *,
        only: int | None = None,
        timeout_s: float = 60.0,
        fragment: int = 2**16,
        delay_s: float = 0.0,
        mean_s: float = 0.0,
        depth: int = 0,
        harms: Sequence[str] = ("cut",),
    ) -> None:
        self._depth = depth
        self._spoil, self._only, self._timeout_s = spoil, only, timeout_s
        self._fragment, self._delay_s = fragment, delay_s
        self._mean_s, self._harms = mean_s, harms
        self._stack = ExitStack()

    def link(self, halves: list[DeviceHalf]) -> Loopback:
        """Return a link to devices behind the proxy."""
        service = StreamService(LOOPBACK)
        port = int(service.addresses[0].rpartition(":")[2])
        self.proxy = Proxy(port, 1, self._fragment, self._delay_s)
        answers = {
            h.partition: self._spoil(answer_with(h), h.partition, self.proxy)
            for h in halves
        }

        def change(opening: Opening) -> Opening:
            if self._only in (None, opening.node - 1000):
                return through(self.proxy.port)(opening)
            return opening

        ahead = {h.partition: ahead_of(h) for h in halves}
        self.opener = ThreadOpener(answers, change, ahead)
        link = StreamLink(service, self.opener, self._timeout_s, Limits())
        self._stack.callback(self.proxy.close)
        self._stack.callback(link.close)
        if self._mean_s:
            harm = cutting(self.proxy, 3, self._mean_s, self._harms)
            self._stack.enter_context(harm)
        return Loopback(halves, link)

    def train(self, num_rounds: int) -> tuple[LocalResult, State]:
        """Train, and end everything."""
        with self._stack:
            outcome = train(self.link, num_rounds, self._depth)
        self.opener.join()
        return outcome


def train(
    make_link: Callable[..., LocalLink], num_rounds: int, depth: int = 0
) -> tuple[LocalResult, State]:
    """Train three devices over a link."""
    front, back = builders.halves()
    server = builders.server(back)
    result = train_locally(
        builders.devices(front, SIZES, keep_optimizer=True),
        front.state_dict(),
        server,
        num_rounds=num_rounds,
        on_device_error="drop",
        pipeline_depth=depth,
        make_link=make_link,
    )
    return result, server.snapshot()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(("fragment", "mean_s"), [(2**16, 0.1), (2000, 0.3)])
def test_cut_streams_are_resumed_and_each_step_is_taken_once(
    fragment: int, mean_s: float, depth: int
) -> None:
    """Over twenty cuts at any moment change no bit, and nothing is done twice."""
    counts: dict[int, int] = {}
    moments = random.Random(5)

    def spoil(answer: Answer, partition: int, proxy: Proxy) -> Answer:
        def cut_and_answer(request: Request) -> Reply:
            counts[partition] = counts.get(partition, 0) + 1
            if moments.random() < 0.2:
                proxy.cut()
            return answer(request)

        return cut_and_answer

    run = Run(spoil, fragment=fragment, mean_s=mean_s, depth=depth)
    result, back = run.train(4)
    local, local_back = train(LocalLink, 4, depth)
    builders.assert_same(dict(result.front), dict(local.front))
    builders.assert_same(dict(back), dict(local_back))
    assert result.evaluations == local.evaluations
    assert run.proxy.num_cuts > 20
    assert counts == {device: 4 * number for device, number in REQUESTS.items()}
    assert len(run.opener.openings) == 3
    assert not run.opener.errors


def test_a_device_that_stays_away_is_lost_and_comes_back_in_the_next_round() -> None:
    """The others end the round without it; then a new session is opened for it."""
    seen: list[int] = []

    def spoil(answer: Answer, partition: int, proxy: Proxy) -> Answer:
        def leave(request: Request) -> Reply:
            if partition == 1 and isinstance(request, TrainRequest):
                seen.append(request.step)
                proxy.is_open = len(seen) != 2
                if not proxy.is_open:
                    proxy.cut()
            return answer(request)

        return leave

    def change(opening: Opening) -> Opening:
        run.proxy.is_open = True
        return through(run.proxy.port)(opening)

    run = Run(spoil, only=1, timeout_s=1.0)
    make = run.link

    def make_link(halves: list[DeviceHalf]) -> Loopback:
        link = make(halves)
        first = run.opener.change
        run.opener.change = lambda o: change(o) if o.node == 1001 else first(o)
        return link

    run.link = make_link  # type: ignore[method-assign]
    result, back = run.train(2)

    def lossy(halves: list[DeviceHalf]) -> LossyLink:
        return LossyLink(halves, {(1, 1): 1}, lambda partition, begin: begin)

    local, local_back = train(lossy, 2)
    builders.assert_same(dict(result.front), dict(local.front))
    builders.assert_same(dict(back), dict(local_back))
    assert list(result.rounds[0].lost) == [1]
    assert not result.rounds[1].lost
    assert [o.node for o in run.opener.openings] == [1000, 1001, 1002, 1001]
    # The first session's end gave up, or came back in time to hear that it is over.
    assert all(isinstance(e, StreamLostError) for e in run.opener.errors.values())


def test_a_device_that_raises_is_lost_for_the_round_with_its_reason() -> None:
    """What a data set of the user's raises is told; its session goes on."""

    def spoil(answer: Answer, partition: int, proxy: Proxy) -> Answer:
        def fail(request: Request) -> Reply:
            if partition == 2 and isinstance(request, TrainRequest):
                begun.append(request.step)
                if begun == [0, 1]:
                    raise ValueError("the battery is flat")
            return answer(request)

        begun: list[int] = []
        return fail

    run = Run(spoil)
    result, _ = run.train(2)
    assert result.rounds[0].lost == {2: "ValueError: the battery is flat"}
    assert not result.rounds[1].lost
    assert len(run.opener.openings) == 3


def test_a_device_dropped_while_it_is_ahead_comes_back_in_a_new_session() -> None:
    """What it sent ahead answers nothing any more; the round goes on without it."""
    sent: list[int] = []

    def ahead(half: DeviceHalf) -> Callable[[], Reply | None]:
        plain = ahead_of(half)

        def spoilt() -> Reply | None:
            reply = plain()
            if half.partition != 0 or not isinstance(reply, TrainReply):
                return reply
            sent.append(1)
            assert reply.smashed is not None
            bad = replace(reply.smashed, activations=b"garbage")
            return replace(reply, smashed=bad) if len(sent) == 1 else reply

        return spoilt

    openers: list[ThreadOpener] = []
    with ExitStack() as stack:

        def make_link(halves: list[DeviceHalf]) -> Loopback:
            answers = {h.partition: answer_with(h) for h in halves}
            early = {h.partition: ahead(h) for h in halves}
            link, opener = stack.enter_context(linked(answers, ahead=early))
            openers.append(opener)
            return Loopback(halves, link)

        result, _ = train(make_link, 2, 1)
    assert list(result.rounds[0].lost) == [0]
    assert not result.rounds[1].lost
    assert [o.node for o in openers[0].openings] == [1000, 1001, 1002, 1000]
    assert not openers[0].errors


def test_devices_of_a_server_that_died_give_up() -> None:
    """Without a server a device tries for its patience, then says what was lost."""
    run = Run(lambda answer, partition, proxy: answer)

    def make_link(halves: list[DeviceHalf]) -> Loopback:
        link = run.link(halves)
        first = run.opener.change
        run.opener.change = lambda o: replace(first(o), patience_s=0.3)
        return link

    with run._stack:
        front, _ = builders.halves()
        halves = [DeviceHalf(d, i) for i, d in enumerate(builders.devices(front, [8]))]
        link = make_link(halves)
        assert link.devices([0]) == {0: 0}
        run.proxy.close()
        run.opener.join()
    assert isinstance(run.opener.errors[0], StreamLostError)
    assert "within 0.3 s" in str(run.opener.errors[0])
