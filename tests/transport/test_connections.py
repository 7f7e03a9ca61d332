"""Connections that are late, repeated, doubled or refused change nothing."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import grpc
import pytest

from flwr_slfac.split import DeviceHalf, Limits, LocalLink
from flwr_slfac.transport import Reply, Request
from flwr_slfac.transport.stream import (
    Answer,
    DeviceEnd,
    Opening,
    StreamLink,
    StreamLostError,
    StreamService,
    UnreachableError,
    service,
)
from flwr_slfac.transport.stream import device_end as end
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream.connection import Connection, Told
from flwr_slfac.transport.stream.sessions import Tokens
from tests.split import builders
from tests.transport.loopback import (
    LOOPBACK,
    Loopback,
    ThreadOpener,
    answer_with,
    through,
)
from tests.transport.proxy import Proxy, cutting
from tests.transport.test_faults import REQUESTS, SIZES, Run, train
from tests.transport.test_refusals import UNAUTHENTICATED, Peer, waiting

NUM_ROUNDS = 3


@pytest.mark.parametrize(
    ("harms", "fragment", "delay_s"),
    [
        (["strand"], 2**16, 0.0),
        (["replay", "cut"], 2**16, 0.0),
        (["cut", "strand", "replay"], 2000, 0.005),
    ],
    ids=["late", "repeated", "all, slowly"],
)
def test_late_and_repeated_connections_change_nothing(
    harms: list[str], fragment: int, delay_s: float
) -> None:
    """Bytes that arrive after a newer connection's, or twice, have no effect."""
    counts: dict[int, int] = {}

    def spoil(answer: Answer, partition: int, proxy: Proxy) -> Answer:
        def harm_and_answer(request: Request) -> Reply:
            counts[partition] = counts.get(partition, 0) + 1
            getattr(proxy, harms[sum(counts.values()) % len(harms)])()
            return answer(request)

        return harm_and_answer

    run = Run(spoil, fragment=fragment, delay_s=delay_s, mean_s=0.2, harms=harms)
    result, back = run.train(NUM_ROUNDS)
    local, local_back = train(LocalLink, NUM_ROUNDS)
    builders.assert_same(dict(result.front), dict(local.front))
    builders.assert_same(dict(back), dict(local_back))
    assert counts == {d: NUM_ROUNDS * number for d, number in REQUESTS.items()}
    assert all(run.proxy.counts[harm] > 5 for harm in harms)
    assert not run.opener.errors


def test_a_late_hello_voids_no_token_that_has_arrived() -> None:
    """The stream that it cuts is opened again, with the token of its own Welcome."""
    with waiting() as (link, openings):
        link._open([1000])
        newer, late = Peer(openings[0]), Peer(openings[0])
        newer.hello()
        token = newer.hear().welcome.token
        late.hello()
        outrun = late.hear().welcome.token
        assert newer.end()[0] is grpc.StatusCode.ABORTED
        again = Peer(replace(openings[0], token=token))
        again.hello()
        welcome = again.hear().welcome
        again.say(pb.ToServer(ready=pb.Ready()).SerializeToString())
        tokens = link._service._tokens._sessions
        deadline = time.monotonic() + 20
        while len(tokens) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        for spent in (openings[0].token, token, outrun):
            stale = Peer(replace(openings[0], token=spent))
            stale.hello()
            assert stale.end()[0] is UNAUTHENTICATED
        assert Peer(replace(openings[0], token=welcome.token)).join().token
        for peer in (late, again):
            peer.close()


class Overtaken(Connection):
    """A stream that another one takes the place of while its Welcome is written."""

    async def serve(self, tokens: Tokens, token: bytes, told: Told) -> None:
        """Serve what is cut at once."""
        asyncio.get_running_loop().call_soon(self.cut)
        await super().serve(tokens, token, told)


