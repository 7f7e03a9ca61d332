"""One open stream of a session: sends what is asked, reads what is answered."""

import asyncio
import time
from typing import Any, Protocol

import grpc

from flwr_slfac.errors import DecodeError
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream.sessions import Answered, Session, Tokens
from flwr_slfac.transport.stream.wire import Assembly, parse, read_data

_CANCEL_S = 0.05
# A peer that reads takes an envelope in less.
_WRITE_S = 2.0


class Told(Protocol):
    """Who is told what happens in a session, in the service's thread."""

    def joined(self, session: Session) -> None:
        """Take note that a device has joined."""

    def replied(self, session: Session, answered: Answered) -> None:
        """Take a reply."""

    def failed(self, session: Session, reason: str) -> None:
        """Take note that a device sends what cannot be read."""


class Connection:
    """One open stream.

    Parameters
    ----------
    context : grpc.aio.ServicerContext
        The stream.
    session : Session
        Whose stream it is.
    hello : Hello
        What the device said.
    """

    def __init__(self, context: Any, session: Session, hello: pb.Hello) -> None:
        self._context, self._session = context, session
        self._sent = hello.received
        self._woken = asyncio.Event()
        self._said_bye = self._is_cut = False
        self._task = asyncio.current_task()

    def wake(self) -> None:
        """Look at what there is to send."""
        self._woken.set()

    async def serve(self, tokens: Tokens, token: bytes, told: Told) -> None:
        """Run the stream to its end."""
        session = self._session
        if session.connection is not None:
            session.connection.cut()
        session.connection = self
        welcome = pb.Welcome(token=token, answered=session.answered)
        # A stream cannot be ended while something is being written to it.
        writes = asyncio.create_task(
            self._write(pb.ToDevice(welcome=welcome).SerializeToString())
        )
        try:
            await asyncio.shield(writes)
            ready = await self._read()
            if ready is None:
                return
            if parse(pb.ToServer, ready).WhichOneof("kind") != "ready":
                raise DecodeError("a stream does not begin with Hello and Ready")
            tokens.confirm(session, token)
            told.joined(session)
            writes = asyncio.create_task(self._send_all())
            await self._read_all(told)
            # A stream that broke ends like one that was closed, and is then cancelled.
            await asyncio.sleep(_CANCEL_S)
            session.parted = self._said_bye
        except asyncio.CancelledError:
            if not self._is_cut or not await _ends_soon(writes):
                raise
            # The peer may be the device, whose late Hello was taken for a newer one.
            code = grpc.StatusCode.ABORTED
            await self._context.abort(code, "another stream took the place of this one")
        except DecodeError as error:
            told.failed(session, str(error))
            # No more than that: who sends garbage learns nothing of what is here.
            code = grpc.StatusCode.INVALID_ARGUMENT
            await self._context.abort(code, "a message could not be read")
        finally:
            writes.cancel()
            if session.connection is self:
                session.connection = None
                session.away_since = time.monotonic()

    def cut(self) -> None:
        """End the stream, for another one of the same session."""
        if self._task is not None:
            self._is_cut = True
            self.wake()
            self._task.cancel()

    async def _send_all(self) -> None:
        """Send each request once, and Bye at the end."""
        session = self._session
        self._woken.set()
        while True:
            await self._woken.wait()
            self._woken.clear()
            if self._is_cut:
                return
            while (following := session.next_after(self._sent)) is not None:
                self._sent, request = following
                for envelope in request.envelopes(self._sent):
                    await self._write(envelope)
                    if session.over is not None or self._is_cut:
                        break
                if self._is_cut:
                    return
            if session.over is not None:
                bye = pb.ToDevice(bye=pb.Bye(reason=session.over))
                await self._write(bye.SerializeToString())
                self._said_bye = True
                return

    async def _read_all(self, told: Told) -> None:
        """Read replies until the device closes the stream."""
        session, assembly = self._session, Assembly()
        while (raw := await self._read()) is not None:
            if session.over is not None:
                continue
            if not session.may_answer:
                raise DecodeError("an envelope came that nobody asked for")
            head: pb.Reply | None = None
            data = read_data(raw)
            if data is None:
                envelope = parse(pb.ToServer, raw)
                if envelope.WhichOneof("kind") != "reply":
                    raise DecodeError("an envelope holds neither a reply nor data")
                head, data = envelope.reply, memoryview(envelope.data)
            reply = assembly.add(head, data, session.limit)
            if reply is None:
                continue
            if (answered := session.answer(reply)) is not None:
                told.replied(session, answered)

    async def _read(self) -> bytes | None:
        raw = await self._context.read()
        if raw is grpc.aio.EOF:
            return None
        self._session.num_bytes += len(raw)
        return bytes(raw)

    async def _write(self, raw: bytes) -> None:
        self._session.num_bytes += len(raw)
        await self._context.write(raw)


async def _ends_soon(writes: "asyncio.Task[None]") -> bool:
    """Return whether nothing is being written, or soon is not: a stream can end."""
    await asyncio.wait([writes], timeout=_WRITE_S)
    return writes.done()
