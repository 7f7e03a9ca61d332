"""The server's door to Flower: a strategy around any strategy that averages fronts."""

import inspect
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Codec, Feedback, Waterfill, format_codec, parse_codec
from flwr_slfac.codec.wire import DEFAULT_MAX_ELEMENTS
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.setting import Lightweight
from flwr_slfac.progress import step_progress
from flwr_slfac.report import Callback, DeviceCost, RoundReport, table_head
from flwr_slfac.split import (
    Begin,
    Fronts,
    RoundResult,
    Rounds,
    Scheme,
    ServerHalf,
    accuracy,
)
from flwr_slfac.split.device import OptimizerFactory, SchedulerFactory
from flwr_slfac.split.noise import seed_for
from flwr_slfac.split.server_half import Loss, Metric
from flwr_slfac.traffic import Traffic
from flwr_slfac.transport.messages import MessageLink
from flwr_slfac.transport.records import RecordState, as_record

logger = logging.getLogger("flwr")


# Strategies that rank, clip or weigh whole states, which no mean by coordinate serves.
_NOT_BY_COORDINATE = (
    flower.Bulyan,
    flower.DifferentialPrivacyClientSideAdaptiveClipping,
    flower.DifferentialPrivacyClientSideFixedClipping,
    flower.DifferentialPrivacyServerSideAdaptiveClipping,
    flower.DifferentialPrivacyServerSideFixedClipping,
    flower.FedMedian,
    flower.FedTrimmedAvg,
    flower.Krum,
    flower.MultiKrum,
    flower.QFedAvg,
)

# Chosen by tests/bench/results/training_parity.md; gradients bear more error than
# activations do.
DEFAULT_UP = Waterfill(nrmse=0.1)
DEFAULT_DOWN = Waterfill(nrmse=0.4)


