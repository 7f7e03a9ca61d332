"""Frames of a device to tensors: the part of receiving that may run on any thread."""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch

from flwr_slfac.codec import Memory, SampleMemory, decode
from flwr_slfac.split.codec_pool import CodecPool
from flwr_slfac.split.crossing.server_side import ServerSide
from flwr_slfac.split.known_samples import KnownSamples
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
    known : KnownSamples, optional
        Which samples batches hold whose frames name none.

    Attributes
    ----------
    memory : dict of str to Tensor
        What it remembers now.
    last : bytes
        The last frame of activations that it decoded; empty for none.
    """

    def __init__(
        self,
        side: ServerSide,
        memory: Memory | None = None,
        known: KnownSamples | None = None,
    ) -> None:
        self._side, self._known, self._step = side, known, 0
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
        samples = self._samples(smashed.order, len(targets))
        sent = self._decode(smashed.activations, self.memory, limit, samples)
        SampleMemory(self.memory).move_to(self._side.size.limits.sample_folder)
        self.last = smashed.activations
        return Decoded(sent, targets, limit, time.perf_counter() - start)

    def _samples(self, order: tuple[int, ...], num: int) -> list[int] | None:
        """Return which samples the next batch holds, None if that is not known."""
        step, self._step = self._step, self._step + 1
        if self._known is None:
            return None
        if order and not step:
            self._known.tell(order)
        return self._known.at(step, num)

    def _decode(
        self,
        frame: bytes,
        memory: Memory,
        limit: int,
        samples: list[int] | None = None,
    ) -> torch.Tensor:
        self._side.size.limits.require_frame(frame)
        return decode(
            frame,
            max_elements=limit,
            memory=memory,
            samples=samples,
            device=self._side.where,
        )
