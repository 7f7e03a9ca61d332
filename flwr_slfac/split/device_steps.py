"""The steps of one round on a device: forward, backward, and either of them again.

Between two requests the graph of the last forward may be lost (another process
answers). What is kept is the state before that forward: the forward is then run again
from the same weights, buffers, batch and noise, and gives the same graph.
"""

import torch

from flwr_slfac.errors import TrainingError
from flwr_slfac.split.crossing import DeviceEnd
from flwr_slfac.split.device_front import DeviceFront
from flwr_slfac.split.place import Place
from flwr_slfac.split.protocol import Smashed, TrainRequest
from flwr_slfac.split.reading import BatchReader

BEFORE_FIRST = -1  # "no forward has run yet in this round"


class DeviceSteps:
    """The steps of a device in one round.

    Parameters
    ----------
    front : DeviceFront
        What is trained, before the forward of step `last` or, if that is -1, the first.
    place : Place
        The device in the round.
    end : DeviceEnd
        What its smashed data goes through.
    batches : BatchReader
        Its batches.
    depth : int
        0, or 1 to run each forward before the update of the step before.
    period : int
        Steps between two averages of fronts within the round; 0 for none.
    last : int (default: -1)
        The last forward, whose graph is lost.
    paused : bool (default: False)
        Whether its update is done, and a mean is awaited.

    Attributes
    ----------
    batches : BatchReader
        As given.
    last : int
        The last forward, -1 before the first.
    buffers_before : dict of str to Tensor
        Those that were before it.
    paused : bool
        Whether a period ended with the last update, and the mean that the next forward
        starts from has not come.
    """

    def __init__(
        self,
        front: DeviceFront,
        place: Place,
        end: DeviceEnd,
        batches: BatchReader,
        depth: int,
        period: int,
        last: int = BEFORE_FIRST,
        paused: bool = False,
    ) -> None:
        self._front, self._place, self._end = front, place, end
        self.batches, self._depth, self.last = batches, depth, last
        self._period, self.paused = period, paused
        self.buffers_before = front.buffers()
        # The last update, and graphs of forwards after it by step.
        self._updated = last if paused else max(last - 1, BEFORE_FIRST)
        self._graphs: dict[int, torch.Tensor] = {}
        self._ahead: Smashed | None = None

    @property
    def is_ahead(self) -> bool:
        """Whether a forward has run that nobody asked for yet."""
        return self._ahead is not None

    def take(self, request: TrainRequest) -> Smashed | None:
        """Carry out a request; return what the forward gave.

        None after the last one, and where a mean of fronts is to come before it.

        Raises
        ------
        SettingError
            If the front or the data cannot be trained with.
        TrainingError
            If the request does not follow the one before.
        """
        if not self._depth:
            self._backward(request)
        self.paused = self._is_to_pause(request)
        if self.paused:
            return None
        smashed, self._ahead = self._ahead, None
        if smashed is None and request.step < self.batches.order.num_steps:
            smashed = self._forward(request.step)
        elif smashed is not None and request.step != self.last:
            raise self._out_of_step(request.step)
        if self._depth:
            self._backward(request)
        return smashed

    def run_ahead(self) -> Smashed | None:
        """Run the next forward before it is asked for; None if it is to wait.

        Raises
        ------
        SettingError
            As `take`.
        """
        step = self.last + 1
        if not self._depth or self.is_ahead or step >= self.batches.order.num_steps:
            return None
        self._ahead = self._forward(step)
        return self._ahead

    def _is_to_pause(self, request: TrainRequest) -> bool:
        """Say whether a mean is to come before the forward; take up one that came."""
        step, num_steps = request.step, self.batches.order.num_steps
        if step == self.last:
            return False
        ends_period = self._period > 0 and step % self._period == 0
        awaits_mean = ends_period and 0 < step < num_steps
        if request.front is None and request.update is None:
            return awaits_mean
        if not awaits_mean or not step - 1 == self.last == self._updated:
            raise self._out_of_step(step)
        channels = self._front.channels_sent
        self._front.go_on(request, self._place.at(self.last), self._who)
        if request.mask:
            self._end.renew(channels, self._front.channels_sent)
        return False

    @property
    def _who(self) -> str:
        return f"device {self._place.device}"

    def _forward(self, step: int) -> Smashed:
        """Run the front over a batch and code what comes out."""
        again = step == self.last
        if again:
            self._front.load_buffers(self.buffers_before)
            self._end.rewind()
            inputs, targets = self.batches.again(step)
        elif step == self.last + 1:
            self._revive()
            self.buffers_before = self._front.buffers()
            self._end.mark()
            inputs, targets = self.batches.read(step)
        else:
            raise self._out_of_step(step)
        self.last = step
        out = self._front.forward(inputs, self._place.at(step), again=again)
        sent = self._end.apply(out, step)
        self._graphs[step] = self._front.handle(sent)
        samples = self.batches.order.indices(step)
        return self._end.send(sent, targets, step, out, samples)

    def _revive(self) -> None:
        """Run the last forward again if its update is still to come, and it is lost."""
        step = self.last
        if step <= self._updated or step in self._graphs:
            return
        self._front.load_buffers(self.buffers_before)
        inputs, _ = self.batches.again(step)
        out = self._front.forward(inputs, self._place.at(step), again=True)
        self._graphs[step] = self._front.handle(self._end.apply(out, step))

    def _backward(self, request: TrainRequest) -> None:
        """Take the step that a gradient asks for, unless it was taken already."""
        step, frame = request.step - 1, request.gradient
        taken = step == self._updated >= 0
        if frame is not None and not taken:
            if step != self._updated + 1 or step > self.last:
                raise self._out_of_step(step)
            self._revive()
            graph, moment = self._graphs.pop(step), self._place.at(step)
            gradient = self._end.receive(frame, request.memory_order, graph, step)
            self._front.step(graph, gradient, moment)
        self._updated = max(step, BEFORE_FIRST)

    def _out_of_step(self, step: int) -> TrainingError:
        return TrainingError(
            f"{self._who} was asked for step {step}; its last forward "
            f"was of step {self.last}"
        )
