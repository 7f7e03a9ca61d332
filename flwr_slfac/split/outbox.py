"""Gradients on their way to devices: each is sent as soon as it is coded."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor

from flwr_slfac.errors import DivergedError
from flwr_slfac.split.codec_pool import CodecPool
from flwr_slfac.split.protocol import TrainRequest
from flwr_slfac.split.stream import Stream


def coded_gradients(
    pool: CodecPool,
    step: int,
    gradients: Sequence[tuple[Stream, Tensor]],
    drop: Callable[[int, Exception], None],
) -> Iterator[tuple[int, TrainRequest]]:
    """Code gradients; give each device's next request as soon as its frame is there.

    Parameters
    ----------
    pool : CodecPool
        Where they are coded.
    step : int
        The step of the round that they are of, from 0.
    gradients : sequence of (Stream, Tensor)
        Full gradients, in the order of devices. What follows the last request is in
        this order too: the bytes are entered, and devices dropped.
    drop : callable
        Told of each device whose gradient cannot be coded, and its error.
    """
    works = {}
    for stream, gradient in gradients:
        part = stream.end.part_of(gradient)
        works[stream.key] = (
            partial(stream.end.encode, part, step),
            part.gradient.numel(),
        )
    coded = {}
    for key, future in pool.as_done(works):
        coded[key] = future
        if future.exception() is None:
            made = future.result()
            yield key, TrainRequest(step + 1, None, made.frame, made.memory_order)
    for stream, gradient in gradients:
        try:
            stream.end.sent(coded[stream.key].result(), gradient)
        except DivergedError as error:
            drop(stream.device, error)
