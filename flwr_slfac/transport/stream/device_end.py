"""The device's end of a stream: answers requests until the server says Bye."""

import itertools
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import grpc

from flwr_slfac._release import RELEASE
from flwr_slfac.errors import SlfacError, TrainingError
from flwr_slfac.split import Lost
from flwr_slfac.transport.answers import Reply, Request
from flwr_slfac.transport.stream import forks
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream.opening import Opening
from flwr_slfac.transport.stream.replies import pack_reply
from flwr_slfac.transport.stream.requests import unpack_request
from flwr_slfac.transport.stream.wire import (
    ENVELOPE_BYTES,
    Assembly,
    Packed,
    parse,
    read_data,
)

logger = logging.getLogger("flwr")

Answer = Callable[[Request], Reply]
# What will answer the next request, where that can be said before it comes.
Ahead = Callable[[], Reply | None]
# Messages to send, each made while it is sent; None ends the stream.
Outbox: TypeAlias = "queue.SimpleQueue[Iterable[bytes] | None]"

_WHAT = "a stream to the server"
_METHOD = "/flwr_slfac.v1.Steps/Run"
_WELCOME_S = 15.0
# Of the first connection: a port that is not open stays so.
_REACH_S = 20.0
# Where every address refuses for this long, the server's process is gone: those of a
# proxy come back sooner, and the node is wanted by the run that resumes this one.
_REFUSED_S = 10.0
_REFUSED = "Connection refused"
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 2.0
_ENDS = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
)
# The server decides how large a front is; frames of data are bounded like its own.
_MOST_BYTES = 2**40
_OPTIONS = (
    ("grpc.max_receive_message_length", ENVELOPE_BYTES),
    ("grpc.max_send_message_length", ENVELOPE_BYTES),
    # Another session in this process may trust another certificate.
    ("grpc.use_local_subchannel_pool", 1),
    # How long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A server that vanished is found out within 40 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class UnreachableError(TrainingError):
    """No address of the service can be reached from this device."""


class StreamLostError(TrainingError):
    """A stream broke and could not be opened again."""


class DeviceEnd:
    """One session of a device.

    Parameters
    ----------
    opening : Opening
        What the server's message said.
    device : int
        Partition id.
    answer : callable
        From a request to the reply; what it raises is told to the server.
    ahead : callable, optional
        Called after each answer; returns that of the next request, or None. `answer` is
        given that request all the same, and what it returns is then not sent.
    """

    def __init__(
        self,
        opening: Opening,
        device: int,
        answer: Answer,
        ahead: Ahead = lambda: None,
    ) -> None:
        self._opening, self._device = opening, device
        self._answer, self._ahead = answer, ahead
        self._token = opening.token
        self._addresses = list(opening.addresses)
        self._received = 0
        # By number, those that the server may lack; and that of a failure.
        self._replies: dict[int, Packed] = {}
        self._failure: int | None = None
        self._joined = self._greeted = False
        self._assembly = Assembly()
        self._credentials = grpc.ssl_channel_credentials(opening.certificate)
        # Devices whose server came back do not all knock at one moment.
        self._jitter = random.Random(opening.token)

    def run(self) -> None:
        """Answer requests until the server says Bye.

        Raises
        ------
        UnreachableError
            If the service cannot be reached from here.
        StreamLostError
            If the stream broke and the service was not found again, or it refuses.
        TrainingError
            If the server sends what cannot be read.
        """
        forks.runs(_WHAT)
        try:
            self._run()
        finally:
            forks.ended(_WHAT)

    def _run(self) -> None:
        wait_s, give_up = _FIRST_WAIT_S, time.monotonic() + _REACH_S
        heard = time.monotonic()
        while True:
            reasons = self._converse_somewhere()
            if reasons is None:
                return
            now = time.monotonic()
            if not all(_REFUSED in reason for reason in reasons):
                heard = now
            if self._greeted:
                wait_s, give_up = _FIRST_WAIT_S, now + self._opening.patience_s
            elif now > min(give_up, heard + _REFUSED_S):
                raise self._lost(reasons[-1])
            time.sleep(wait_s * (0.5 + self._jitter.random()))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _converse_somewhere(self) -> list[str] | None:
        """Try addresses until one greets; return why each broke, None at the end."""
        reasons = []
        for address in tuple(self._addresses):
            self._greeted = False
            reason = self._converse(address)
            if reason is None:
                return None
            reasons.append(reason)
            if self._greeted:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                break
        return reasons

    def _lost(self, reason: str) -> TrainingError:
        where = ", ".join(self._addresses) or "no address"
        if not self._joined:
            return UnreachableError(
                f"device {self._device} cannot reach the server's stream at {where} "
                f"({reason}); let it through there, or name another address: "
                "StreamTransport(advertise=...) for all devices, node config "
                'slfac-server="host:port" for one'
            )
        return StreamLostError(
            f"device {self._device} lost its stream and did not find the server again "
            f"at {where} within {self._opening.patience_s:g} s ({reason})"
        )

    def _converse(self, address: str) -> str | None:
        """Hold one stream; return why it broke, None if all is over."""
        name = ("grpc.ssl_target_name_override", self._opening.name)
        channel = grpc.secure_channel(address, self._credentials, [*_OPTIONS, name])
        outbox: Outbox = queue.SimpleQueue()
        try:
            sent = itertools.chain.from_iterable(iter(outbox.get, None))
            call = channel.stream_stream(_METHOD)(sent)
            self._greet(call, outbox)
            if self._talk(call, outbox):
                return None
        except grpc.RpcError as error:
            if error.code() in _ENDS:
                raise StreamLostError(
                    f"device {self._device}: the server at {address} ends the session: "
                    f"{error.details()}"
                ) from error
            return f"{address}: {error.details()}"
        finally:
            outbox.put(None)
            channel.close()
        return f"{address}: the stream ended"

    def _greet(self, call: Any, outbox: Outbox) -> None:
        """Show the token; send again what the server lacks."""
        hello = pb.Hello(
            token=self._token,
            node=self._opening.node,
            device=self._device,
            release=RELEASE,
            received=self._received,
        )
        outbox.put([pb.ToServer(hello=hello).SerializeToString()])
        alarm = threading.Timer(_WELCOME_S, call.cancel)
        alarm.start()
        try:
            welcome = parse(pb.ToDevice, next(call)).welcome
        finally:
            alarm.cancel()
        self._token, self._joined, self._greeted = welcome.token, True, True
        self._assembly = Assembly()
        outbox.put([pb.ToServer(ready=pb.Ready()).SerializeToString()])
        for number, reply in self._replies.items():
            if number > welcome.answered:
                outbox.put(reply.envelopes(number))

    def _talk(self, call: Iterator[bytes], outbox: Outbox) -> bool:
        """Answer requests; return True at the Bye."""
        for raw in call:
            head: pb.Request | None = None
            data = read_data(raw)
            if data is None:
                envelope = parse(pb.ToDevice, raw)
                if envelope.WhichOneof("kind") == "bye":
                    self._part(call, outbox, envelope.bye.reason)
                    return True
                head, data = envelope.request, memoryview(envelope.data)
            request = self._assembly.add(head, data, _MOST_BYTES)
            if request is not None:
                self._act_on(request, outbox)
        return False

    def _act_on(self, request: Packed, outbox: Outbox) -> None:
        """Answer a request unless that was done ahead, and the next one if it can be.

        What fails after its request was answered ahead answers the next one.
        """
        number = self._received = request.head.number
        self._replies = {n: r for n, r in self._replies.items() if n >= number}
        is_answered = number in self._replies
        if is_answered and number == self._failure:
            return
        reply, failed = self._packed(lambda: self._answer(unpack_request(request)))
        if reply is not None and (failed or not is_answered):
            self._send(number + is_answered, reply, outbox, failed=failed)
        if not failed:
            early, failed = self._packed(self._ahead)
            if early is not None:
                self._send(number + 1, early, outbox, failed=failed)

    def _send(
        self, number: int, reply: Packed, outbox: Outbox, *, failed: bool
    ) -> None:
        self._replies[number] = reply
        if failed:
            self._failure = number
        outbox.put(reply.envelopes(number))

    def _part(self, call: Iterator[bytes], outbox: Outbox, reason: str) -> None:
        """Close the stream, and wait until the server has seen it."""
        if reason:
            logger.warning("device %d: session ended: %s", self._device, reason)
        outbox.put(None)
        with suppress(grpc.RpcError):
            for _ in call:
                pass

    def _packed(self, work: Ahead) -> tuple[Packed | None, bool]:
        """Return what work answers, if anything, or that it failed; and if it did."""
        try:
            reply = work()
            return (None if reply is None else pack_reply(reply)), False
        except TrainingError as error:
            reason, at_fault = f"{type(error).__name__}: {error}", False
            logger.warning("device %d: %s", self._device, reason)
        except SlfacError as error:
            reason, at_fault = f"{type(error).__name__}: {error}", True
        except (
            Exception
        ) as error:  # whatever a model or a data set of the user's raises
            reason, at_fault = f"{type(error).__name__}: {error}", False
            logger.exception("device %d", self._device)
        return pack_reply(Lost(reason, self._device, at_fault=at_fault)), True
