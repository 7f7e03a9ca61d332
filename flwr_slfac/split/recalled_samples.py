"""What the server remembers of each device's samples from round to round.

A codec that predicts samples counts on both sides to remember the same. A round may
end between the two (a device is lost, restarted, or resumed without its memory), so
the server tells each device at its start what it remembers::

    server                                           device
    version of the last round that ended  ==Begin==> the same as its own?
                                                     yes: go on from there
    forget <==first frame: begins anew============== no:  forget

What a round changed counts from its end on: a device that was lost in it, and comes
back with the memory of the round before, goes on from that one.
"""

from dataclasses import replace
from pathlib import Path

from flwr_slfac.codec import Memory, SampleMemory, Temporal, restart
from flwr_slfac.split.features import Recall
from flwr_slfac.split.known_samples import order_mark
from flwr_slfac.split.protocol import Begin


class RecalledSamples:
    """Of all devices, by partition id."""

    def __init__(self) -> None:
        self._memories: dict[int, Memory] = {}

    def begin(self, device: int, begin: Begin) -> tuple[Begin, Memory]:
        """Return what a device is told, and what its decoder begins with.

        Parameters
        ----------
        device : int
            Partition id.
        begin : Begin
            What it would be told otherwise.
        """
        if not isinstance(begin.up, Temporal):
            return begin, {}
        memory = dict(self._memories.get(device, {}))
        samples = SampleMemory(memory)
        samples.allow(begin.up.max_bytes)
        told = (*begin.cut_features, Recall(samples.version, order_mark()))
        return replace(begin, cut_features=told), memory

    def end(self, device: int, memory: Memory) -> None:
        """Remember what a device's decoder does at the end of a round."""
        if SampleMemory(memory).version:
            self._memories[device] = restart(memory)

    def state(self) -> dict[int, Memory]:
        """Return, between rounds, what `load` takes."""
        return {d: dict(self._memories[d]) for d in sorted(self._memories)}

    def load(self, state: dict[int, Memory], folder: str | Path | None) -> None:
        """Go on from what `state` returned; in files of a folder, if one is given."""
        self._memories = {device: dict(state[device]) for device in state}
        for memory in self._memories.values():
            SampleMemory(memory).move_to(folder)


def recalled_samples(memory: Memory, begin: Begin) -> Memory:
    """Return a device's memory, without samples that the server does not remember.

    Parameters
    ----------
    memory : dict of str to Tensor
        Of its encoder.
    begin : Begin
        What it is told.
    """
    told = [f.version for f in begin.cut_features if isinstance(f, Recall)]
    own = SampleMemory(dict(memory))
    # The last one is the server's own, see `RecalledSamples.begin`.
    if own.version != (told or [""])[-1]:
        own.forget()
    return own.memory
