"""The service that devices' streams lead to: one thread, however many devices.

A message of each session is under way at most; what there is to do with it happens in
the thread that asked for it. Here bytes are only cut and joined, a part at a time, so
that no device waits until another one's message is through.
"""

import asyncio
import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any, cast

import grpc

from flwr_slfac.errors import DecodeError, SettingError
from flwr_slfac.transport.stream import forks
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream.addresses import addresses_of
from flwr_slfac.transport.stream.certificates import new_identity, read_identity
from flwr_slfac.transport.stream.connection import Connection
from flwr_slfac.transport.stream.sessions import Answered, Refusal, Session, Tokens
from flwr_slfac.transport.stream.setting import StreamTransport
from flwr_slfac.transport.stream.wire import ENVELOPE_BYTES, Packed, parse

logger = logging.getLogger("flwr")

_WHAT = "the streams of devices"
RUN = "flwr_slfac.v1.Steps", "Run"
# A Hello is a token and three numbers.
_HELLO_BYTES = 512
_HELLO_S = 10.0
# Streams that have not shown a token; devices of a large run join at about one time.
_MOST_STRANGERS = 256
# So many sessions are not worth looking through for those that are over.
_FEW_SESSIONS = 64
# How long devices have to close their streams when all is over.
_GOODBYE_S = 5.0
_LOOK_S = 0.01
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", ENVELOPE_BYTES),
    ("grpc.max_send_message_length", ENVELOPE_BYTES),
    # One stream is all that a device needs, one more while the first is breaking.
    ("grpc.max_concurrent_streams", 2),
    # Connections that open no stream are closed.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 30_000),
    # Devices that vanished are found out; those that compute may ping meanwhile.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


@dataclass(frozen=True)
class Event:
    """What happened in a session.

    Parameters
    ----------
    session : Session
        Whose.
    answered : Answered or None
        What was answered.
    fault : str
        What is wrong with what was sent; with neither, the device has joined.
    """

    session: Session
    answered: Answered | None = None
    fault: str = ""


