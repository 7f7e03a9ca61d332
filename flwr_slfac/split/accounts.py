"""What crossed in a round, entered into the ledger in one place."""

import torch

from flwr_slfac.codec.wire import raw_num_bytes
from flwr_slfac.split.protocol import Begin, Piece, TrainReply, TrainRequest
from flwr_slfac.states import State
from flwr_slfac.traffic import Direction, Phase, Traffic, raw_bytes_of


class Accounts:
    """Enters what crossed in one phase of one round.

    Parameters
    ----------
    traffic : Traffic
        The ledger of the run.
    server_round : int
        The round, from 1.
    phase : {"train", "evaluate"}
        What it crossed for.
    """

    def __init__(self, traffic: Traffic, server_round: int, phase: Phase) -> None:
        self._traffic = traffic
        self._place = server_round, phase

    def frame(
        self,
        device: int,
        direction: Direction,
        frame: bytes,
        tensor: torch.Tensor,
        seconds: float = 0.0,
    ) -> None:
        """Enter a codec's frame, the whole tensor behind it, and the time it took."""
        raw_bytes = raw_num_bytes(tensor)
        self._add(device, direction, len(frame), raw_bytes, seconds)

    def device_codec(self, device: int, seconds: float) -> None:
        """Enter the time that a device spent on its codec."""
        server_round, phase = self._place
        self._traffic.add_seconds(server_round, device, phase, "up", seconds)

    def begun(self, device: int, begin: Begin) -> None:
        """Enter the bytes in a Begin: the mask, where there is one."""
        if begin.mask:
            self._add(device, "model-down", len(begin.mask))

    def finished(self, device: int, reply: TrainReply, front: State | None) -> None:
        """Enter the bytes of a reply that brings a front: the update, if so it came."""
        if reply.update is not None and front is not None:
            raw_bytes = raw_bytes_of(tensor.shape for tensor in front.values())
            self._add(device, "model-up", len(reply.update), raw_bytes)

    def mean(self, device: int, request: TrainRequest, part: State) -> None:
        """Enter the bytes of a mean on its way down, if quantized, and of a mask."""
        if request.mask:
            self._add(device, "model-down", len(request.mask))
        if request.update is not None:
            raw_bytes = raw_bytes_of(tensor.shape for tensor in part.values())
            self._add(device, "model-down", len(request.update), raw_bytes)

    def carried(self, device: int, pieces: tuple[Piece, ...]) -> None:
        """Enter what the link says it carried to a device and back."""
        for piece in pieces:
            self._add(device, piece.direction, piece.num_bytes, piece.raw_bytes)

    def _add(
        self,
        device: int,
        direction: Direction,
        num_bytes: int,
        raw_bytes: int = 0,
        seconds: float = 0.0,
    ) -> None:
        server_round, phase = self._place
        self._traffic.add(
            server_round,
            device,
            phase,
            direction,
            num_bytes=num_bytes,
            raw_bytes=raw_bytes,
            seconds=seconds,
        )
