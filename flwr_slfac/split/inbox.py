"""Smashed data that arrived, decoded before their turn comes."""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from itertools import islice

from flwr_slfac.codec import Codec
from flwr_slfac.split.codec_pool import CodecPool
from flwr_slfac.split.crossing import Decoded, Decoder, ServerSide
from flwr_slfac.split.known_samples import KnownSamples
from flwr_slfac.split.place import Place
from flwr_slfac.split.protocol import Begin, Smashed
from flwr_slfac.split.recalled_samples import RecalledSamples
from flwr_slfac.split.usual_choices import UsualChoices

# Our choice: one in work and one done for each thread keeps all busy, and what is
# decoded may take many times the memory of its frames.
_AHEAD_A_THREAD = 2


class Inbox:
    """Training batches of a step, one a device, decoded from their arrival on.

    Parameters
    ----------
    side : ServerSide
        What is common to all devices.
    pool : CodecPool
        Where they are decoded.
    samples : RecalledSamples
        What decoders remember from round to round.
    choices : UsualChoices
        What encoders mostly chose in the round before.
    """

    def __init__(
        self,
        side: ServerSide,
        pool: CodecPool,
        samples: RecalledSamples,
        choices: UsualChoices,
    ) -> None:
        self._side, self._pool = side, pool
        self._samples, self._choices = samples, choices
        self._decoders: dict[int, Decoder] = {}
        self._up: dict[int, Codec] = {}
        self._decoded: dict[int, Future[Decoded]] = {}

    def begin(self, key: int, device: int, begin: Begin) -> Begin:
        """Recall a device's samples; return what it is told at the start of a round."""
        told, memory = self._samples.begin(device, begin)
        place = Place(begin.seed, begin.server_round, device)
        known = KnownSamples(place, begin.up)
        self._decoders[key] = Decoder(self._side, memory, known)
        self._up[key] = begin.up
        return self._choices.begin(told)

    def renew(self, key: int) -> None:
        """Decode from here on what a device sends under another mask."""
        self._decoders[key] = Decoder(self._side)

    def end(self, key: int, device: int) -> None:
        """Remember what serves the next round: a device has done its last step."""
        decoder = self._decoders[key]
        self._samples.end(device, decoder.memory)
        if decoder.last:
            self._choices.end(device, self._up[key], decoder.last)

    def put(self, key: int, smashed: Smashed) -> None:
        """Take what the device of a key sent."""
        self._decoded[key] = self._decoders[key].submit(smashed, self._pool)

    def take(self, key: int) -> Future[Decoded]:
        """Return what becomes of it."""
        return self._decoded.pop(key)


class EvaluationInbox:
    """Test batches, several a device, of which a few are decoded ahead of their turn.

    Parameters
    ----------
    side, pool
        As of an `Inbox`.
    """

    def __init__(self, side: ServerSide, pool: CodecPool) -> None:
        self._side, self._pool = side, pool
        self._room = _AHEAD_A_THREAD * pool.num_threads
        self._ahead: dict[tuple[int, int], Future[Decoded]] = {}
        self._line: deque[tuple[int, int, Smashed]] = deque()

    def put(self, key: int, batches: Sequence[Smashed]) -> None:
        """Take what the device of a key sent; begin with it if there is room."""
        for index, smashed in enumerate(batches):
            self._begin(key, index, smashed)

    def line_up(self, batches: Mapping[int, Sequence[Smashed]]) -> None:
        """Take note of the order in which all batches will be asked for, by key."""
        self._ahead = {k: f for k, f in self._ahead.items() if k[0] in batches}
        self._line = deque(
            (key, index, smashed)
            for key, several in batches.items()
            for index, smashed in enumerate(several)
        )

    def take(self, key: int, index: int) -> Future[Decoded]:
        """Return what becomes of a batch; those before it will not be asked for."""
        while (place := self._line.popleft())[:2] != (key, index):
            self._ahead.pop(place[:2], None)
        self._begin(*place, at_once=True)
        decoded = self._ahead.pop((key, index))
        for following in islice(self._line, self._room):
            self._begin(*following)
        return decoded

    def _begin(
        self, key: int, index: int, smashed: Smashed, *, at_once: bool = False
    ) -> None:
        is_begun = (key, index) in self._ahead
        if not is_begun and (at_once or len(self._ahead) < self._room):
            decoded = Decoder(self._side).submit(smashed, self._pool)
            self._ahead[key, index] = decoded
