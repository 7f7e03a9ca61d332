"""Whether a strategy aggregates by the weighted mean alone, found by trying it."""

import copy
import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_slfac.errors import TrainingError
from flwr_slfac.flower_parts import CLIPPING_NORM, chain, said_in

_TWO_RESULTS = "of two sets of fronts with one weighted mean it makes two results"
# Krum and Bulyan want so many replies where two devices are malicious.
_NUM_NODES = 11
# Whole fronts, all in memory at once.
_MOST_REPLIES = 32
# Flower's strategies sleep for a second between two looks at too few nodes.
_WAIT_S = 0.5
_MOST_NODES = 100_000
# Distinct fronts among the replies: enough for a median to differ from the mean.
_NUM_VARIANTS = 4
# Of what replies differ by: above the rounding of float16, below any real difference.
_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Parameters
    ----------
    refused : str
        Why the strategy is no function of the weighted mean; empty if it is.
    unclear : str
        Why that could not be found out; empty if it could.
    """

    refused: str = ""
    unclear: str = ""


class _ProbeGrid:
    """A grid with nodes that nobody can send to; there are more for who waits."""

    def __init__(self) -> None:
        self._num_nodes = _NUM_NODES
        self._last_look = time.monotonic()

    def get_node_ids(self) -> list[int]:
        """Return node ids, four times as many to a strategy that slept in between."""
        now = time.monotonic()
        if now - self._last_look > _WAIT_S:
            if self._num_nodes >= _MOST_NODES:
                raise TrainingError(f"it waits for more than {self._num_nodes} nodes")
            self._num_nodes *= 4
        self._last_look = now
        return list(range(1, self._num_nodes + 1))


def probe_mean(strategy: Strategy, arrays: ArrayRecord) -> Finding:
    """Try, on a copy, whether a strategy aggregates by the weighted mean alone.

    It is given two sets of replies with one weighted mean: in the first all fronts are
    that mean, in the second none is. If what it returns differs, by the fronts or by
    noise, it is no function of the mean.

    Parameters
    ----------
    strategy : Strategy
        Not changed, nor are the generators of random numbers.
    arrays : ArrayRecord
        A front.

    Returns
    -------
    Finding
        What was found.
    """
    with _unnoticed():
        try:
            tried = copy.deepcopy(strategy)
        except Exception as error:
            return Finding(unclear=f"it cannot be copied ({_told(error)})")
        try:
            messages = list(
                tried.configure_train(
                    1, arrays.copy(), ConfigRecord(), cast(Grid, _ProbeGrid())
                )
            )
        except Exception as error:
            messages, unclear = [], _told(error)
        else:
            unclear = ""
        for message in messages:
            if any(CLIPPING_NORM in c for c in message.content.config_records.values()):
                return Finding("it has devices clip what each of them changed")
        if any(hasattr(each, "noise_multiplier") for each in chain(strategy)):
            # Noise may be too small to be seen in one trial.
            return Finding(_TWO_RESULTS)
        # One reply is its own mean, which would tell nothing.
        num_replies = min(len(messages), _MOST_REPLIES)
        if num_replies < 2:
            num_replies = _NUM_NODES
        replies = _replies(strategy, arrays, num_replies)
        try:
            of_equal, of_unlike = (
                copy.deepcopy(tried).aggregate_train(1, each)[0] for each in replies
            )
        except Exception as error:
            return Finding(unclear=unclear or _told(error))
        if of_equal is None or of_unlike is None:
            return Finding(
                unclear=f"it makes nothing of the replies of {num_replies} devices"
            )
        if not _close(of_equal, of_unlike):
            return Finding(_TWO_RESULTS)
        return Finding(unclear=unclear)


def _replies(
    strategy: Strategy, arrays: ArrayRecord, num_replies: int
) -> tuple[list[Message], list[Message]]:
    """Return two sets of replies with one weighted mean: equal fronts, unlike ones."""
    rng = np.random.default_rng(0)
    weights = [1.0 + (7 * i) % 5 for i in range(num_replies)]
    num_variants = min(_NUM_VARIANTS, num_replies)
    totals = [sum(weights[i::num_variants]) for i in range(num_variants)]
    variants: list[dict[str, Array]] = [{} for _ in totals]
    mean: dict[str, Array] = {}
    for name, array in arrays.items():
        value = array.numpy()
        if not np.issubdtype(value.dtype, np.floating):
            for each in (mean, *variants):
                each[name] = array
            continue
        center = (value + 1).astype(value.dtype)
        moves = [rng.standard_normal(value.shape) for _ in totals]
        middle = sum(t * m for t, m in zip(totals, moves, strict=True)) / sum(totals)
        mean[name] = Array(np.asarray(center))
        for each, move in zip(variants, moves, strict=True):
            moved = center + (move - middle)
            each[name] = Array(np.asarray(moved.astype(value.dtype)))
    equal = [mean] * num_replies
    unlike = [variants[i % num_variants] for i in range(num_replies)]
    return (
        _as_replies(strategy, equal, weights),
        _as_replies(strategy, unlike, weights),
    )


def _as_replies(
    strategy: Strategy, fronts: Sequence[dict[str, Array]], weights: Sequence[float]
) -> list[Message]:
    key = said_in(strategy, "arrayrecord_key", "arrays")
    replies = []
    for node, (front, weight) in enumerate(zip(fronts, weights, strict=True), 1):
        metrics = MetricRecord(
            {
                "train-loss": float(node),
                said_in(strategy, "train_loss_key", "train-loss"): float(node),
                said_in(strategy, "weighted_by_key", "num-examples"): weight,
            }
        )
        content = RecordDict({key: ArrayRecord(front), "metrics": metrics})
        about = Metadata(1, "", node, 0, "", "", 0.0, 60.0, "train")
        replies.append(Message(content, metadata=about))  # type: ignore[call-overload]
    return replies


def _close(one: ArrayRecord, other: ArrayRecord) -> bool:
    """Say whether two results are one but for rounding."""
    return one.keys() == other.keys() and all(
        np.allclose(
            array.numpy().astype(np.float64),
            other[name].numpy().astype(np.float64),
            rtol=_TOLERANCE,
            atol=_TOLERANCE,
        )
        for name, array in one.items()
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def _unnoticed() -> Iterator[None]:
    """Keep a trial out of the log and of everybody's random numbers."""
    logger = logging.getLogger("flwr")
    states = random.getstate(), np.random.get_state()
    disabled, logger.disabled = logger.disabled, True
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logger.disabled = disabled
        random.setstate(states[0])
        np.random.set_state(states[1])
