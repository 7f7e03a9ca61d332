"""Frames of a device to tensors: the part of receiving that may run on any thread."""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch

from flwr_slfac.codec import Memory, decode
from flwr_slfac.split.codec_pool import CodecPool
from flwr_slfac.split.crossing.server_side import ServerSide
from flwr_slfac.split.protocol import Smashed


@dataclass(frozen=True)
class Decoded:
    """What was in the frames of a batch.

    Parameters
    ----------
    sent, targets : Tensor
        As the codec brought them; nothing is known yet of their shapes.
    limit : int
        Most values that the activations of all channels may have.
    seconds : float
        How long it took.
    """

    sent: torch.Tensor
    targets: torch.Tensor
    limit: int
    seconds: float


class Decoder:
    """Decodes the batches that one device sends, in their order.

    Those of several devices may be at work at the same time: nothing is shared that
    any of them changes.

    Parameters
    ----------
    side : ServerSide
        What is common to all devices.
    memory : dict of str to Tensor, optional
        What it remembers of earlier rounds.

    Attributes
    ----------
    memory : dict of str to Tensor
        What it remembers now.
    last : bytes
        The last frame of activations that it decoded; empty for none.
    """

    def __init__(self, side: ServerSide, memory: Memory | None = None) -> None:
        self._side = side
        self.memory: Memory = {} if memory is None else memory
        self.last = b""

    def submit(self, smashed: Smashed, pool: CodecPool) -> Future[Decoded]:
        """Have a batch decoded; see `decode`."""
        num_elements = self._side.size.expected(smashed.num_examples)
        return pool.submit(partial(self.decode, smashed), num_elements)

    def decode(self, smashed: Smashed) -> Decoded:
        """Decode a batch.

        Raises
        ------
        DecodeError
            If the bytes are not frames.
        DeviceError
            If a frame is longer than the limit.
        """
        start = time.perf_counter()
        # Targets first: their frame is at least as long as there are examples, so that
        # a short frame of activations cannot claim many.
        targets = self._decode(smashed.targets, {}, len(smashed.targets))
        limit = self._side.size.limit(len(targets))
        sent = self._decode(smashed.activations, self.memory, limit)
        self.last = smashed.activations
        return Decoded(sent, targets, limit, time.perf_counter() - start)

    def _decode(self, frame: bytes, memory: Memory, limit: int) -> torch.Tensor:
        side = self._side
        side.size.limits.require_frame(frame)
        return decode(frame, max_elements=limit, memory=memory, device=side.where)
