"""The Flower strategy inside `SplitFed`: it samples devices and aggregates fronts."""

import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_slfac.errors import SettingError
from flwr_slfac.flower_parts import InconsistentMessageReplies, chain, said_in
from flwr_slfac.mean_probe import probe_mean
from flwr_slfac.sampled import Offered, Sampled, as_floats
from flwr_slfac.split import DeviceResult, RoundResult, ServerFronts, seed_for
from flwr_slfac.transport import as_record

logger = logging.getLogger("flwr")

Devices = Callable[[Grid, list[int]], dict[int, int]]

# What a strategy is tried with before the front is known.
_TINY = ArrayRecord({"weight": Array(np.zeros(8, np.float32))})
WRAPPED_AROUND = (
    "SplitFed trains when its own start() was called, and here another strategy is "
    "around it, which would see no reply: no clipping, no selection, noise on a model "
    "that is not the one trained; put it inside, SplitFed(Outer(FedAvg(), ...), ...)"
)
_AVERAGING = "FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi"


class WrappedStrategy:
    """A Flower strategy, with the sampling and the replies that split training needs.

    Parameters
    ----------
    inner : Strategy
        Any Flower strategy.
    devices : callable
        From a grid and node ids to the partition ids of those that answer.
    seed : int
        Seed of the run.
    seeded : bool
        Whether sampling is a function of the seed.
    """

    def __init__(
        self, inner: Strategy, devices: Devices, seed: int, *, seeded: bool
    ) -> None:
        self.inner = inner
        self._devices = devices
        self._seed = seed
        self.seeded = seeded

    @property
    def name(self) -> str:
        """Name of the strategy's class."""
        return type(self.inner).__name__

    def summary(self) -> None:
        """Log the strategy's settings, and what its privacy does not cover."""
        logger.info("\t├──> Fronts: %s", self.name)
        self.inner.summary()
        private = [type(each).__name__ for each in chain(self.inner)]
        if any(name.startswith("DifferentialPrivacy") for name in private):
            logger.warning(
                "%s protects the device-side models that are averaged; smashed data "
                "and targets cross as they are, and the back is trained on them "
                "without clipping or noise",
                self.name,
            )

    def sample(
        self,
        what: Literal["train", "evaluate"],
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> Sampled:
        """Let the strategy sample devices and say what they are to be told.

        Parameters
        ----------
        what : {"train", "evaluate"}
            What they are sampled for.
        server_round, arrays, config, grid
            As Flower hands them to a strategy.

        Raises
        ------
        SettingError
            If the strategy does not go with such a front, or sends what split training
            cannot carry.
        """
        inner, offered = self.inner, Offered(arrays)
        configure = inner.configure_train
        if what == "evaluate":
            configure = inner.configure_evaluate
        try:
            with self._sampling(server_round, what, grid) as ordered:
                messages = configure(server_round, offered.record(), config, ordered)
                return Sampled(messages, offered, server_round, self.name)
        except InconsistentMessageReplies as error:
            raise SettingError(
                f"{self.name} does not go with a front of {len(arrays)} tensors: "
                f"{error}; use a strategy for state dicts of PyTorch models "
                f"({_AVERAGING}, ...)"
            ) from error

    def train_replies(self, sampled: Sampled, result: RoundResult) -> list[Message]:
        """Return a round's fronts as replies that any strategy aggregates."""
        ordered = sorted(result.finished.items(), key=lambda item: item[1].device)
        if result.handed_on:
            ordered = ordered[-1:]
        key = said_in(self.inner, "arrayrecord_key", "arrays")
        replies = []
        for node, r in ordered:
            content = self._metrics(self._train_metrics(r, result.loss))
            # A record of the strategy's own: some empty what they are given.
            content[key] = as_floats(as_record(r.front or {}))
            replies.append(sampled.reply(node, content))
        return replies

    def _train_metrics(
        self, result: DeviceResult, mean: float
    ) -> dict[str, float | list[float]]:
        """Return a device's metrics; the loss also under the strategy's name for it.

        A device that has none is given the mean, which leaves the mean as it is.
        """
        loss = mean if math.isnan(result.loss) else result.loss
        loss_key = said_in(self.inner, "train_loss_key", "train-loss")
        return {
            **result.metrics,
            "num-examples": result.num_examples,
            "train-loss": loss,
            loss_key: loss,
        }

    def evaluate_replies(
        self, sampled: Sampled, metrics: Mapping[int, Mapping[str, float]]
    ) -> list[Message]:
        """Return devices' metrics, by node id, as replies."""
        return [
            sampled.reply(node, self._metrics(values))
            for node, values in metrics.items()
        ]

    def _metrics(self, metrics: Mapping[str, float | list[float]]) -> RecordDict:
        """Return metrics as a record, the weight named as the strategy wants it."""
        weight = said_in(self.inner, "weighted_by_key", "num-examples")
        record = MetricRecord()
        for name, value in metrics.items():
            record[weight if name == "num-examples" else name] = value
        return RecordDict({"metrics": record})

    def require_fit(
        self, fronts: ServerFronts, scheme: str, arrays: ArrayRecord | None = None
    ) -> None:
        """Refuse strategies that need every device's whole front, where they see less.

        Parameters
        ----------
        fronts : ServerFronts
            Who is given which front.
        scheme : str
            As in `flwr_slfac.split.scheme`.
        arrays : ArrayRecord, optional
            The front; without it what cannot be found out yet is let pass.

        Raises
        ------
        SettingError
            If this is one.
        """
        self._require_clipped(fronts)
        relay = scheme == "sequential" and fronts.hands_on
        if not (relay or fronts.unlike_parts or fronts.period_steps):
            return
        found = probe_mean(self.inner, _TINY if arrays is None else as_floats(arrays))
        if found.unclear and arrays is not None and not found.refused:
            raise SettingError(
                f"whether {self.name} averages fronts, which scheme='sequential', "
                "prune as a function and period='step' need, cannot be found out: "
                f"{found.unclear}; use a strategy that averages ({_AVERAGING})"
            )
        if not found.refused:
            return
        if relay:
            raise SettingError(
                f"{self.name} is given one front a round in the relay of "
                f"scheme='sequential', that of its last device, which would void it: "
                f"{found.refused}; use scheme='parallel', 'sflv1' or 'sflv2', or a "
                f"strategy that averages ({_AVERAGING})"
            )
        if fronts.period_steps:
            raise SettingError(
                f"{self.name} does more than average fronts, but within a round "
                "Lightweight(period='step') averages them without it: "
                f"{found.refused}; use a strategy that averages ({_AVERAGING}) or "
                "period='round'"
            )
        raise SettingError(
            f"{self.name} compares whole fronts, but with prune as a function "
            f"devices hold unlike parts: {found.refused}; use a strategy that averages "
            f"({_AVERAGING}) or one share for all"
        )

    def _require_clipped(self, fronts: ServerFronts) -> None:
        """Refuse clipping on devices where they do not hold all that is averaged."""
        names = [type(each).__name__ for each in chain(self.inner)]
        on_devices = [name for name in names if "ClientSide" in name]
        if fronts.in_parts and on_devices:
            raise SettingError(
                f"{on_devices[0]} has devices clip their updates, and with cuts= the "
                "server trains layers of theirs that nobody would clip; use the "
                "strategy of server-side clipping"
            )

    @contextmanager
    def _sampling(self, server_round: int, what: str, grid: Grid) -> Iterator[Grid]:
        """Give the strategy a grid and a `random` that make its sampling repeatable."""
        if not self.seeded:
            yield grid
            return
        state = random.getstate()
        # Of the server itself (-1), before its first step.
        seed = seed_for(self._seed, server_round, -1, 0, f"sample-{what}")
        try:
            yield cast(Grid, _OrderedGrid(grid, self._devices, seed))
        finally:
            random.setstate(state)


class _OrderedGrid:
    """A grid that lists its nodes by partition id; all else is the grid's own."""

    def __init__(self, grid: Grid, devices: Devices, seed: int) -> None:
        self._grid = grid
        self._devices = devices
        self._seed = seed

    def get_node_ids(self) -> list[int]:
        """Return the nodes that told their partition id, in its order."""
        devices = self._devices(self._grid, list(self._grid.get_node_ids()))
        # Now, because other threads draw from `random` while nodes are asked.
        random.seed(self._seed)
        return sorted(devices, key=lambda k: devices[k])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)
