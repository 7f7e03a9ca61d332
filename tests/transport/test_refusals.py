"""Who is not expected, or sends what cannot be read, is refused; the run goes on."""

import logging
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import grpc
import pytest
from cryptography import x509

from flwr_slfac.errors import DecodeError, SettingError
from flwr_slfac.split import DeviceHalf, Limits, TrainReply, TrainRequest, train_locally
from flwr_slfac.transport.stream import (
    Opening,
    StreamLink,
    StreamService,
    StreamTransport,
    UnreachableError,
    service,
)
from flwr_slfac.transport.stream import device_end as end
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream.certificates import new_identity
from flwr_slfac.transport.stream.replies import pack_reply
from flwr_slfac.transport.stream.sessions import Answered, Refusal, Session
from flwr_slfac.transport.stream.wire import HEAD_BYTES, Packed
from tests.split import builders
from tests.transport.loopback import LOOPBACK, Loopback, ThreadOpener, answer_with

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Peer:
    """A peer that says what it wants.

    Parameters
    ----------
    opening : Opening
        Where to, and which certificate to trust.
    """

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self._sent: list[bytes] = []
        self._is_over = False
        self._more = threading.Condition()
        name = ("grpc.ssl_target_name_override", opening.name)
        limit = ("grpc.max_send_message_length", -1)
        self._channel = grpc.secure_channel(
            opening.addresses[0],
            grpc.ssl_channel_credentials(opening.certificate),
            [name, limit, ("grpc.use_local_subchannel_pool", 1)],
        )
        self._call = self._channel.stream_stream("/flwr_slfac.v1.Steps/Run")(
            self._requests()
        )

    def say(self, raw: bytes) -> None:
        """Send an envelope."""
        with self._more:
            self._sent.append(raw)
            self._more.notify()

    def hello(self, **changes: object) -> None:
        """Say Hello as the opening wants it, but for some changes."""
        fields = {"token": self.opening.token, "node": self.opening.node, "device": 0}
        hello = pb.Hello(**{**fields, **changes})  # type: ignore[arg-type]
        self.say(pb.ToServer(hello=hello).SerializeToString())

    def join(self) -> pb.Welcome:
        """Say Hello and Ready; return the Welcome."""
        self.hello()
        welcome = pb.ToDevice.FromString(next(self._call)).welcome
        self.say(pb.ToServer(ready=pb.Ready()).SerializeToString())
        return welcome

    def hear(self) -> pb.ToDevice:
        """Return the next envelope."""
        return pb.ToDevice.FromString(next(self._call))

    def end(self) -> tuple[grpc.StatusCode, str]:
        """Return how the server ends the stream."""
        with pytest.raises(grpc.RpcError) as raised:
            for _ in self._call:
                pass
        self.close()
        return raised.value.code(), raised.value.details()

    def close(self) -> None:
        """Close the stream."""
        with self._more:
            self._is_over = True
            self._more.notify()
        self._channel.close()

    def _requests(self) -> Iterator[bytes]:
        while True:
            with self._more:
                while not self._sent and not self._is_over:
                    self._more.wait()
                if self._is_over:
                    return
                raw = self._sent.pop(0)
            yield raw


@contextmanager
def waiting(timeout_s: float = 20.0) -> Iterator[tuple[StreamLink, list[Opening]]]:
    """Give a link, and the openings of devices that never come."""
    openings: list[Opening] = []

    class Opener:
        def open(self, opening: Opening) -> int:
            openings.append(opening)
            return 0

        def ended(self, nodes: object) -> dict[int, object]:
            return {}

    link = StreamLink(StreamService(LOOPBACK), Opener(), timeout_s, Limits())  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        # Peers of these tests do not listen for the Bye.
        patch.setattr(service, "_GOODBYE_S", 0.1)
        try:
            yield link, openings
        finally:
            link.close()


def wait_for(found: Callable[[], object]) -> None:
    """Wait until something is there."""
    deadline = time.monotonic() + 20
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def link() -> Iterator[tuple[StreamLink, Opening]]:
    """Give a link with two expected devices, nodes 1000 and 1001."""
    with waiting() as (link, openings):
        link._open([1000, 1001])
        yield link, openings[0]


NOBODY = {
    "no token": lambda peer: peer.hello(token=b""),
    "another token": lambda peer: peer.hello(token=b"x" * 32),
    "another node": lambda peer: peer.hello(node=1001),
    "requests never sent": lambda peer: peer.hello(received=5),
    "garbage": lambda peer: peer.say(b"\xff\xff\xff"),
    "nothing": lambda peer: peer.say(b""),
    "a reply": lambda peer: peer.say(
        pb.ToServer(reply=pb.Reply(number=1)).SerializeToString()
    ),
    "a long Hello": lambda peer: peer.hello(release="x" * 600),
}


