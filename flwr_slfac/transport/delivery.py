"""Messages to nodes and their answers, past devices that raise, die or hang.

Flower's simulation takes Ray actors from the top of a stack and puts them back on top.
An actor whose process died is put back as well, and from then on fails at once every
message that it is given. Such a message never reached its device, so it is sent again;
and no more messages are under way than were answered alive, which leaves the dead
actors at the bottom of the stack.
"""

import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flwr_slfac.split import Lost
from flwr_slfac.transport.records import SPLIT

PARTITION = "query.partition"
REFUSED = "refused"

_UNKNOWN_ERROR = 0  # of Flower's error codes, the one that a dead actor comes with
_DEAD_ACTOR = re.compile(r"\bactor_id: ([0-9a-f]+)\n\s*pid: (\d+)")
_MOST_TRIES = 50
_LONGEST_REASON = 200
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.005, 0.25


@dataclass
class _Failure:
    """A message that failed and may deserve another try."""

    key: int
    reason: str
    actor: str
    when: float


class Delivery:
    """Delivers to many nodes at once, at most one message per node under way.

    Parameters
    ----------
    grid : Grid
        Flower's access to the nodes.
    timeout_s : float
        A node that does not answer for this long is lost.

    Attributes
    ----------
    deadline : float
        As `time.monotonic` counts: from then on, no answer is waited for.
    waiting : dict of int to float
        Nodes that have not answered yet, and when they were asked.
    """

    def __init__(self, grid: Grid, timeout_s: float) -> None:
        self.deadline = math.inf
        self.waiting: dict[int, float] = {}
        self._grid = grid
        self._timeout_s = timeout_s
        self._unanswered: dict[int, str] = {}
        self._dead_actors: set[str] = set()
        self._width: int | None = None

    def exchange(
        self, contents: Iterable[tuple[int, RecordDict]], message_type: str
    ) -> Iterator[tuple[int, RecordDict | Lost]]:
        """Deliver contents by node id as they come; give each node's answer.

        A device that refuses is lost too, and at fault.
        """
        left, tried = dict[int, RecordDict](), set[int]()

        def noted() -> Iterator[tuple[int, RecordDict]]:
            for key, content in contents:
                left[key] = content
                yield key, content

        asked: Iterable[tuple[int, RecordDict]] = noted()
        if self._width is not None:
            asked = list(asked)[: self._width]
        while True:
            num_answered, failures = 0, list[_Failure]()
            for key, answer in self._deliver(asked, message_type, failures):
                num_answered += 1
                del left[key]
                yield key, answer
            if message_type == PARTITION:
                # A question runs none of the device's code: its actor was dead before.
                self._dead_actors.update(f.actor for f in failures if f.actor)
            lost = dict[int, Lost]()
            victims = self._spare_victims(failures, tried, lost)
            if self._dead_actors and victims:
                num_alive = num_answered + len(failures) - len(victims)
                self._width = num_alive or self._surface()
            if self._width == 0:
                reason = f"no live process is left to run it; {victims[0].reason}"
                lost.update({k: Lost(reason) for k in left if k not in lost})
                self._width = None
            left = {key: content for key, content in left.items() if key not in lost}
            yield from lost.items()
            if not left:
                return
            asked = list(left.items())[: self._width]

    def _surface(self) -> int:
        """Bring live actors to the top of the stack; return how many.

        More questions at once than there are dead actors get past them, and a live
        actor, which answers after they have failed, is put back above them.
        """
        for _ in range(_MOST_TRIES):
            idle = [k for k in self._grid.get_node_ids() if k not in self._unanswered]
            question = RecordDict({SPLIT: ConfigRecord({"ask": "partition"})})
            asked = [(key, question) for key in idle[: 4 * len(self._dead_actors) + 4]]
            failures: list[_Failure] = []
            answers = dict(self._deliver(asked, PARTITION, failures))
            self._dead_actors.update(f.actor for f in failures if f.actor)
            alive = sum(isinstance(a, RecordDict) for a in answers.values())
            if alive:
                return alive
        return 0

    def _spare_victims(
        self,
        failures: list[_Failure],
        tried: set[int],
        lost: dict[int, Lost],
    ) -> list[_Failure]:
        """Enter the devices that are lost; return those to be tried again."""
        victims = []
        for failure in sorted(failures, key=lambda f: f.when):
            if failure.actor:
                again = failure.actor in self._dead_actors
                # The first message that a dead actor fails is the one that it ran:
                # sent again, it could take the next process along.
                self._dead_actors.add(failure.actor)
            else:
                again = failure.key not in tried
                tried.add(failure.key)
            if again:
                victims.append(failure)
            else:
                lost[failure.key] = Lost(failure.reason)
        return victims

    def _deliver(
        self,
        contents: Iterable[tuple[int, RecordDict]],
        message_type: str,
        failures: list[_Failure],
    ) -> Iterator[tuple[int, RecordDict | Lost]]:
        """Send once; give final answers, and enter failures that may not be final."""
        pending: dict[str, int] = {}
        try:
            yield from self._push(contents, message_type, pending)
            deadline = min(self.deadline, time.monotonic() + self._timeout_s)
            wait_s = _FIRST_WAIT_S
            while pending:
                replies = list(self._grid.pull_messages(list(pending)))
                for reply in replies:
                    key = pending.pop(reply.metadata.reply_to_message_id)
                    self.waiting.pop(key, None)
                    if not reply.has_error():
                        yield key, accept(key, reply.content)
                    elif reply.error.code == _UNKNOWN_ERROR:
                        failures.append(_failure(key, reply))
                    else:
                        yield key, Lost(reason_of(reply))
                wait_s = (
                    _FIRST_WAIT_S if replies else min(1.5 * wait_s, _LONGEST_WAIT_S)
                )
                left_s = deadline - time.monotonic()
                # What came while the last replies were taken is taken first.
                if left_s <= 0 and not replies:
                    break
                if pending:
                    time.sleep(min(wait_s, max(0.0, left_s)))
        finally:
            self._unanswered.update({key: i for i, key in pending.items()})
            self.waiting = {}
        late = Lost(f"no answer within {self._timeout_s:g} s")
        yield from [(key, late) for key in pending.values()]

    def _push(
        self,
        contents: Iterable[tuple[int, RecordDict]],
        message_type: str,
        pending: dict[str, int],
    ) -> Iterator[tuple[int, Lost]]:
        """Hand messages to Flower and enter who is to answer which; give the others."""
        lost = {}
        for key, content in contents:
            if self._still_busy(key):
                lost[key] = Lost("still busy with an earlier message")
                continue
            message = Message(content, key, message_type)
            pushed = [i for i in self._grid.push_messages([message]) if i]
            if pushed:
                pending[pushed[0]] = key
                self.waiting[key] = time.monotonic()
            else:
                lost[key] = Lost("its message could not be delivered")
        yield from lost.items()

    def _still_busy(self, key: int) -> bool:
        """Say whether a node has not yet answered a message of an earlier step."""
        message_id = self._unanswered.get(key)
        if message_id is None:
            return False
        if not list(self._grid.pull_messages([message_id])):
            return True
        del self._unanswered[key]
        return False


def accept(key: int, content: RecordDict) -> RecordDict | Lost:
    """Return a reply's content, or that the device refused, and with what."""
    record = content.config_records.get(SPLIT, ConfigRecord())
    if REFUSED in record:
        device = record.get("device", key)
        name = device if isinstance(device, int) else key
        return Lost(f"refused: {record[REFUSED]!s}", name, at_fault=True)
    return content


def _failure(key: int, reply: Message) -> _Failure:
    dead = _DEAD_ACTOR.search(reply.error.reason or "")
    reason = f"its process {dead[2]} died" if dead else reason_of(reply)
    return _Failure(key, reason, dead[1] if dead else "", reply.metadata.created_at)


def reason_of(reply: Message) -> str:
    """Return what Flower says of an error, in one line."""
    text = (reply.error.reason or "no reason given").strip().removesuffix("'>")
    line = text.rpartition("occurred. Message: ")[2].strip().rpartition("\n")[2]
    if len(line) > _LONGEST_REASON:
        line = line[:_LONGEST_REASON] + "..."
    return f"{line or 'no reason given'} (code {reply.error.code})"
