"""The device's end of its stream: features, encoder of activations, decoder."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from flwr_slfac.codec import (
    Codec,
    Identity,
    Integers,
    Memory,
    SampleMemory,
    decode,
    encode,
    restart,
)
from flwr_slfac.errors import TrainingError
from flwr_slfac.lightweight.pruning import CutMask
from flwr_slfac.memory_order import in_memory_order, memory_order
from flwr_slfac.split.features import CutFeature, Usual, passages
from flwr_slfac.split.lasting import recalled, remembered
from flwr_slfac.split.place import Place
from flwr_slfac.split.protocol import Smashed


class DeviceEnd:
    """The device's end for one round.

    Parameters
    ----------
    codec : Codec
        Of the activations.
    features : sequence of CutFeature
        In the order of sending.
    place : Place
        The device in the round.
    memory : dict of str to Tensor
        What the encoder remembers of earlier rounds.
    order : tuple of int
        What the server derives the samples of batches from, sent with the first of
        them; empty if frames name them.
    sample_folder : str or Path, optional
        As of `Device`.

    Attributes
    ----------
    seconds : float
        Time spent on the codec since it was last set to 0.
    """

    def __init__(
        self,
        codec: Codec,
        features: Sequence[CutFeature],
        place: Place,
        memory: Memory,
        order: tuple[int, ...] = (),
        sample_folder: str | Path | None = None,
    ) -> None:
        self._codec, self._features, self._place = codec, features, place
        self._order, self._folder = order, sample_folder
        # Of the encoder now and before the last forward, and of the decoder.
        told = [f.choice for f in features if isinstance(f, Usual)]
        self._up: Memory = codec.begun(restart(memory), (told or [""])[-1])
        self._up_before: Memory = {}
        self._down: Memory = {}
        self.seconds = 0.0

    def mark(self) -> None:
        """Note the moment that `rewind` goes back to: before the forward of a step."""
        self._up_before = dict(self._up)

    def rewind(self) -> None:
        """Forget what was sent since `mark`, to send it again."""
        self._up = dict(self._up_before)

    def apply(self, activations: torch.Tensor, step: int) -> torch.Tensor:
        """Return what is sent of the front's activations; differentiable."""
        sent, moment = activations, self._place.at(step)
        for way in passages(self._features, tuple(sent.shape), moment):
            sent = way.send(sent)
        return sent

    def send(
        self,
        sent: torch.Tensor,
        targets: torch.Tensor,
        step: int,
        activations: torch.Tensor,
        samples: torch.Tensor,
    ) -> Smashed:
        """Code a training batch.

        Parameters
        ----------
        sent : Tensor
            What `apply` returned.
        targets : Tensor
            As many, first dimension.
        step : int
            The step of the round, from 0.
        activations : Tensor
            What `apply` was given.
        samples : Tensor of int64
            Which of the device's examples they are.
        """
        how = "up", self._up, samples
        smashed = self._encode(sent, targets, step, activations, *how)
        start = time.perf_counter()
        SampleMemory(self._up).move_to(self._folder)
        self.seconds += time.perf_counter() - start
        return smashed

    def send_test(
        self, activations: torch.Tensor, targets: torch.Tensor, index: int
    ) -> Smashed:
        """Apply features to a test batch and code it on its own, without a memory."""
        sent = self.apply(activations, index)
        return self._encode(sent, targets, index, activations, "test-up", None, None)

    def _encode(
        self,
        sent: torch.Tensor,
        targets: torch.Tensor,
        step: int,
        activations: torch.Tensor,
        role: str,
        memory: Memory | None,
        samples: torch.Tensor | None,
    ) -> Smashed:
        start = time.perf_counter()
        smashed = Smashed(
            activations=encode(
                sent,
                self._codec,
                role="activation",
                seed=self._place.at(step).seed_of(role),
                memory=memory,
                samples=None if samples is None else samples.tolist(),
                samples_known=bool(self._order),
            ),
            targets=encode_targets(targets),
            num_examples=len(targets),
            shape=() if sent.shape == activations.shape else tuple(activations.shape),
            memory_order=memory_order(activations),
            order=() if samples is None or step else self._order,
        )
        self.seconds += time.perf_counter() - start
        return smashed

    def receive(
        self, frame: bytes, order: Sequence[int], like: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Decode the gradient of what was sent, in the shape and dtype of `like`.

        Parameters
        ----------
        frame : bytes
            From `ServerEnd.send`.
        order : sequence of int
            Its `memory_order`.
        like : Tensor
            What was sent.
        step : int
            The step of the round, from 0.

        Raises
        ------
        DecodeError
            If the bytes are not a frame, or the order is none.
        TrainingError
            If the gradient is not of the shape of what was sent.
        """
        start = time.perf_counter()
        gradient = decode(
            frame, max_elements=like.numel(), memory=self._down, device=like.device
        )
        self.seconds += time.perf_counter() - start
        if gradient.shape != like.shape:
            raise TrainingError(
                f"device {self._place.device}, step {step}: the gradient has shape "
                f"{tuple(gradient.shape)}, the activations {tuple(like.shape)}"
            )
        return in_memory_order(gradient.to(like.dtype), order)

    def renew(self, before: CutMask, now: CutMask) -> None:
        """Go on under another mask, as from one round to the next.

        Parameters
        ----------
        before, now : CutMask
            Which channels the device computed, and computes.
        """
        self._up = restart(recalled(remembered(self.lasting, before), now))
        self._down = {}

    @property
    def lasting(self) -> Memory:
        """What outlives the round."""
        return restart(self._up)

    def state(self) -> tuple[Memory, Memory, Memory]:
        """Return what `load` restores."""
        return self._up, self._up_before, self._down

    def load(self, state: tuple[Memory, Memory, Memory]) -> None:
        """Go on from a state."""
        self._up, self._up_before, self._down = state


def encode_targets(targets: torch.Tensor) -> bytes:
    """Code targets without loss, integers in the narrowest width that holds them."""
    return encode(targets, Identity() if targets.is_floating_point() else Integers())
