"""Samples that no byte names: which ones a batch holds follows from the seed.

::

    server                                       device
    "orders are shuffled like this here" =Begin=> the same as its own?
    derives the batches of each step <==first batch: its order's rule==  yes
    samples named in each frame <==============================  no, or no such order

How a machine shuffles is told by a mark, as another release of torch may do it another
way; and a frame counts on its samples, so that one of others is refused.
"""

import hashlib
from functools import cache

from flwr_slfac.codec import Codec, Temporal
from flwr_slfac.errors import DecodeError
from flwr_slfac.split.batches import BatchOrder, OrderRule
from flwr_slfac.split.features import Recall
from flwr_slfac.split.place import Place
from flwr_slfac.split.protocol import Begin

# Our choice: more examples than a batch of any order below holds.
_NUM_MARKED = 4099


@cache
def order_mark() -> str:
    """Return a text that tells apart how orders are shuffled on this machine."""
    order = BatchOrder(_NUM_MARKED, _NUM_MARKED).indices(0)
    data = order.numpy().astype("<i8").tobytes()
    return hashlib.blake2b(data, digest_size=4).hexdigest()


def known_order(begin: Begin, order: BatchOrder) -> tuple[int, ...]:
    """Return what a device tells of its order; empty if frames name their samples.

    Parameters
    ----------
    begin : Begin
        What the device is told.
    order : BatchOrder
        Its own; of one that is not exactly this class no rule is known.
    """
    marks = [f.order for f in begin.cut_features if isinstance(f, Recall)]
    # The last one is the server's own, see `RecalledSamples.begin`.
    if type(order) is not BatchOrder or (marks or [""])[-1] != order_mark():
        return ()
    is_held = order.rule.num_examples <= _most_samples(begin.up)
    return order.rule.numbers if is_held else ()


class KnownSamples:
    """Which samples a device's batches hold in a round, as the server derives them.

    Parameters
    ----------
    place : Place
        The device in the round.
    up : Codec
        Of the activations.
    """

    def __init__(self, place: Place, up: Codec) -> None:
        self._place, self._most = place, _most_samples(up)
        self._order: BatchOrder | None = None

    def tell(self, numbers: tuple[int, ...]) -> None:
        """Take what `known_order` returned on the device.

        Raises
        ------
        DecodeError
            If it is no order, or of more samples than are remembered.
        """
        try:
            rule = OrderRule.of_numbers(numbers)
        except ValueError as error:
            raise DecodeError(str(error)) from error
        if rule.num_examples > self._most:
            raise DecodeError(
                f"the order is of {rule.num_examples} examples; at most {self._most} "
                "are remembered, so let frames name them"
            )
        self._order = rule.at(self._place)

    def at(self, step: int, num_examples: int) -> list[int] | None:
        """Return those of a step's batch, None if they are not known.

        Raises
        ------
        DecodeError
            If the batch is not of so many examples.
        """
        if self._order is None:
            return None
        indices = self._order.indices(step)
        if len(indices) != num_examples:
            raise DecodeError(
                f"{num_examples} examples at step {step}, where the order of batches "
                f"has {len(indices)}"
            )
        found: list[int] = indices.tolist()
        return found


def _most_samples(up: Codec) -> int:
    return up.most_samples if isinstance(up, Temporal) else 0
