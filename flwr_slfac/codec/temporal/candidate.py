"""One way to code a batch: what crosses, and what both sides then have."""

from dataclasses import dataclass

import torch

from flwr_slfac.codec.base import Codec, Hints, Memory
from flwr_slfac.codec.coding import sections_of, tensor_of
from flwr_slfac.codec.packing import num_packed_bytes
from flwr_slfac.codec.temporal.header import MODE_BITS, Ids, Samples
from flwr_slfac.codec.temporal.prediction import Choice, Prediction
from flwr_slfac.codec.temporal.sums import energy
from flwr_slfac.codec.wire import Frame

__all__ = ["CLAMPING", "Candidate", "code"]

# What the other side's decoder remembers of the inner codec; it ends with the stream.
_DECODER = "stream.temporal.decoder."
# Squared error after clamping at zero relative to that before, as it was.
CLAMPING = "temporal.clamping"
# Our choice: a frame whose clamping did more than this says little of the next one.
_LEAST_CLAMPING = 0.25
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to code a batch.

    Parameters
    ----------
    sections : list of bytes or memoryview
        Of the inner codec.
    left : Tensor
        What they are of.
    memory : dict of str to Tensor
        The encoder's, the samples of this frame still left out.
    prediction : Prediction, optional
        None if nothing is predicted.
    """

    sections: list[bytes | memoryview]
    left: torch.Tensor
    memory: Memory
    prediction: Prediction | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the sections, and of what the header says of a prediction."""
        num_bytes = sum(memoryview(section).nbytes for section in self.sections)
        if self.prediction is None:
            return num_bytes
        gains = self.prediction.gains
        num_bytes += 0 if gains is None else len(gains)
        return num_bytes + num_packed_bytes(len(self.prediction.modes), MODE_BITS)

    def said(
        self, ids: Ids | None, bits: int, version: bytes, max_bytes: int
    ) -> Samples:
        """Return what the header says."""
        how = self.prediction
        if how is None:
            return Samples(ids, bits, version, max_bytes)
        ways = how.modes, how.gains, how.clamps
        return Samples(ids, bits, version, max_bytes, *ways)

    def decoded(self, x: torch.Tensor, inner: Codec) -> torch.Tensor:
        """Return the batch as both sides then have it, and take note of it in memory.

        Parameters
        ----------
        x : Tensor (n, ...)
            The batch.
        inner : Codec
            Whose sections these are.
        """
        decoded, how = self.left, self.prediction
        if len(self.left):
            decoded = _mirrored(self.left, inner, self.sections, self.memory)
        if how is None:
            return decoded
        whole = how.completed(decoded)
        if how.clamps and len(self.left):
            after = x[how.is_sent] - whole[how.is_sent]
            self.memory[CLAMPING] = _clamping(self.left - decoded, after)
        return whole


def code(
    x: torch.Tensor, inner: Codec, hints: Hints, choice: Choice | None = None
) -> Candidate:
    """Code a batch one way, with a copy of the memory."""
    memory = dict(hints.memory)
    prediction = None if choice is None else choice.prediction
    left = x if prediction is None else prediction.left_over(x)
    sections: list[bytes | memoryview] = []
    if len(left):
        sections = list(sections_of(left, inner, Hints(hints.role, hints.seed, memory)))
    return Candidate(sections, left, memory, prediction)


def _mirrored(
    left: torch.Tensor,
    inner: Codec,
    sections: list[bytes | memoryview],
    memory: Memory,
) -> torch.Tensor:
    """Decode as the other side will, with a copy of what its decoder remembers."""
    views = tuple(memoryview(section).cast("B") for section in sections)
    frame = Frame(inner.codec_id, left.dtype, tuple(left.shape), views)
    mirror = {
        name.removeprefix(_DECODER): value
        for name, value in memory.items()
        if name.startswith(_DECODER)
    }
    decoded = tensor_of(frame, type(inner), mirror, _CPU)
    memory.update({_DECODER + name: value for name, value in mirror.items()})
    return decoded


def _clamping(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return which share of a squared error is left after clamping."""
    scale = float(before.abs().max()) or 1.0
    sums = energy(before, scale), energy(after, scale)
    share = sums[1] / sums[0] if sums[0] else 1.0
    return torch.tensor(min(max(share, _LEAST_CLAMPING), 1.0), dtype=torch.float64)
