"""The server's notes on one device within a round."""

import math
from dataclasses import dataclass

from flwr_slfac.errors import DeviceError
from flwr_slfac.split.crossing import ServerEnd
from flwr_slfac.split.protocol import TrainReply
from flwr_slfac.split.results import DeviceResult
from flwr_slfac.states import State


@dataclass
class Stream:
    """One device within a round.

    Parameters
    ----------
    key : int
        Of the link.
    device : int
        Partition id.
    end : ServerEnd
        The server's end of what crosses.
    num_steps : int
        Steps that the device said it takes.
    period_steps : int
        Steps between two means of fronts within the round; 0 for none.
    num_examples : int
        Examples that were trained on so far.
    loss_sum : float
        Training loss summed over the examples of batches that have one.
    num_judged : int
        How many those are.
    num_period_examples : int
        Examples that were trained on since the last mean.
    joined_at : int
        The step before which the device last brought its front to a mean.
    """

    key: int
    device: int
    end: ServerEnd
    num_steps: int
    period_steps: int = 0
    num_examples: int = 0
    loss_sum: float = 0.0
    num_judged: int = 0
    num_period_examples: int = 0
    joined_at: int = 0

    @property
    def loss(self) -> float:
        """Mean training loss; NaN if no batch had one."""
        return self.loss_sum / self.num_judged if self.num_judged else math.nan

    def learned(self, loss: float, num_examples: int) -> None:
        """Take note of a batch that was trained on; its loss may be NaN."""
        self.num_examples += num_examples
        self.num_period_examples += num_examples
        if not math.isnan(loss):
            self.loss_sum += loss * num_examples
            self.num_judged += num_examples

    def result(self, reply: TrainReply, front: State | None) -> DeviceResult:
        """Return what the device's work came to, by its last reply and its front."""
        return DeviceResult(
            self.device,
            front,
            self.num_examples,
            self.loss,
            reply.cost,
            reply.metrics,
        )

    def _joins_before(self, step: int) -> bool:
        """Say whether the device is to bring its front to a mean before a step."""
        if not self.period_steps or not self.joined_at < step < self.num_steps:
            return False
        return step % self.period_steps == 0

    def require_in_turn(self, reply: TrainReply, step: int) -> None:
        """Raise DeviceError unless a reply is the one that follows."""
        if reply.device != self.device:
            raise DeviceError(
                f"device {self.device} claims partition id {reply.device} now"
            )
        if reply.num_steps != self.num_steps:
            raise DeviceError(
                f"device {self.device} has {reply.num_steps} steps now, and had "
                f"{self.num_steps}"
            )
        last = step == self.num_steps
        joins = self._joins_before(step)
        if joins and not reply.done and reply.smashed is not None:
            raise DeviceError(
                f"device {self.device} sent smashed data at step {step}, before which "
                "it was to bring its front"
            )
        if reply.done != last or (reply.smashed is None) != (last or joins):
            raise DeviceError(
                f"device {self.device}, of {self.num_steps} steps, sent "
                f"{'its last' if reply.done else 'no last'} reply and "
                f"{'no ' if reply.smashed is None else ''}smashed data at step {step}"
            )
