"""What crossed for one request and its reply: models apart, the rest as control."""

from collections.abc import Iterable

from flwr_slfac.split import Piece
from flwr_slfac.traffic import Direction, raw_bytes_of
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream.blobs import BlobReader
from flwr_slfac.transport.stream.requests import model_of
from flwr_slfac.transport.stream.wire import Packed


def carried(request: Packed, reply: Packed, num_bytes: int) -> tuple[Piece, ...]:
    """Return the models of both messages, and what is neither model nor frame.

    Parameters
    ----------
    request, reply : Packed
        What crossed; its frames, masks and updates are entered by who reads them.
    num_bytes : int
        Of all envelopes in both directions, those that were sent twice included.
    """
    down, up = model_of(request.head), reply.head.train.front
    pieces = []
    if down is not None:
        pieces.append(_model("model-down", down, request))
    if reply.head.train.HasField("front"):
        pieces.append(_model("model-up", up, reply))
    entered = sum(piece.num_bytes for piece in pieces)
    entered += _size(_frames_down(request.head), request)
    entered += _size(_frames_up(reply.head), reply)
    return (*pieces, Piece("control", num_bytes - entered))


def _model(direction: Direction, state: pb.State, message: Packed) -> Piece:
    raw_bytes = raw_bytes_of(tensor.shape for tensor in state.tensors)
    values = _size((tensor.blob for tensor in state.tensors), message)
    num_bytes = state.ByteSize() + values
    return Piece(direction, num_bytes, raw_bytes)


def _frames_down(head: pb.Request) -> list[int]:
    masks = head.train.begin.mask_blob, head.evaluate.begin.mask_blob
    train = head.train
    return [train.gradient_blob, train.update_blob, train.mask_blob, *masks]


def _frames_up(head: pb.Reply) -> list[int]:
    batches = [*head.evaluate.batches, head.train.smashed]
    frames = [ref for b in batches for ref in (b.activations_blob, b.targets_blob)]
    return [*frames, head.train.update_blob]


def _size(references: Iterable[int], message: Packed) -> int:
    """Return the bytes of blobs."""
    reader = BlobReader(message.blobs)
    return sum(len(reader.get(reference) or b"") for reference in references)
