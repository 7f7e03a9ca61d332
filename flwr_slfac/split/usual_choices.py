"""What devices' encoders mostly choose, told to all so that none tries it anew.

Streams of activations begin anew with every round, and the first frame of one would be
tried for its bases, which takes several times as long as coding it. What a device
remembers would not do, as a run that is resumed has to go on to the same bits: so the
server, whose state is saved, tells what it saw in the last frames of the round before::

    server                                        device
    choices of round r  <== last frame of round r ==
    the most common one == Begin of round r + 1 ==>  its first frame is coded like this

From time to time nothing is told, and all try anew.
"""

from collections.abc import Mapping
from dataclasses import replace

from flwr_slfac.codec import Codec
from flwr_slfac.codec.wire import DEFAULT_MAX_ELEMENTS, unpack_frame
from flwr_slfac.split.features import Usual
from flwr_slfac.split.protocol import Begin

# Our choice: trials take about as long as four frames of 128 KB, of which a round has
# several; and a choice holds for about as long as where streams do not begin anew.
_TRIED_EVERY = 8

# By codec id and partition id.
_Choices = dict[str, dict[int, str]]


class UsualChoices:
    """Of all devices, from round to round."""

    def __init__(self) -> None:
        self._round = 0
        # By codec and device, of the last round that told any, and of this one.
        self._before: _Choices = {}
        self._now: _Choices = {}
        self._usual: dict[str, str] = {}

    def begin(self, begin: Begin) -> Begin:
        """Return what a device is told at the start of a round.

        Parameters
        ----------
        begin : Begin
            What it would be told otherwise.
        """
        if begin.server_round != self._round:
            self._before, self._now = {**self._before, **self._now}, {}
            self._round, self._usual = begin.server_round, {}
        up = begin.up
        if up.codec_id not in self._usual:
            choices = self._before.get(up.codec_id, {})
            self._usual[up.codec_id] = up.usual([choices[d] for d in sorted(choices)])
        choice = self._usual[up.codec_id]
        if not choice or begin.server_round % _TRIED_EVERY == 0:
            return begin
        return replace(begin, cut_features=(*begin.cut_features, Usual(choice)))

    def end(self, device: int, up: Codec, frame: bytes) -> None:
        """Look at the last frame of a device's round, which was decoded before.

        Parameters
        ----------
        device : int
            Partition id.
        up : Codec
            What the device was to code by.
        frame : bytes
            The frame.
        """
        last = unpack_frame(frame, max_elements=DEFAULT_MAX_ELEMENTS)
        if last.codec_id == up.codec_id and (choice := up.choice_of(last)):
            self._now.setdefault(up.codec_id, {})[device] = choice

    def state(self) -> dict[str, _Choices]:
        """Return, between rounds, what `load` takes."""
        return {"before": _in_order(self._before), "now": _in_order(self._now)}

    def load(self, state: Mapping[str, _Choices]) -> None:
        """Go on from what `state` returned."""
        self._before, self._now = dict(state["before"]), dict(state["now"])


def _in_order(choices: _Choices) -> _Choices:
    """Return the same, whatever the order of arrival."""
    return {
        codec: {device: choices[codec][device] for device in sorted(choices[codec])}
        for codec in sorted(choices)
    }