class StreamService:
    """Listens for devices, in a thread of its own, until `stop`.

    Parameters
    ----------
    setting : StreamTransport
        Where to listen, and as whom.

    Attributes
    ----------
    events : queue.SimpleQueue of Event
        What happens, in its order.
    identity : Identity
        Whose certificate devices have to trust.
    addresses : tuple of str
        Under which devices may reach the service.

    Raises
    ------
    SettingError
        If the certificate cannot be used or the address cannot be listened on.
    """

    def __init__(self, setting: StreamTransport) -> None:
        if setting.certificate is None or setting.key is None:
            self.identity = new_identity()
        else:
            self.identity = read_identity(setting.certificate, setting.key)
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._tokens = Tokens()
        self._sessions: list[Session] = []
        self._most_sessions = _FEW_SESSIONS
        self._num_strangers = 0
        self._loop = new_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="slfac-stream", daemon=True
        )
        self._thread.start()
        try:
            port = self._call(self._listen(setting))
        except BaseException:
            self._end_thread()
            raise
        self.addresses = addresses_of(setting, port)
        forks.runs(_WHAT)

    def expect(self, node: int) -> tuple[Session, bytes]:
        """Return a session for a node, and the token that opens it."""
        made: tuple[Session, bytes] = self._call(self._expect(node))
        return made

    def ask(
        self,
        session: Session,
        request: Packed,
        limit: int,
        *,
        pipelined: bool = False,
    ) -> None:
        """Post a request, for a device that may not have joined yet.

        Parameters
        ----------
        session : Session
            Whom to ask; the last request is answered.
        request : Packed
            What to ask.
        limit : int
            Most bytes in the blobs of the answer.
        pipelined : bool (default: False)
            Whether the device may answer the request after this one, too.
        """
        self._loop.call_soon_threadsafe(self._ask, session, request, limit, pipelined)

    def end(self, session: Session, reason: str = "") -> None:
        """Let a device go; the reason is for its log."""
        self._loop.call_soon_threadsafe(session.end, reason)

    def stop(self) -> None:
        """Let all devices go and close the port; the second time nothing happens."""
        if not self._thread.is_alive():
            return
        forks.ended(_WHAT)
        try:
            self._call(self._stop())
        finally:
            self._end_thread()

    def joined(self, session: Session) -> None:
        """Take note that a device has joined."""
        self.events.put(Event(session))

    def replied(self, session: Session, answered: Answered) -> None:
        """Take a reply."""
        self.events.put(Event(session, answered))

    def failed(self, session: Session, reason: str) -> None:
        """End the session of a device that sends what cannot be read."""
        logger.warning("Streams: device %s sent %s", session.device, reason)
        session.end("it sent what cannot be read")
        self.events.put(Event(session, fault=reason))

    def _ask(
        self, session: Session, request: Packed, limit: int, pipelined: bool
    ) -> None:
        early = session.ask(request, limit, pipelined=pipelined)
        if early is not None:
            self.replied(session, early)

    async def _expect(self, node: int) -> tuple[Session, bytes]:
        if len(self._sessions) >= self._most_sessions:
            self._forget_the_gone()
        session = Session(node)
        self._sessions.append(session)
        return session, self._tokens.issue(session)

    def _forget_the_gone(self) -> None:
        """Let go of sessions that are over, each time their number has doubled."""
        now = time.monotonic()
        gone = [session for session in self._sessions if session.is_gone(now)]
        self._tokens.forget(gone)
        self._sessions = [s for s in self._sessions if not s.is_gone(now)]
        self._most_sessions = max(_FEW_SESSIONS, 2 * len(self._sessions))

    async def _listen(self, setting: StreamTransport) -> int:
        self._server = grpc.aio.server(options=_OPTIONS)
        # Without (de)serializers: envelopes are bytes here, written and read by `wire`.
        handler = grpc.stream_stream_rpc_method_handler(self._run)
        service, method = RUN
        handlers = grpc.method_handlers_generic_handler(service, {method: handler})
        self._server.add_generic_rpc_handlers((handlers,))
        credentials = grpc.ssl_server_credentials(
            [(self.identity.key, self.identity.certificate)]
        )
        try:
            port = self._server.add_secure_port(setting.listen, credentials)
            await self._server.start()
        except RuntimeError as error:
            raise SettingError(
                f"cannot listen on {setting.listen}: {error}; another process may have "
                "the port, or certificate and key do not fit: change StreamTransport's "
                "listen, or certificate and key"
            ) from error
        return int(port)

    async def _stop(self) -> None:
        """Say Bye to all, also to those whose stream is broken just now."""
        staying = [s for s in self._sessions if s.over is None and s.device is not None]
        for session in self._sessions:
            session.end("")
        deadline = self._loop.time() + _GOODBYE_S
        while not all(s.parted for s in staying) and self._loop.time() < deadline:
            await asyncio.sleep(_LOOK_S)
        await self._server.stop(None)

    async def _run(self, _: Any, context: Any) -> None:
        """Serve one stream."""
        admitted = await self._admit(context)
        if admitted is None:
            code = grpc.StatusCode.UNAUTHENTICATED
            await context.abort(code, "this stream is not expected here")
            return
        session, token, hello = admitted
        session.device = hello.device
        connection = Connection(context, session, hello)
        await connection.serve(self._tokens, token, self)

    async def _admit(self, context: Any) -> tuple[Session, bytes, pb.Hello] | None:
        """Return whose stream this is, or None for a stranger's."""
        self._num_strangers += 1
        try:
            if self._num_strangers > _MOST_STRANGERS:
                raise Refusal(f"over {_MOST_STRANGERS} streams are not identified")
            raw = await asyncio.wait_for(context.read(), _HELLO_S)
            if raw is grpc.aio.EOF or len(raw) > _HELLO_BYTES:
                raise Refusal("a stream begins with something else than a Hello")
            envelope = parse(pb.ToServer, raw)
            if envelope.WhichOneof("kind") != "hello":
                raise Refusal("a stream begins with something else than a Hello")
            session, token = self._tokens.admit(envelope.hello)
            session.num_bytes += len(raw)
            return session, token, envelope.hello
        except (Refusal, DecodeError) as error:
            logger.warning("Streams: refused %s: %s", context.peer(), error)
        except asyncio.TimeoutError:
            logger.warning(
                "Streams: refused %s: no Hello in %g s", context.peer(), _HELLO_S
            )
        finally:
            self._num_strangers -= 1
        return None

    def _call(self, coroutine: Any) -> Any:
        """Run a coroutine in the service's thread; return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a loop; that of uvloop, where it is, takes 0.2 ms less for a step."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return cast("asyncio.AbstractEventLoop", uvloop.new_event_loop())
