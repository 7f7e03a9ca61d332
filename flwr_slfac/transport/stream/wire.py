"""Messages with their bulk as the envelopes of slfac.proto, and back.

A message is a typed head and a list of blobs. Blobs are copied once on either side,
however large they are, and one blob may be part of messages to many devices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from flwr_slfac.errors import DecodeError, SettingError
from flwr_slfac.transport.stream import slfac_pb2 as pb

Head: TypeAlias = pb.Request | pb.Reply
Envelope: TypeAlias = pb.ToServer | pb.ToDevice
Kind = TypeVar("Kind", bound=Message)

# Measured over TLS: smaller parts cost a wake-up each, larger ones wait for each other.
DATA_BYTES = 2**20
# A head names at most some ten thousand tensors.
HEAD_BYTES = 2**20
ENVELOPE_BYTES = DATA_BYTES + HEAD_BYTES + 64
_MOST_BLOBS = 2**17
# What protobuf takes for the size of a blob at most.
_SIZE_BYTES = 10
# Of field 15 with a length: the key that protobuf writes before `data`.
_DATA_KEY = b"\x7a"


@dataclass(frozen=True)
class Packed:
    """A message that is ready to be sent.

    Parameters
    ----------
    head : Request or Reply
        Without its number and the sizes of the blobs.
    blobs : tuple of bytes
        What it refers to.

    Raises
    ------
    SettingError
        If the head is too large.
    """

    head: Head
    blobs: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        num_bytes = self.head.ByteSize() + _SIZE_BYTES * len(self.blobs)
        if num_bytes > HEAD_BYTES:
            raise SettingError(
                f"the names and shapes of a message take {num_bytes} bytes; a stream "
                f"carries at most {HEAD_BYTES}: use transport='messages'"
            )

    @property
    def num_blob_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(len(blob) for blob in self.blobs)

    def envelopes(self, number: int) -> Iterator[bytes]:
        """Yield the message in envelopes, made as they are asked for.

        Parameters
        ----------
        number : int
            Of the request, from 1.
        """
        head = type(self.head)()
        head.CopyFrom(self.head)
        head.number = number
        head.blob_sizes.extend(len(blob) for blob in self.blobs)
        if isinstance(head, pb.Request):
            first: Envelope = pb.ToDevice(request=head)
        else:
            first = pb.ToServer(reply=head)
        opening = first.SerializeToString()
        for data in _parts(self.blobs):
            num_bytes = sum(len(view) for view in data)
            key = _DATA_KEY + _varint(num_bytes) if num_bytes else b""
            yield b"".join((opening, key, *data))
            opening = b""


class Assembly:
    """Puts one message after another together from envelopes."""

    def __init__(self) -> None:
        self._head: Head | None = None
        self._sizes: list[int] = []
        self._blobs: list[bytes] = []
        self._pieces: list[memoryview] = []
        self._missing = 0

    @property
    def is_open(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._head is not None

    def add(
        self, head: Head | None, data: bytes | memoryview, limit: int
    ) -> Packed | None:
        """Take an envelope; return the message that it completes, or None.

        Parameters
        ----------
        head : Request or Reply or None
            What the envelope begins.
        data : bytes-like
            The next bytes of blobs.
        limit : int
            Most bytes that the blobs of a message may have.

        Raises
        ------
        DecodeError
            If envelopes do not follow each other, or the message is too large.
        """
        if head is not None:
            self._open(head, limit)
        if self._head is None:
            raise DecodeError("an envelope continues a message that did not begin")
        rest = self._fill(memoryview(data))
        if rest:
            raise DecodeError(f"an envelope holds {rest} bytes more than was said")
        if len(self._blobs) < len(self._sizes):
            if not data:
                raise DecodeError("an envelope of a message lacks its data")
            return None
        done = Packed(self._head, tuple(self._blobs))
        self._head, self._sizes, self._blobs = None, [], []
        return done

    def _open(self, head: Head, limit: int) -> None:
        if self._head is not None:
            raise DecodeError("a message begins before the one before it ended")
        sizes = list(head.blob_sizes)
        head.ClearField("blob_sizes")
        if len(sizes) > _MOST_BLOBS or sum(sizes) > limit:
            raise DecodeError(
                f"a message has {sum(sizes)} bytes in {len(sizes)} blobs; the limit "
                f"is {limit} bytes in {_MOST_BLOBS}"
            )
        if head.ByteSize() + _SIZE_BYTES * len(sizes) > HEAD_BYTES:
            raise DecodeError(f"a message's head has over {HEAD_BYTES} bytes")
        self._head, self._sizes = head, sizes
        self._missing = sizes[0] if sizes else 0

    def _fill(self, view: memoryview) -> int:
        """Cut blobs off the front; return how many bytes are left over."""
        while len(self._blobs) < len(self._sizes):
            taken = view[: self._missing]
            view = view[self._missing :]
            self._missing -= len(taken)
            self._pieces.append(taken)
            if self._missing:
                return 0
            self._blobs.append(b"".join(self._pieces))
            self._pieces = []
            if len(self._blobs) < len(self._sizes):
                self._missing = self._sizes[len(self._blobs)]
        return len(view)


def read_data(raw: bytes) -> memoryview | None:
    """Return the data of an envelope that holds nothing else, or None."""
    if raw[:1] != _DATA_KEY:
        return None
    length, start = 0, 1
    for shift in range(0, 35, 7):
        if start >= len(raw):
            return None
        byte = raw[start]
        start += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return memoryview(raw)[start:] if length == len(raw) - start else None


def parse(kind: type[Kind], raw: bytes) -> Kind:
    """Parse an envelope.

    Raises
    ------
    DecodeError
        If it is none.
    """
    try:
        parsed: Kind = kind.FromString(raw)
    except ProtobufError as error:
        raise DecodeError(f"an envelope cannot be read: {error}") from error
    return parsed


def _parts(blobs: Sequence[bytes]) -> Iterator[list[memoryview]]:
    """Yield the blobs in lists of views of `DATA_BYTES` in all; one at the least."""
    part: list[memoryview] = []
    room = DATA_BYTES
    for blob in blobs:
        view = memoryview(blob)
        while len(view):
            if not room:
                yield part
                part, room = [], DATA_BYTES
            part.append(view[:room])
            view = view[room:]
            room -= len(part[-1])
    yield part


def _varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
