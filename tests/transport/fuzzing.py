"""Hostile dialogues with a live service, beside a run that must not notice."""

import logging
import random
import resource
import socket
import ssl
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import torch
from google.protobuf.message import Message

from flwr_slfac.errors import SlfacError
from flwr_slfac.split import EvaluateReply, Lost, Smashed, TrainReply, TrainRequest
from flwr_slfac.transport.stream import StreamService
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream.blobs import StateCache
from flwr_slfac.transport.stream.replies import pack_reply, unpack_reply
from flwr_slfac.transport.stream.requests import pack_request
from flwr_slfac.transport.stream.service import Event

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
_ODD = (0, 1, 2, 7, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**63))
# What a hostile device may send of blobs in one answer.
_LIMIT = 2**20
_WAIT_S = 5.0


def valid_replies() -> list[Any]:
    """Return one reply of each kind, with blobs of some sizes."""
    smashed = Smashed(b"a" * 300, b"t" * 40, 8, (8, 3))
    front = {"weight": torch.arange(12.0).reshape(3, 4), "count": torch.tensor(3)}
    return [
        TrainReply(0, 2, smashed, metrics={"loss": 0.5}),
        TrainReply(0, 2, done=True, front=front),
        EvaluateReply(0, 1, batches=[smashed, smashed]),
        Lost("the battery is flat"),
    ]


