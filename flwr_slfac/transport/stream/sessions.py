"""Sessions of devices on the server: who may join, and what each still has to get.

::

    expect ─► joined ─► asked ─► answered ─► asked ... ─► over
                ▲  │
                └──┘  the stream breaks, and the device shows its next token
"""

import hashlib
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr_slfac.errors import DecodeError
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream.wire import Packed

if TYPE_CHECKING:
    from flwr_slfac.transport.stream.connection import Connection

TOKEN_BYTES = 32
# Our choice: well above the time for which a device that lost its stream knocks again.
_REMEMBERED_S = 600.0
# Issued for streams of a session that broke before their Ready; a few at a time.
_MOST_TOKENS = 8
# What was used before is told from what was never issued for so many, in the log only.
_MOST_SPENT = 2**14


class Refusal(Exception):  # noqa: N818 - it is an answer to a peer, not an error here
    """Why a peer is sent away; for the log of the server alone."""


@dataclass(frozen=True)
class Answered:
    """A reply, and the bytes of its session, both ways, when it had arrived."""

    reply: Packed
    num_bytes: int


class Session:
    """One device's session; changed in the service's thread only.

    Parameters
    ----------
    node : int
        Node id of the device.

    Attributes
    ----------
    device : int or None
        Partition id, once the device told it.
    number, answered : int
        The last request that was posted, and the last reply that arrived: one more
        where the device is ahead.
    asked : dict of int to Packed
        By number, the requests that the device may lack: one, or two in a pipeline.
    limit : int
        Most bytes in the blobs of an answer.
    over : str or None
        Why the session is over, empty if the work is done; None while it is not.
    parted : bool
        Whether the device closed its stream after the Bye.
    connection : Connection or None
        The stream that is open now.
    away_since : float
        When the last stream broke, or the session was made (`time.monotonic`).
    num_bytes : int
        Of all envelopes, both ways.
    """

    def __init__(self, node: int) -> None:
        self.node = node
        self.device: int | None = None
        self.number = self.answered = 0
        self.asked: dict[int, Packed] = {}
        self.limit = 0
        # Whether the device may answer one request ahead, and what it answered so.
        self._pipelined = False
        self._early: Answered | None = None
        self.over: str | None = None
        self.parted = False
        self.connection: Connection | None = None
        self.away_since = time.monotonic()
        self.num_bytes = 0

    def ask(
        self, request: Packed, limit: int, *, pipelined: bool = False
    ) -> Answered | None:
        """Post the next request; return the answer to it if that was ahead.

        Parameters
        ----------
        request : Packed
            What is asked, once the last request is answered.
        limit : int
            Most bytes in the blobs of the answer, and of one that is ahead of it.
        pipelined : bool (default: False)
            Whether the device may answer the request after this one, too.
        """
        self.number += 1
        # With reply n the device has request n - 1, and n if it was not ahead.
        self.asked = {n: r for n, r in self.asked.items() if n == self.number - 1}
        self.asked[self.number] = request
        self.limit, self._pipelined = limit, pipelined
        early, self._early = self._early, None
        self.wake()
        return early

    def end(self, reason: str) -> None:
        """Let the device go."""
        if self.over is None:
            self.over, self.asked, self._early = reason, {}, None
            self.wake()

    def is_gone(self, now: float) -> bool:
        """Say whether it is over, and its device knows or will not ask any more."""
        is_away = self.connection is None and now - self.away_since > _REMEMBERED_S
        return self.over is not None and (self.parted or is_away)

    def wake(self) -> None:
        """Have the open stream look at what there is to send."""
        if self.connection is not None:
            self.connection.wake()

    def next_after(self, number: int) -> tuple[int, Packed] | None:
        """Return the first request after one that was sent, if there is one."""
        return min(
            ((n, r) for n, r in self.asked.items() if n > number),
            key=lambda pair: pair[0],
            default=None,
        )

    @property
    def may_answer(self) -> bool:
        """Whether a reply may come now."""
        return self.answered < self.number + self._pipelined

    def answer(self, reply: Packed) -> Answered | None:
        """Take a reply; return None if it is kept for the request to come.

        Raises
        ------
        DecodeError
            If it answers nothing that was, or is next to be asked.
        """
        number = reply.head.number
        if number != self.answered + 1 or not self.may_answer:
            raise DecodeError(
                f"a reply has number {number}; asked was request {self.number}, and "
                f"answered is {self.answered}"
            )
        self.answered = number
        answered = Answered(reply, self.num_bytes)
        if number > self.number:
            self._early = answered
            return None
        if not self._pipelined:
            self.asked = {}
        return answered

    def require_ahead(self, received: int) -> None:
        """Raise Refusal if a device says it has what was never sent, or lacks more."""
        oldest = min(self.asked, default=self.number + 1)
        if not oldest - 1 <= received <= self.number:
            raise Refusal(
                f"node {self.node} says that it has request {received} of {self.number}"
            )


class Tokens:
    """Who holds which token; each opens one stream of one session, in turn."""

    def __init__(self) -> None:
        # Those of a session stand in the order in which they were issued.
        self._sessions: dict[bytes, Session] = {}
        self._spent: dict[bytes, int] = {}

    def issue(self, session: Session) -> bytes:
        """Return a new token of a session; the others of it stay valid."""
        token = secrets.token_bytes(TOKEN_BYTES)
        self._sessions[_digest(token)] = session
        return token

    def admit(self, hello: pb.Hello) -> tuple[Session, bytes]:
        """Return the session that a Hello opens, and the token of the next one.

        The token that was shown stays valid until `confirm`, as the device may lose its
        stream before the next one has reached it; and so do those issued after it: one
        of them may have reached the device already, if this Hello was late.

        Raises
        ------
        Refusal
            If the token is not valid, or another device's.
        """
        digest = _digest(hello.token)
        session = self._sessions.get(digest)
        if session is None:
            if digest in self._spent:
                raise Refusal(f"a token of node {self._spent[digest]} was used before")
            raise Refusal("a token is not known")
        if hello.node != session.node or session.device not in (None, hello.device):
            raise Refusal(
                f"node {hello.node}, device {hello.device}, shows a token of node "
                f"{session.node}, device {session.device}"
            )
        session.require_ahead(hello.received)
        mine = self._of(session)
        later = mine[mine.index(digest) + 1 :][1 - _MOST_TOKENS :]
        self._void(session, set(mine) - {digest, *later})
        return session, self.issue(session)

    def confirm(self, session: Session, token: bytes) -> None:
        """Void every token of a session but this one, which has arrived."""
        self._void(session, set(self._of(session)) - {_digest(token)})

    def forget(self, sessions: Iterable[Session]) -> None:
        """Void the tokens of sessions whose devices will not come back."""
        gone = set(sessions)
        for digest in [d for d, s in self._sessions.items() if s in gone]:
            del self._sessions[digest]

    def _of(self, session: Session) -> list[bytes]:
        return [digest for digest, each in self._sessions.items() if each is session]

    def _void(self, session: Session, digests: set[bytes]) -> None:
        for digest in digests:
            del self._sessions[digest]
            self._spent[digest] = session.node
        while len(self._spent) > _MOST_SPENT:
            del self._spent[next(iter(self._spent))]


def _digest(token: bytes) -> bytes:
    # Looked up by digest, so that the time of a look-up tells nothing of a token.
    return hashlib.sha256(token).digest()
