"""The server's door to Flower: a strategy around any strategy that averages fronts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from flwr_slfac.checkpoint import Saving
from flwr_slfac.codec import Codec
from flwr_slfac.default_codecs import codecs_of
from flwr_slfac.errors import SettingError
from flwr_slfac.flower_loop import run_rounds
from flwr_slfac.flower_rounds import FlowerRounds
from flwr_slfac.history import History
from flwr_slfac.lightweight import Lightweight
from flwr_slfac.links import Transport
from flwr_slfac.report import Callback
from flwr_slfac.run_state import RunState
from flwr_slfac.split import (
    CutFeature,
    DeviceCodecs,
    DeviceCuts,
    Limits,
    Loss,
    Metric,
    OnDeviceError,
    OptimizerFactory,
    SchedulerFactory,
    Scheme,
    ServerHalf,
    accuracy,
    fronts_for,
)
from flwr_slfac.transport import RecordState, as_record
from flwr_slfac.wrapped import WRAPPED_AROUND, WrappedStrategy


class SplitFed(Strategy):
    """Split training around a Flower strategy.

    The wrapped strategy goes on sampling devices and aggregating device-side models;
    in between, the devices' smashed data trains the back on the server, step by step.

    Parameters
    ----------
    strategy : Strategy
        Any Flower strategy; what works with which scheme: ``STRATEGIES.md``.
    back : nn.Module
        The server-side model, ``cut(model, at=...).back``.
    loss : callable
        From (outputs, targets) to a scalar, the mean over the batch.
    optimizer : callable
        From parameters to an optimizer, for the back: ``partial(SGD, lr=0.05)``.
    scheme : {"sequential", "sflv1", "sflv2", "parallel"} (default: "parallel")
        How the back learns from many devices; see `flwr_slfac.split.scheme`.
    scheduler, scheduler_per, clip_norm
        As in `Device`, for the back.
    metrics : dict of str to callable, optional
        Each from (outputs, targets) to a mean; by default ``accuracy``.
    autocast, device
        Mixed precision of the back (torch.bfloat16, torch.float16), and where it runs.
    up, down : Codec or str (default: waterfill, ``noise`` 0.02 and 0.1)
        How activations and cut-layer gradients are coded; text is read by
        `flwr_slfac.codec.parse_codec`. The defaults are lossy; ``"identity"`` is not.
    lightweight, cuts, codecs : Lightweight, DeviceCuts and DeviceCodecs, optional
        What makes training lighter on devices; cuts and codecs of devices' own.
    cut_features : sequence of CutFeature
        What else is done to the smashed data, in the order of sending.
    transport : {"auto", "messages", "stream"} or StreamTransport (default: "auto")
        What carries the steps; "auto" streams in deployment, not in simulation.
    pipeline_depth : {0, 1} (default: 0)
        1 lets devices run the next forward while a gradient travels: an update behind.
    step_timeout_s : float (default: 600)
        A device that does not answer a step for this long is lost for the round. Above
        120 in deployment: Flower needs up to 66 s to see that a node is dead.
    on_device_error : {"drop", "raise"} (default: "drop")
        Whether a device that refuses, or answers wrongly, is lost or ends the run.
    limits : Limits, optional
        What is taken from one device.
    evaluate_bytes : int (default: 8 MiB)
        Smashed test data that a device sends per message: a few batches.
    codec_threads : int, optional
        Threads that code devices' frames, 1 for none; by default one a core, 8 at most.
    seed, seeded_sampling : int (default: 0) and bool (default: True)
        Seed of batch order, noise and, if so wanted, sampling: by partition id.
    callbacks : sequence of Callback
        Told of every round, for example `flwr_slfac.report.TensorBoard`.
    checkpoint, checkpoint_every, keep, resume
        As `folder` (None), `every` (1), `keep` (3) and `resume` (False) of
        `flwr_slfac.checkpoint.Saving`: where and when the run is saved, and resumed.

    Attributes
    ----------
    traffic, reports, costs
        All that crossed, as `Traffic`; a `RoundReport` of each round; `DeviceCost`s,
        what each round of lightweight training cost each device.
    status : RunStatus
        How the run stands: ``status.now()``, from any thread.
    arrays : ArrayRecord or None
        The device-side model after the last completed round; zero where it is pruned.

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
        scheduler: SchedulerFactory | None = None,
        scheduler_per: Literal["round", "step"] = "round",
        clip_norm: float | None = None,
        metrics: Mapping[str, Metric] | None = None,
        autocast: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        up: Codec | str | None = None,
        down: Codec | str | None = None,
        lightweight: Lightweight | None = None,
        cuts: DeviceCuts | None = None,
        codecs: DeviceCodecs | None = None,
        cut_features: Sequence[CutFeature] = (),
        transport: Transport = "auto",
        pipeline_depth: int = 0,
        step_timeout_s: float = 600.0,
        on_device_error: OnDeviceError = "drop",
        limits: Limits | None = None,
        evaluate_bytes: int = 2**23,
        codec_threads: int | None = None,
        seed: int = 0,
        seeded_sampling: bool = True,
        callbacks: Sequence[Callback] = (),
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 1,
        keep: int = 3,
        resume: bool = False,
    ) -> None:
        self.saving = Saving(checkpoint, checkpoint_every, keep, resume=resume)
        self._seed = int(seed)
        coding = codecs_of(up, down)
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
        self._history = History(callbacks)
        self.traffic, self.reports = self._history.traffic, self._history.reports
        self.costs, self.status = self._history.costs, self._history.status
        self.arrays: ArrayRecord | None = None
        self._fronts = fronts_for(lightweight, self._server, *coding, cuts=cuts)
        self._rounds = FlowerRounds(
            self._server,
            *coding,
            self._fronts,
            cut_features,
            self._history,
            transport=transport,
            pipeline_depth=pipeline_depth,
            limits=limits or Limits(),
            on_device_error=on_device_error,
            seed=self._seed,
            step_timeout_s=step_timeout_s,
            evaluate_bytes=evaluate_bytes,
            codec_threads=codec_threads,
            codecs=codecs,
        )
        self._wrapped = WrappedStrategy(
            strategy, self._rounds.devices, self._seed, seeded=seeded_sampling
        )
        self._wrapped.require_fit(self._fronts, scheme)
        self._started, self._aggregates = False, True
        self._train_replies = self._evaluate_replies = list[Message]()

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds, as `flwr.serverapp.strategy.Strategy.start` does.

        Parameters
        ----------
        grid : Grid
            Flower's access to the nodes.
        *args, **kwargs
            Those of Flower's `start`: ``initial_arrays``, ``num_rounds`` (default: 3),
            ``timeout``, ``train_config``, ``evaluate_config``, ``evaluate_fn``. Who is
            not done with a round's training, or evaluation, within `timeout` seconds
            is lost; without one only ``step_timeout_s`` holds.

        Raises
        ------
        SettingError
            If the timeout is not above 0, or strategy and scheme do not go together, or
            the checkpoint folder holds another run.
        """
        arguments = self._rounds.arguments(grid, *args, **kwargs)
        arrays = arguments["initial_arrays"]
        self._wrapped.require_fit(self._fronts, self._server.scheme, arrays)
        run = RunState(self._rounds, self._history, self._wrapped, arguments)
        with self._rounds.running(), self.saving.session(run) as session:
            self._started, self.arrays = True, run.progress.result.arrays or None
            return run_rounds(self, arguments, self._history, run, session)

    def back_state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the server-side model's state dict, on the CPU."""
        return self._server.snapshot()

    def write(self, folder: str | Path) -> None:
        """Write ``rounds.json``, ``traffic.csv`` and ``traffic.json`` into a folder."""
        self._history.write(Path(folder))

    def summary(self) -> None:
        """Log the settings, then the wrapped strategy's."""
        self._rounds.log_summary()
        self._wrapped.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy sample, train a round, and leave no message to send.

        Raises
        ------
        AllDevicesLostError
            If no device finishes; back and fronts are those of the round before.
        DeviceError, DivergedError
            If a device refuses, or a loss is NaN, and that is to end the run.
        SettingError
            If another strategy is around this one.
        """
        if not self._started:
            raise SettingError(WRAPPED_AROUND)
        self._train_replies = []
        whole = as_record(self._fronts.take(RecordState(arrays)))
        sampled = self._wrapped.sample("train", server_round, whole, config, grid)
        if not sampled.nodes:
            return []
        try:
            result = self._rounds.train(grid, server_round, sampled)
        except Exception:
            self.arrays = arrays
            raise
        self._aggregates = result.aggregates
        if result.aggregates:
            self._train_replies = self._wrapped.train_replies(sampled, result)
        self._history.trained(server_round, result)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the wrapped strategy aggregate the fronts; add what crossed."""
        arrays, metrics, inner = None, None, self._wrapped.inner
        if self._aggregates:
            arrays, metrics = inner.aggregate_train(server_round, self._train_replies)
        elif self.reports:
            metrics = MetricRecord({"train-loss": self.reports[-1].loss})
        if arrays is not None:
            arrays = as_record(self._fronts.advance(RecordState(arrays)))
            self.arrays = arrays
        elif self._train_replies:
            self._rounds.undo(f"{self._wrapped.name} aggregated no front")
        if metrics is not None:
            metrics.update(self._history.train_metrics())
        self._train_replies = []
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy sample, and evaluate through the split."""
        sampled = self._wrapped.sample("evaluate", server_round, arrays, config, grid)
        if sampled.nodes:
            metrics = self._rounds.evaluate(grid, server_round, sampled)
            self._evaluate_replies = self._wrapped.evaluate_replies(sampled, metrics)
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the wrapped strategy aggregate the metrics; report the round."""
        aggregate = self._wrapped.inner.aggregate_evaluate
        metrics = aggregate(server_round, self._evaluate_replies)
        self._evaluate_replies = []
        self._history.evaluated(server_round, metrics or {})
        return metrics