@pytest.mark.parametrize("what", NOBODY)
def test_nobody_joins_without_the_token(
    link: tuple[StreamLink, Opening], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger is told one sentence for every reason; the log says which it was."""
    peer = Peer(link[1])
    with caplog.at_level(logging.WARNING, "flwr"):
        logging.getLogger("flwr").propagate = True
        NOBODY[what](peer)
        assert peer.end() == (UNAUTHENTICATED, "this stream is not expected here")
    assert "refused ipv4:127.0.0.1" in caplog.text


def test_an_envelope_that_is_too_large_is_refused(
    link: tuple[StreamLink, Opening],
) -> None:
    """What exceeds the largest envelope is not even read."""
    peer = Peer(link[1])
    peer.say(b"x" * (4 * HEAD_BYTES))
    assert peer.end()[0] in (grpc.StatusCode.RESOURCE_EXHAUSTED, UNAUTHENTICATED)


def test_who_says_nothing_is_sent_away(
    link: tuple[StreamLink, Opening], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream without a Hello ends after a while."""
    monkeypatch.setattr(service, "_HELLO_S", 0.2)
    peer = Peer(link[1])
    assert peer.end()[0] is UNAUTHENTICATED


def test_strangers_are_few(
    link: tuple[StreamLink, Opening], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many streams may be without a token, and no more."""
    monkeypatch.setattr(service, "_MOST_STRANGERS", 2)
    silent = [Peer(link[1]) for _ in range(2)]
    wait_for(lambda: link[0]._service._num_strangers == 2)
    assert Peer(link[1]).end()[0] is UNAUTHENTICATED
    for peer in silent:
        peer.close()
    wait_for(lambda: link[0]._service._num_strangers == 0)


def test_a_token_is_void_once_the_next_one_has_arrived() -> None:
    """Before that it opens the stream again, as the next one may have been lost."""
    with waiting() as (link, openings):
        link._open([1000])
        first = Peer(openings[0])
        first.hello()
        lost = first.hear().welcome.token
        again = Peer(openings[0])
        token = again.join().token
        wait_for(lambda: len(link._service._tokens._sessions) == 1)
        for spent in (openings[0].token, lost):
            late = Peer(replace(openings[0], token=spent))
            late.hello()
            assert late.end()[0] is UNAUTHENTICATED
        next_one = Peer(replace(openings[0], token=token))
        assert next_one.join().token != token
        first.close()
        again.close()
        next_one.close()


WRONG = {
    "garbage": [b"\xff\xff"],
    "a Hello again": [pb.ToServer(hello=pb.Hello()).SerializeToString()],
    "data of nothing": [pb.ToServer(data=b"x").SerializeToString()],
    "another number": [
        pb.ToServer(reply=pb.Reply(number=9, refused=pb.Refused())).SerializeToString()
    ],
    "too much": [
        pb.ToServer(reply=pb.Reply(number=1, blob_sizes=[2**40])).SerializeToString()
    ],
    "two replies": 2 * list(pack_reply(TrainReply(0, 1, done=True)).envelopes(1)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_device_that_sends_garbage_is_at_fault(what: str) -> None:
    """It is lost with what it sent, its stream ends, and the other one's goes on."""
    with waiting() as (link, openings):
        link._open([1000, 1001])
        good, bad = (Peer(opening) for opening in openings)
        bad.opening = replace(bad.opening, node=1001)
        answers: dict[int, object] = {}

        def ask() -> None:
            answers.update(
                link.train_each([(n, TrainRequest(0)) for n in (1000, 1001)])
            )

        asking = threading.Thread(target=ask)
        asking.start()
        good.join()
        bad.hello(device=1)
        bad.hear()
        bad.say(pb.ToServer(ready=pb.Ready()).SerializeToString())
        assert bad.hear().HasField("request")
        for raw in WRONG[what]:
            bad.say(raw)
        if what == "two replies":
            # The first one answers; the second one has nothing to answer.
            assert bad.end() == (INVALID, "a message could not be read")
        assert good.hear().HasField("request")
        for raw in pack_reply(TrainReply(0, 1, done=True)).envelopes(1):
            good.say(raw)
        asking.join(20)
        assert answers[1000].done  # type: ignore[attr-defined]
        if what != "two replies":
            assert answers[1001].at_fault  # type: ignore[attr-defined]
            assert "sent what cannot be read" in answers[1001].reason  # type: ignore[attr-defined]
            assert bad.end() == (INVALID, "a message could not be read")
        good.close()


@pytest.mark.parametrize("pause_s", [0.0, 4.0], ids=["reads on", "reads late"])
def test_a_stream_ends_that_sends_garbage_while_it_is_written_to(
    pause_s: float,
) -> None:
    """Its device is at fault, and is told the end however late it reads."""
    with waiting() as (link, openings):
        link._open([1000])
        bad, answers = Peer(openings[0]), dict[int, object]()
        large = TrainRequest(0, gradient=bytes(30_000_000))
        asking = threading.Thread(
            target=lambda: answers.update(link.train_each([(1000, large)]))
        )
        asking.start()
        bad.join()
        assert bad.hear().HasField("request")
        bad.say(b"\xff\xff\xff")
        asking.join(20)
        assert answers[1000].at_fault  # type: ignore[attr-defined]
        time.sleep(pause_s)
        assert bad.end()[0] is INVALID


@pytest.mark.parametrize(("pipelined", "most"), [(False, 1), (True, 2)])
def test_a_device_is_one_reply_ahead_at_most(pipelined: bool, most: int) -> None:
    """Nothing but the reply to the next request is kept, and only in a pipeline."""

    def reply(number: int) -> Packed:
        return Packed(pb.Reply(number=number))

    session = Session(1)
    assert session.ask(Packed(pb.Request()), 0, pipelined=pipelined) is None
    given = [session.answer(reply(n)) for n in range(1, most + 1)]
    assert given == [Answered(reply(1), 0), None][:most]
    for number in (most, most + 1, 9):
        with pytest.raises(DecodeError, match=f"a reply has number {number}"):
            session.answer(reply(number))
    early = session.ask(Packed(pb.Request()), 0, pipelined=pipelined)
    assert early == (Answered(reply(2), 0) if pipelined else None)
    # What it may lack is kept: both requests, or the one that is not answered.
    assert sorted(session.asked) == ([1, 2] if pipelined else [2])
    for received in range(4):
        lacks_no_more = received in ((0, 1, 2) if pipelined else (1, 2))
        with nullcontext() if lacks_no_more else pytest.raises(Refusal):
            session.require_ahead(received)


def test_a_device_trusts_the_certificate_of_the_message_and_no_other() -> None:
    """A service with another certificate is not spoken to, whatever its name."""
    front, _ = builders.halves()
    half = DeviceHalf(builders.devices(front, [8])[0], 0)
    opener = ThreadOpener(
        {0: answer_with(half)}, lambda o: replace(o, certificate=other.certificate)
    )
    other = new_identity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(end, "_REACH_S", 0.3)
        link = StreamLink(StreamService(LOOPBACK), opener, 20.0, Limits())
        with pytest.raises(Exception, match="opens its stream"):
            link.devices([1000])
        link.close()
        opener.join()
    assert isinstance(opener.errors[0], UnreachableError)
    assert "CERTIFICATE_VERIFY_FAILED" in str(opener.errors[0])


def test_plaintext_is_not_understood(link: tuple[StreamLink, Opening]) -> None:
    """Neither a gRPC peer without TLS nor a browser gets an answer."""
    address = link[1].addresses[0]
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream("/flwr_slfac.v1.Steps/Run")(iter(()))
        with pytest.raises(grpc.RpcError) as raised:
            next(call)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP/1.1 200" not in plain.recv(100)


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_which_versions_of_tls_are_spoken(
    link: tuple[StreamLink, Opening], version: ssl.TLSVersion, accepted: bool
) -> None:
    """TLS 1.3 and 1.2, never less: gRPC's Python has no setting for 1.3 alone."""
    context = ssl.create_default_context(cadata=link[1].certificate.decode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    host, _, port = link[1].addresses[0].partition(":")

    def shake() -> str | None:
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=link[1].name) as shaken,
        ):
            return shaken.version()

    if accepted:
        assert shake() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
    else:
        with pytest.raises(OSError, match=r"."):
            shake()


def test_the_certificate_is_made_for_the_run() -> None:
    """Two services have two keys, of ECDSA over P-256."""
    one, other = (
        x509.load_pem_x509_certificate(new_identity().certificate) for _ in range(2)
    )
    assert one.serial_number != other.serial_number
    assert one.public_key() != other.public_key()
    assert one.public_key().curve.name == "secp256r1"  # type: ignore[union-attr]


def test_settings_that_cannot_be_are_refused() -> None:
    """Addresses without a port, one of certificate and key, a port that is taken."""
    for wrong in ("host", "host:", "host:0", "::1:80", "host:70000", ":80", "a:+5"):
        with pytest.raises(SettingError, match="host:port"):
            StreamTransport(advertise=wrong)
    with pytest.raises(SettingError, match="belong together"):
        StreamTransport(certificate="cert.pem")
    with pytest.raises(SettingError, match="cannot be used"):
        StreamService(StreamTransport(certificate="no.pem", key="no.key"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingError, match=f"cannot listen on {listen}"):
            StreamService(StreamTransport(listen=listen))


def test_a_users_certificate_is_used(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Devices join a service whose certificate the user made."""
    identity = new_identity()
    (tmp_path / "cert.pem").write_bytes(identity.certificate)
    (tmp_path / "key.pem").write_bytes(identity.key)
    setting = replace(
        LOOPBACK, certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem"
    )
    front, back = builders.halves()
    openers, links = [], []

    def make_link(halves):  # type: ignore[no-untyped-def]
        answers = {half.partition: answer_with(half) for half in halves}
        openers.append(ThreadOpener(answers))
        link = StreamLink(StreamService(setting), openers[0], 20.0, Limits())
        links.append(link)
        return Loopback(halves, link)

    result = train_locally(
        builders.devices(front, [8]),
        front.state_dict(),
        builders.server(back),
        num_rounds=1,
        make_link=make_link,
    )
    assert result.rounds[0].finished
    links[0].close()
    openers[0].join()
    assert openers[0].openings[0].certificate == identity.certificate
