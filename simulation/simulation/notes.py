"""What was seen of one device in one round: bytes and examples of every step."""

from dataclasses import dataclass, field

from flwr_slfac import DecodeError
from flwr_slfac.codec.wire import DEFAULT_MAX_ELEMENTS, unpack_frame
from flwr_slfac.split import TrainReply, TrainRequest
from simulation.clock import DeviceRound, DeviceStep
from simulation.work import StepWork

_FLOAT_BYTES = 4
# Copies bytes, and takes no time that would be told apart from sending them.
_NOT_CODED = frozenset(("identity",))


@dataclass
class StepNotes:
    """One step.

    Parameters
    ----------
    num_examples : int
        Of its batch.
    up_bytes, down_bytes : int
        What crossed: activations, targets and the values around them; the gradient and
        those around it.
    up_raw_bytes, down_raw_bytes : int
        The tensors that were coded, in float32; 0 where nothing was.
    """

    num_examples: int
    up_bytes: int
    up_raw_bytes: int
    down_bytes: int = 0
    down_raw_bytes: int = 0


@dataclass
class DeviceNotes:
    """One device in one round.

    Parameters
    ----------
    device : int
        Partition id; -1 until it has told.
    steps : list of StepNotes
        In order.
    model_down_bytes, model_up_bytes : int
        Of the front at the start and at the end, with the values around it.
    """

    device: int = -1
    steps: list[StepNotes] = field(default_factory=list)
    model_down_bytes: int = 0
    model_up_bytes: int = 0

    @property
    def num_examples(self) -> int:
        """Examples of all its steps."""
        return sum(step.num_examples for step in self.steps)

    @property
    def num_bytes(self) -> int:
        """Everything that crossed."""
        steps = sum(step.up_bytes + step.down_bytes for step in self.steps)
        return steps + self.model_down_bytes + self.model_up_bytes

    def sent(self, request: TrainRequest) -> None:
        """Take note of a request."""
        if request.begin is not None:
            self.model_down_bytes += len(request.begin.mask)
        self.model_down_bytes += len(request.mask)
        if request.gradient is not None:
            self.steps[-1].down_bytes += len(request.gradient)
            self.steps[-1].down_raw_bytes = _coded_bytes(request.gradient)

    def came(self, reply: TrainReply) -> None:
        """Take note of a reply, and of what the link carried for it."""
        self.device = reply.device
        pieces: dict[str, int] = {}
        # Values around the request come first, then those around the reply.
        control = [p.num_bytes for p in reply.carried if p.direction == "control"]
        for piece in reply.carried:
            if piece.direction != "control":
                pieces[piece.direction] = (
                    pieces.get(piece.direction, 0) + piece.num_bytes
                )
        down = pieces.get("model-down", 0) + sum(control[:1])
        up = pieces.get("model-up", 0) + len(reply.update or b"") + sum(control[1:])
        if self.steps:
            self.steps[-1].down_bytes += down
        else:
            self.model_down_bytes += down
        if reply.smashed is None:
            self.model_up_bytes += up
            return
        smashed = reply.smashed
        crossed = len(smashed.activations) + len(smashed.targets)
        raw_bytes = _coded_bytes(smashed.activations)
        self.steps.append(StepNotes(smashed.num_examples, crossed + up, raw_bytes))

    def as_round(self, work: StepWork, share: float) -> DeviceRound:
        """Return the same as the clock takes it.

        Parameters
        ----------
        work : StepWork
            Counts operations.
        share : float
            Of the front's operations that the device carries out.
        """
        steps = []
        for own in self.steps:
            forward, backward, server = work.flops(own.num_examples)
            steps.append(
                DeviceStep(
                    own.up_bytes,
                    own.down_bytes,
                    forward * share,
                    backward * share,
                    server,
                    own.up_raw_bytes,
                    own.down_raw_bytes,
                )
            )
        return DeviceRound(
            self.device, steps, self.model_down_bytes, self.model_up_bytes
        )

    @staticmethod
    def idle(device: int) -> DeviceRound:
        """Return a round in which a device does nothing."""
        return DeviceRound(device, [DeviceStep(0, 0, 0, 0, 0)])


def _coded_bytes(frame: bytes) -> int:
    """Return the float32 bytes of what a frame holds; 0 if it is not coded."""
    try:
        declared = unpack_frame(frame, max_elements=DEFAULT_MAX_ELEMENTS)
    except DecodeError:
        return 0
    if declared.codec_id in _NOT_CODED:
        return 0
    return _FLOAT_BYTES * declared.num_elements
