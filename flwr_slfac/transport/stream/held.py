"""A device that is held by its session, as the link knows it."""

from dataclasses import dataclass, replace

from flwr_slfac.split import Piece
from flwr_slfac.transport.carrier import Seen
from flwr_slfac.transport.stream.counting import carried
from flwr_slfac.transport.stream.sessions import Answered, Session
from flwr_slfac.transport.stream.wire import Packed


@dataclass
class Held:
    """A session, and what its device was asked last.

    Parameters
    ----------
    session : Session
        The session.
    request : Packed or None
        What was asked last, and `asked_at` when (`time.monotonic`).
    pipelined, is_ahead : bool
        Whether its round is a pipeline, and whether the device is ahead in it.
    entered : int
        Bytes of the stream that were entered.
    besides : int
        Those to enter besides: of the opening, or below 0 what was entered as part of a
        message before it had crossed.
    """

    session: Session
    request: Packed | None = None
    asked_at: float = 0.0
    pipelined: bool = False
    is_ahead: bool = False
    entered: int = 0
    besides: int = 0

    def look(self) -> Seen:
        """Return what is seen of the device."""
        session = self.session
        connected = session.connection is not None
        awaited = session.answered < session.number
        return Seen(session.device, connected, self.asked_at if awaited else None)

    def enter(self, answered: Answered) -> tuple[Piece, ...]:
        """Return what crossed for the last request and its reply; none of it twice."""
        assert self.request is not None
        now = answered.num_bytes
        num_bytes = self.besides + now - self.entered
        pieces = carried(self.request, answered.reply, num_bytes)
        *models, control = pieces
        self.entered, self.besides = now, min(control.num_bytes, 0)
        return (*models, replace(control, num_bytes=max(control.num_bytes, 0)))