class Mutator:
    """Changes valid dialogues.

    Parameters
    ----------
    seed : int
        Of all changes.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def dialogue(self, hello: pb.Hello) -> list[bytes]:
        """Return what a device might say, changed in one to four places."""
        ready = pb.ToServer(ready=pb.Ready()).SerializeToString()
        reply = pack_reply(self.random.choice(valid_replies()))
        said = [pb.ToServer(hello=hello).SerializeToString(), ready]
        said += reply.envelopes(self.random.choice((1, 1, 1, 0, 2, 2**63)))
        # Mostly what comes after the Hello, so that much is read as a device's.
        first = self.random.choice((0, 1, 2, 2, 2))
        for _ in range(self.random.randint(1, 4)):
            position = self.random.randrange(min(first, len(said) - 1), len(said))
            self._change(said, position)
            if len(said) < 2:
                break
        return said

    def _change(self, said: list[bytes], position: int) -> None:
        how = self.random.randrange(7)
        if how == 0:
            said.insert(position, self.random.choice(said))
        elif how == 1:
            del said[position]
        elif how == 2:
            self.random.shuffle(said)
        elif how in (3, 4):
            said[position] = self._with_field(said[position])
        else:
            said[position] = self.noise(said[position])

    def _with_field(self, raw: bytes) -> bytes:
        envelope = pb.ToServer()
        with suppress(Exception):
            envelope.ParseFromString(raw)
        self._alter(envelope)
        return envelope.SerializeToString()

    def _alter(self, message: Message) -> None:
        """Alter a field of a message, or of one in it."""
        fields = [field for field, _ in message.ListFields()]
        fields = fields or list(message.DESCRIPTOR.fields)
        if not fields:
            return
        field = self.random.choice(fields)
        value = getattr(message, field.name)
        if self.random.random() < 0.1:
            message.ClearField(field.name)
        elif isinstance(value, Message):
            self._alter(value)
        elif hasattr(value, "append") or hasattr(value, "add"):
            self._alter_many(value)
        elif hasattr(value, "keys"):
            value[self._odd("")[:99]] = self.random.choice((-1, 0, 2**63 - 1))
        else:
            with suppress(ValueError, TypeError, OverflowError):
                setattr(message, field.name, self._odd(value))

    def _alter_many(self, values: Any) -> None:
        if len(values) and isinstance(values[0], Message):
            self._alter(self.random.choice(list(values)))
        elif hasattr(values, "append"):
            with suppress(ValueError, TypeError, OverflowError):
                values.append(self._odd(values[0] if len(values) else 0))

    def _odd(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return self.noise(value)
        if isinstance(value, str):
            return self.random.choice(("", "\0", "x" * 5000, "float8", "é" * 9))
        if isinstance(value, float):
            return self.random.choice((float("nan"), float("inf"), -1.0, 1e300))
        return self.random.choice(_ODD)

    def noise(self, raw: bytes) -> bytes:
        """Return bytes with some changed, cut off or put in."""
        data = bytearray(raw)
        how, place = self.random.randrange(4), self.random.randint(0, len(raw))
        if how == 0 and data:
            for _ in range(self.random.randint(1, 8)):
                data[self.random.randrange(len(data))] = self.random.randrange(256)
        elif how == 1:
            del data[place:]
        elif how == 2:
            data[place:place] = self.random.randbytes(self.random.randint(1, 64))
        else:
            # Larger than a service takes, now and then.
            size = self.random.choice((3, 100, 2**16, 2**20, 3 * 2**20))
            data += self.random.randbytes(size)
        return bytes(data)


class Hostile:
    """Talks to a service as strangers and as devices with a token do.

    Parameters
    ----------
    service : StreamService
        Live.
    seed : int
        Of what is said.

    Attributes
    ----------
    counts : Counter
        Dialogues by what came of them.
    """

    def __init__(self, service: StreamService, seed: int) -> None:
        self._service, self._mutator = service, Mutator(seed)
        self.counts: Counter[str] = Counter()
        identity = service.identity
        # A node id that no device of the run has.
        self._node = 10**6 * (1 + seed)
        self._address = f"127.0.0.1:{service.addresses[0].rpartition(':')[2]}"
        self._credentials = grpc.ssl_channel_credentials(identity.certificate)
        self._options = [
            ("grpc.ssl_target_name_override", identity.name),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._context = ssl.create_default_context(cadata=identity.certificate.decode())
        self._context.set_alpn_protocols(["h2"])
        self._request = pack_request(TrainRequest(0), StateCache())

    def run(self, deadline: float) -> None:
        """Talk until it is over."""
        while time.monotonic() < deadline:
            kind = self._mutator.random.random()
            if kind < 0.15:
                self._speak_raw(tls=kind < 0.1)
            else:
                self._speak(is_known=kind > 0.3)

    def _speak(self, *, is_known: bool) -> None:
        """Hold a dialogue; a known peer has a token, and a request to answer."""
        self._node += 1
        session, token = self._service.expect(self._node)
        self._service.ask(session, self._request, _LIMIT)
        token = token if is_known else b"x" * 32
        hello = pb.Hello(token=token, node=self._node, device=self._node)
        said = self._mutator.dialogue(hello)
        with grpc.secure_channel(
            self._address, self._credentials, self._options
        ) as channel:
            call = channel.stream_stream("/flwr_slfac.v1.Steps/Run")(iter(said))
            alarm = threading.Timer(_WAIT_S, call.cancel)
            alarm.start()
            try:
                heard = sum(1 for _ in call)
                code = "ended"
            except grpc.RpcError as error:
                heard, code = 0, error.code().name
            alarm.cancel()
        self._service.end(session)
        who = "device" if is_known else "stranger"
        self.counts[f"{who}: {code}" + (", heard" if heard else "")] += 1

    def _speak_raw(self, *, tls: bool) -> None:
        """Say bytes to the port, as HTTP/2 begins or not."""
        host, _, port = self._address.partition(":")
        said = self._mutator.noise(self._mutator.noise(_PREFACE))
        with ExitStack() as stack, suppress(OSError):
            address = host, int(port)
            end = stack.enter_context(socket.create_connection(address, _WAIT_S))
            if tls:
                name = self._service.identity.name
                wrapped = self._context.wrap_socket(end, server_hostname=name)
                end = stack.enter_context(wrapped)
            end.sendall(said)
            end.settimeout(0.05)
            end.recv(4096)
        self.counts["raw bytes after TLS" if tls else "raw bytes"] += 1


class Watch(logging.Handler):
    """Notes what ought not to happen: errors that are logged, or escape.

    Parameters
    ----------
    service : StreamService
        Whose events of hostile devices are read as the run would read them.
    """

    def __init__(self, service: StreamService) -> None:
        super().__init__(logging.ERROR)
        self.escaped: list[str] = []
        self.counts: Counter[str] = Counter()
        self._events = service.events
        service.events = self  # type: ignore[assignment]
        logging.getLogger().addHandler(self)
        service._loop.set_exception_handler(
            lambda loop, context: self.escaped.append(str(context))
        )

    def close(self) -> None:
        """Note no more."""
        logging.getLogger().removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Note an error."""
        self.escaped.append(self.format(record))

    def put(self, event: Event) -> None:
        """Pass an event on, or read it if it is a hostile device's."""
        if event.session.node < 10**6:
            self._events.put(event)
        elif event.answered is not None:
            try:
                self.counts[
                    f"read as {type(unpack_reply(event.answered.reply)).__name__}"
                ] += 1
            except SlfacError:
                self.counts["reply refused"] += 1
            except Exception as error:
                self.escaped.append(f"{type(error).__name__}: {error}")

    def get(self, timeout: float) -> Event:
        """Return the next event of the run."""
        return self._events.get(timeout=timeout)


def resident_bytes() -> int:
    """Return the memory that this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