class SplitFed(Strategy):
    """Split training around a Flower strategy.

    The wrapped strategy goes on sampling devices and aggregating device-side models;
    in between, the devices' smashed data trains the back on the server, step by step.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy: FedAvg, FedAdam, FedProx (its ``proximal-mu`` reaches the
        devices), Krum, ...
    back : nn.Module
        The server-side model, ``cut(model, at=...).back``.
    loss : callable
        From (outputs, targets) to a scalar, the mean over the batch.
    optimizer : callable
        From parameters to an optimizer, for the back: ``partial(SGD, lr=0.05)``.
    scheme : {"sequential", "sflv1", "sflv2", "parallel"} (default: "parallel")
        How the back learns from many devices; see `flwr_slfac.split.scheme`.
    up, down : Codec or str (default: `DEFAULT_UP`, `DEFAULT_DOWN`)
        How activations and cut-layer gradients are coded; text is read by
        `flwr_slfac.codec.parse_codec`. The defaults are lossy; ``"identity"`` is not.
    seed : int (default: 0)
        Seed of the run: batch order, noise, sampling of devices.
    scheduler, scheduler_per, clip_norm
        As in `Device`, for the back.
    metrics : dict of str to callable, optional
        Each from (outputs, targets) to a mean over the batch, for federated
        evaluation. The default is ``{"accuracy": accuracy}``.
    autocast : torch.dtype, optional
        Run the back in mixed precision (torch.bfloat16 or torch.float16).
    device : torch.device or str (default: "cpu")
        Where the back runs.
    transport : {"auto", "messages"} (default: "auto")
        What carries the steps; "auto" takes "messages".
    step_timeout_s : float (default: 600)
        A device that does not answer a step for this long is lost for the round. In
        deployment stay above 120: Flower itself needs up to 66 s to see a dead node.
    evaluate_bytes : int (default: 8 MiB)
        Smashed test data that a device sends per message.
    seeded_sampling : bool (default: True)
        Make the wrapped strategy's sampling a function of `seed`: nodes are listed by
        partition id (each new node is asked for it once) and Python's `random` is
        seeded while it samples.
    lightweight : Lightweight, optional
        What makes training lighter on the devices: pruning, quantization, dropout at
        the cut, rarer aggregation.
    callbacks : sequence of Callback
        Told of every round, for example `flwr_slfac.report.TensorBoard`.

    Attributes
    ----------
    traffic : Traffic
        Everything that crossed.
    reports : list of RoundReport
        One a round.
    arrays : ArrayRecord or None
        The device-side model after the last completed round; zero where it is pruned.
    costs : list of DeviceCost
        Of lightweight training: what each round cost each device.

    Raises
    ------
    SettingError
        If a setting is out of range.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        back: nn.Module,
        loss: Loss,
        optimizer: OptimizerFactory,
        scheme: Scheme = "parallel",
        up: Codec | str | None = None,
        down: Codec | str | None = None,
        seed: int = 0,
        scheduler: SchedulerFactory | None = None,
        scheduler_per: Literal["round", "step"] = "round",
        clip_norm: float | None = None,
        metrics: Mapping[str, Metric] | None = None,
        autocast: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        transport: Literal["auto", "messages"] = "auto",
        step_timeout_s: float = 600.0,
        evaluate_bytes: int = 2**23,
        seeded_sampling: bool = True,
        lightweight: Lightweight | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if transport not in ("auto", "messages"):
            raise SettingError(
                f"transport {transport!r} is not known; use 'auto' or 'messages'"
            )
        if not step_timeout_s > 0:
            raise SettingError(f"step_timeout_s is {step_timeout_s}, not above 0")
        self._inner = strategy
        self._up = _as_codec(DEFAULT_UP if up is None else up)
        self._down = _as_codec(DEFAULT_DOWN if down is None else down)
        self._seed = int(seed)
        self._step_timeout_s = step_timeout_s
        self._evaluate_bytes = evaluate_bytes
        self._seeded_sampling = seeded_sampling
        self._callbacks = list(callbacks)
        self._server = ServerHalf(
            back,
            loss,
            optimizer,
            scheme=scheme,
            scheduler=scheduler,
            scheduler_per=scheduler_per,
            clip_norm=clip_norm,
            metrics={"accuracy": accuracy} if metrics is None else metrics,
            autocast=autocast,
            device=device,
        )
        self.traffic = Traffic()
        self.reports: list[RoundReport] = []
        self.arrays: ArrayRecord | None = None
        self.costs: list[DeviceCost] = []
        self._fronts: Fronts | None = None
        if lightweight is not None:
            lightweight = lightweight.fit(self._up, self._down)
            _require_averaging(strategy, lightweight)
            _require_no_feedback(self._up, self._down, lightweight)
            self._fronts = Fronts(lightweight, relay=scheme == "sequential")
        self._lightweight = lightweight
        self._rounds = Rounds(
            self._server, self._down, self.traffic, DEFAULT_MAX_ELEMENTS, self._fronts
        )
        self._aggregates = True
        # The arrays whose dormant weights `self._fronts` knows.
        self._served: ArrayRecord | None = None
        self._link: MessageLink | None = None
        self._train_replies: list[Message] = []
        self._evaluate_replies: list[Message] = []

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds, as `flwr.serverapp.strategy.Strategy.start` does.

        Parameters
        ----------
        grid : Grid
            Flower's access to the nodes.
        *args, **kwargs
            Those of Flower's `start`: ``initial_arrays``, ``num_rounds`` (default: 3),
            ``timeout``, ``train_config``, ``evaluate_config``, ``evaluate_fn``.
        """
        bound = inspect.signature(super().start).bind(grid, *args, **kwargs)
        bound.apply_defaults()
        if self._fronts is not None:
            self._fronts.last_round = bound.arguments["num_rounds"]
        return super().start(grid, *args, **kwargs)

    def back_state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the server-side model's state dict, on the CPU."""
        return self._server.snapshot()

    def write(self, folder: str | Path) -> None:
        """Write ``rounds.json``, ``traffic.csv`` and ``traffic.json`` into a folder."""
        folder = Path(folder)
        self.traffic.write(folder / "traffic")
        rounds = [asdict(report) for report in self.reports]
        (folder / "rounds.json").write_text(json.dumps(rounds, indent=1))
        if self.costs:
            costs = [asdict(cost) for cost in self.costs]
            (folder / "devices.json").write_text(json.dumps(costs, indent=1))

    def summary(self) -> None:
        """Log the settings, then the wrapped strategy's."""
        logger.info("\t├──> Split learning (flwr-slfac %s):", RELEASE)
        logger.info("\t│\t├── Scheme: %s", self._server.scheme)
        logger.info("\t│\t├── Codec up: %s", format_codec(self._up))
        logger.info("\t│\t├── Codec down: %s", format_codec(self._down))
        if self._lightweight is not None:
            logger.info("\t│\t├── %s", self._lightweight)
        logger.info("\t│\t└── Seed: %d", self._seed)
        logger.info("\t├──> Fronts: %s", type(self._inner).__name__)
        self._inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy sample, train a round, and leave no message to send.

        Raises
        ------
        AllDevicesLostError
            If no device finishes; back and fronts are those of the round before.
        DeviceError
            If a device refuses: its settings or data cannot be trained with.
        DivergedError
            If a loss is NaN or infinite.
        """
        self._train_replies = []
        served = arrays
        if self._fronts is not None:
            if arrays is not self._served:
                self._fronts.replace(arrays.to_torch_state_dict())
                self._served = arrays
            # The wrapped strategy goes on from the weights that masks left out, too.
            arrays = as_record(self._fronts.full)
        with self._sampling(server_round, "train", grid) as sampling_grid:
            wanted = list(
                self._inner.configure_train(server_round, arrays, config, sampling_grid)
            )
        if not wanted:
            return []
        link = self._link_to(grid, server_round)
        begin = self._begin(server_round, wanted[0].content)
        before = self.back_state()
        try:
            with step_progress(f"round {server_round}") as progress:
                result = self._rounds.train(link, _nodes(wanted), begin, progress)
        except Exception:
            self._server.back.load_state_dict(before)
            self.arrays = served
            raise
        self._aggregates = result.aggregates
        if result.aggregates:
            self._train_replies = self._replies_for_inner(result, wanted)
        self.costs += [
            DeviceCost.of(server_round, device, cost, self.traffic)
            for device, cost in sorted(result.costs.items())
        ]
        report = RoundReport(
            server_round,
            num_devices=len(result.finished),
            lost=result.lost,
            loss=result.loss,
            train_s=result.wall_s,
            compute_s=result.compute_s,
            num_steps=result.num_steps,
        )
        report.count(self.traffic)
        self.reports.append(report)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the wrapped strategy aggregate the fronts; add what crossed."""
        arrays: ArrayRecord | None = None
        metrics: MetricRecord | None = None
        if self._aggregates:
            arrays, metrics = self._inner.aggregate_train(
                server_round, self._train_replies
            )
        elif self.reports:
            metrics = MetricRecord({"train-loss": self.reports[-1].loss})
        if arrays is not None:
            if self._fronts is not None:
                arrays = as_record(self._fronts.advance(arrays.to_torch_state_dict()))
                self._served = arrays
            else:
                replied = self._train_replies[0].content.array_records
                arrays = _with_integer_buffers(arrays, next(iter(replied.values())))
            self.arrays = arrays
        if metrics is not None and self.reports:
            report = self.reports[-1]
            for direction, num_bytes in report.num_bytes.items():
                metrics[f"bytes-{direction}"] = num_bytes
            metrics["compression-ratio"] = report.compression_ratio
            metrics["num-lost"] = len(report.lost)
            metrics["train-seconds"] = report.train_s
        self._train_replies = []
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy sample, and evaluate through the split."""
        self._evaluate_replies = []
        with self._sampling(server_round, "evaluate", grid) as sampling_grid:
            wanted = list(
                self._inner.configure_evaluate(
                    server_round, arrays, config, sampling_grid
                )
            )
        if not wanted:
            return []
        link = self._link_to(grid, server_round)
        begin = self._begin(server_round, wanted[0].content)
        metrics = self._rounds.evaluate(
            link, _nodes(wanted), begin, self._evaluate_bytes
        )
        instructions = {m.metadata.dst_node_id: m for m in wanted}
        self._evaluate_replies = [
            _reply(instructions[key], None, self._weighted(values), self._inner)
            for key, values in metrics.items()
        ]
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the wrapped strategy aggregate the metrics; report the round."""
        metrics = self._inner.aggregate_evaluate(server_round, self._evaluate_replies)
        self._evaluate_replies = []
        report = self.reports[-1] if self.reports else None
        if report is not None and report.server_round == server_round:
            report.count(self.traffic)
            if metrics is not None:
                report.evaluation = {
                    k: float(v) for k, v in metrics.items() if not isinstance(v, list)
                }
            if len(self.reports) == 1:
                logger.info("%s", table_head())
            logger.info("%s", report.line())
            for callback in self._callbacks:
                callback.on_round(report)
        return metrics

    def _begin(self, server_round: int, content: RecordDict) -> Begin:
        """Return what devices are told, from a message of the wrapped strategy."""
        arrays = next(iter(content.array_records.values()))
        config = next(iter(content.config_records.values()), ConfigRecord())
        return Begin(
            server_round=server_round,
            seed=self._seed,
            front=RecordState(arrays),
            up=format_codec(self._up),
            release=RELEASE,
            min_batch=self._server.min_batch,
            proximal_mu=float(cast(float, config.get("proximal-mu", 0.0))),
        )

    def _replies_for_inner(
        self, result: RoundResult, wanted: list[Message]
    ) -> list[Message]:
        """Return the devices' results as replies that any strategy aggregates."""
        instructions = {m.metadata.dst_node_id: m for m in wanted}
        ordered = sorted(result.finished.items(), key=lambda item: item[1].device)
        if result.handed_on:
            ordered = ordered[-1:]
        return [
            _reply(
                instructions[key],
                as_record(r.front or {}),
                self._weighted({"num-examples": r.num_examples, "train-loss": r.loss}),
                self._inner,
            )
            for key, r in ordered
        ]

    def _weighted(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Name the weight as the wrapped strategy wants it."""
        key = getattr(self._inner, "weighted_by_key", "num-examples")
        return {key if k == "num-examples" else k: v for k, v in metrics.items()}

    def _link_to(self, grid: Grid, server_round: int) -> MessageLink:
        if self._link is None:
            self._link = MessageLink(grid, self._step_timeout_s, self.traffic)
        self._link.server_round = server_round
        return self._link

    @contextmanager
    def _sampling(self, server_round: int, what: str, grid: Grid) -> Iterator[Grid]:
        """Give the wrapped strategy a grid and a `random` that make it repeatable."""
        if not self._seeded_sampling:
            yield grid
            return
        link = self._link_to(grid, server_round)
        state = random.getstate()
        seed = seed_for(self._seed, server_round, -1, 0, f"sample-{what}")
        try:
            yield cast(Grid, _OrderedGrid(grid, link.devices, seed))
        finally:
            random.setstate(state)


class _OrderedGrid:
    """A grid that lists its nodes by partition id; all else is the grid's own."""

    def __init__(
        self, grid: Grid, devices: Callable[[list[int]], dict[int, int]], seed: int
    ) -> None:
        self._grid = grid
        self._devices = devices
        self._seed = seed

    def get_node_ids(self) -> list[int]:
        """Return the nodes that told their partition id, in its order."""
        devices = self._devices(list(self._grid.get_node_ids()))
        # Now, because other threads draw from `random` while nodes are asked.
        random.seed(self._seed)
        return sorted(devices, key=lambda k: devices[k])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


def _reply(
    instruction: Message,
    arrays: ArrayRecord | None,
    metrics: Mapping[str, float],
    inner: Strategy,
) -> Message:
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    if arrays is not None:
        content[getattr(inner, "arrayrecord_key", "arrays")] = arrays
    return Message(content, reply_to=instruction)


def _nodes(messages: Iterable[Message]) -> list[int]:
    return [m.metadata.dst_node_id for m in messages]


def _as_codec(codec: Codec | str) -> Codec:
    return parse_codec(codec) if isinstance(codec, str) else codec


def _require_averaging(strategy: Strategy, lightweight: Lightweight) -> None:
    """Refuse strategies that compare whole states where devices hold unlike parts."""
    if lightweight.unlike_shares and isinstance(strategy, _NOT_BY_COORDINATE):
        raise SettingError(
            f"{type(strategy).__name__} compares whole fronts, but with prune as a "
            "function devices hold unlike parts; use a strategy that averages (FedAvg, "
            "FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi) or one share for all"
        )


def _require_no_feedback(up: Codec, down: Codec, lightweight: Lightweight) -> None:
    """Refuse residuals kept by place where the places change from step to step."""
    if lightweight.activation_dropout and any(
        isinstance(codec, Feedback) for codec in (up, down)
    ):
        raise SettingError(
            "error feedback keeps what was lost place by place, and dropout at the cut "
            "sends other places at each step; use one of them"
        )


def _with_integer_buffers(arrays: ArrayRecord, like: ArrayRecord) -> ArrayRecord:
    """Round integer buffers that averaging turned into floats."""
    fixed = {}
    for name, array in arrays.items():
        wanted = np.dtype(like[name].dtype)
        if np.issubdtype(wanted, np.integer) and array.dtype != like[name].dtype:
            array = Array(np.asarray(np.rint(array.numpy()), dtype=wanted))
        fixed[name] = array
    return ArrayRecord(fixed)
