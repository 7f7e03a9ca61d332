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
from collections.abc import Mapping
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
        self, contents: Mapping[int, RecordDict], message_type: str
    ) -> dict[int, RecordDict | Lost]:
        """Deliver contents by node id and collect what the nodes answer.

        A device that refuses is lost too, and at fault.
        """
        answers: dict[int, RecordDict | Lost] = {}
        waiting, tried = list(contents), set[int]()
        while waiting:
            asked = waiting[: self._width]
            arrived, failures = self._deliver(
                {key: Message(contents[key], key, message_type) for key in asked}
            )
            answers.update(arrived)
            if message_type == PARTITION:
                # A question runs none of the device's code: its actor was dead before.
                self._dead_actors.update(f.actor for f in failures if f.actor)
            victims = self._spare_victims(failures, tried, answers)
            if self._dead_actors and victims:
                self._width = len(asked) - len(victims) or self._surface()
            if self._width == 0:
                reason = f"no live process is left to run it; {victims[0].reason}"
                answers.update({k: Lost(reason) for k in waiting if k not in answers})
                self._width = None
            waiting = [key for key in waiting if key not in answers]
        return answers

    def _surface(self) -> int:
        """Bring live actors to the top of the stack; return how many.

        More questions at once than there are dead actors get past them, and a live
        actor, which answers after they have failed, is put back above them.
        """
        for _ in range(_MOST_TRIES):
            idle = [k for k in self._grid.get_node_ids() if k not in self._unanswered]
            question = ConfigRecord({"ask": "partition"})
            questions = {
                key: Message(RecordDict({SPLIT: question}), key, PARTITION)
                for key in idle[: 4 * len(self._dead_actors) + 4]
            }
            answers, failures = self._deliver(questions)
            self._dead_actors.update(f.actor for f in failures if f.actor)
            alive = sum(isinstance(a, RecordDict) for a in answers.values())
            if alive:
                return alive
        return 0

    def _spare_victims(
        self,
        failures: list[_Failure],
        tried: set[int],
        answers: dict[int, RecordDict | Lost],
    ) -> list[_Failure]:
        """Answer for the devices that are lost; return those to be tried again."""
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
                answers[failure.key] = Lost(failure.reason)
        return victims

    def _deliver(
        self, messages: Mapping[int, Message]
    ) -> tuple[dict[int, RecordDict | Lost], list[_Failure]]:
        """Send once; return final answers, and failures that may not be final."""
        answers: dict[int, RecordDict | Lost] = {}
        failures: list[_Failure] = []
        pending = self._push(messages, answers)
        now = time.monotonic()
        self.waiting = dict.fromkeys(pending.values(), now)
        deadline = min(self.deadline, now + self._timeout_s)
        wait_s = _FIRST_WAIT_S
        while pending and time.monotonic() < deadline:
            replies = list(self._grid.pull_messages(list(pending)))
            for reply in replies:
                key = pending.pop(reply.metadata.reply_to_message_id)
                self.waiting.pop(key, None)
                if not reply.has_error():
                    answers[key] = accept(key, reply.content)
                elif reply.error.code == _UNKNOWN_ERROR:
                    failures.append(_failure(key, reply))
                else:
                    answers[key] = Lost(reason_of(reply))
            wait_s = _FIRST_WAIT_S if replies else min(1.5 * wait_s, _LONGEST_WAIT_S)
            if pending:
                time.sleep(min(wait_s, max(0.0, deadline - time.monotonic())))
        for message_id, key in pending.items():
            self._unanswered[key] = message_id
            answers[key] = Lost(f"no answer within {self._timeout_s:g} s")
        self.waiting = {}
        return answers, failures

    def _push(
        self, messages: Mapping[int, Message], answers: dict[int, RecordDict | Lost]
    ) -> dict[str, int]:
        """Hand messages to Flower; return who is to answer which message."""
        pending = {}
        for key, message in messages.items():
            if self._still_busy(key):
                answers[key] = Lost("still busy with an earlier message")
                continue
            pushed = [i for i in self._grid.push_messages([message]) if i]
            if pushed:
                pending[pushed[0]] = key
            else:
                answers[key] = Lost("its message could not be delivered")
        return pending

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