def test_a_stream_that_is_cut_in_its_welcome_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its device is told so, and does not wait for what will not come."""
    monkeypatch.setattr(service, "Connection", Overtaken)
    with waiting() as (link, openings):
        link._open([1000])
        for _ in range(5):
            peer = Peer(openings[0])
            peer.hello()
            assert peer.end()[0] is grpc.StatusCode.ABORTED


def test_a_device_that_never_says_ready_holds_few_tokens() -> None:
    """However often a token is shown, few of its successors are valid."""
    with waiting() as (link, openings):
        link._open([1000])
        for _ in range(12):
            peer = Peer(openings[0])
            peer.hello()
            peer.hear()
            peer.close()
        assert len(link._service._tokens._sessions) <= 8 + 1


class TwinOpener(ThreadOpener):
    """Opens each session twice, the second time for a device of its own."""

    twins: dict[int, Answer]

    def open(self, opening: Opening) -> int:
        """Start the device's end and its twin's."""
        thread = threading.Thread(target=self._run_twin, args=(opening,), daemon=True)
        self.twin_errors = getattr(self, "twin_errors", [])
        thread.start()
        self.threads.append(thread)
        return super().open(opening)

    def _run_twin(self, opening: Opening) -> None:
        device = opening.node - 1000
        try:
            DeviceEnd(opening, device, self.twins[device]).run()
        except StreamLostError as error:
            self.twin_errors.append(error)


def test_a_stream_that_is_opened_twice_has_one_end() -> None:
    """Of two devices with one token one trains to the end, and the other is refused."""
    openers: list[TwinOpener] = []

    def make_link(halves: list[DeviceHalf]) -> Loopback:
        front, _ = builders.halves()
        twins = [
            DeviceHalf(device, number)
            for number, device in enumerate(
                builders.devices(front, SIZES, keep_optimizer=True)
            )
        ]
        opener = TwinOpener({h.partition: answer_with(h) for h in halves})
        opener.twins = {h.partition: answer_with(h) for h in twins}
        openers.append(opener)
        link = StreamLink(StreamService(LOOPBACK), opener, 30.0, Limits())
        stop.append(link.close)
        return Loopback(halves, link)

    stop: list[Callable[[], None]] = []
    result, back = train(make_link, 2)
    stop[0]()
    openers[0].join()
    local, local_back = train(LocalLink, 2)
    builders.assert_same(dict(result.front), dict(local.front))
    builders.assert_same(dict(back), dict(local_back))
    assert not any(each.lost for each in result.rounds)
    refused = [*openers[0].errors.values(), *openers[0].twin_errors]
    assert len(refused) == 3
    assert all("not expected" in str(error) for error in refused)


def test_devices_whose_streams_break_at_the_bye_come_back_for_it() -> None:
    """A broken stream is not taken for one that was closed after the Bye."""
    front, _ = builders.halves()
    half = DeviceHalf(builders.devices(front, [8])[0], 0)
    for seed in range(6):
        service = StreamService(LOOPBACK)
        proxy = Proxy(int(service.addresses[0].rpartition(":")[2]), seed)
        opener = ThreadOpener({0: answer_with(half)}, through(proxy.port))
        link = StreamLink(service, opener, 20.0, Limits())
        assert link.devices([1000]) == {1000: 0}
        with cutting(proxy, seed, 0.05):
            time.sleep(0.05)
            link.close()
        opener.join()
        proxy.close()
        assert not opener.errors


def test_a_device_whose_server_is_gone_is_soon_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where every address refuses, patience is not waited out: the server has ended."""
    monkeypatch.setattr(end, "_REFUSED_S", 0.5)
    monkeypatch.setattr(end, "_REACH_S", 1e6)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with waiting() as (link, openings):
        link._open([1000])
        opening = replace(openings[0], addresses=(f"127.0.0.1:{port}",))
        with pytest.raises(UnreachableError, match="Connection refused"):
            DeviceEnd(opening, 0, lambda request: None).run()  # type: ignore[arg-type, return-value]


def test_a_device_gives_up_in_time_for_the_run_that_resumes_its_own() -> None:
    """It searches for half a timeout, and for a minute at most."""
    for timeout_s, patience_s in ((20.0, 10.0), (600.0, 60.0)):
        with waiting(timeout_s) as (link, openings):
            link._open([1000])
            assert openings[0].patience_s == patience_s
