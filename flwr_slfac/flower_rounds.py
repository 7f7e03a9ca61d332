"""Rounds of split training on Flower's nodes."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Codec, format_codec
from flwr_slfac.errors import SettingError
from flwr_slfac.history import History
from flwr_slfac.links import Transport, link_for, require_transport
from flwr_slfac.node_link import NodeLink
from flwr_slfac.progress import step_progress
from flwr_slfac.sampled import Sampled
from flwr_slfac.split import (
    Begin,
    CutFeature,
    DeviceCodecs,
    Limits,
    OnDeviceError,
    RoundResult,
    Rounds,
    ServerFronts,
    ServerHalf,
    WholeFronts,
    require_pipeline_depth,
    require_places,
)
from flwr_slfac.transport import Carrier

logger = logging.getLogger("flwr")


class FlowerRounds:
    """Runs `Rounds` over Flower's nodes.

    Parameters
    ----------
    server : ServerHalf
        The back and how it learns.
    up, down : Codec
        How activations and cut-layer gradients are coded.
    fronts : ServerFronts
        Who is given which front.
    cut_features : sequence of CutFeature
        What is done to the smashed data, before what `fronts` asks for.
    history : History
        Where what crosses is entered, and how the run stands.
    transport : {"auto", "messages", "stream"} or StreamTransport
        What carries the steps.
    pipeline_depth : {0, 1}
        Whether devices run the next forward while a gradient travels.
    limits : Limits
        What is taken from one device.
    on_device_error : {"drop", "raise"}
        What becomes of a device at fault.
    seed : int
        Seed of the run.
    step_timeout_s : float
        A device that does not answer a step for this long is lost for the round.
    evaluate_bytes : int
        Smashed test data that a device sends per message.
    codec_threads : int or None
        Threads that code different devices' frames.
    codecs : DeviceCodecs or None
        Codecs of devices' own.

    Raises
    ------
    SettingError
        If a setting is out of range, or a codec does not go with a feature.
    """

    def __init__(
        self,
        server: ServerHalf,
        up: Codec,
        down: Codec,
        fronts: ServerFronts,
        cut_features: Sequence[CutFeature],
        history: History,
        *,
        transport: Transport,
        pipeline_depth: int,
        limits: Limits,
        on_device_error: OnDeviceError,
        seed: int,
        step_timeout_s: float,
        evaluate_bytes: int,
        codec_threads: int | None,
        codecs: DeviceCodecs | None,
    ) -> None:
        if not step_timeout_s > 0:
            raise SettingError(f"step_timeout_s is {step_timeout_s}, not above 0")
        require_transport(transport)
        require_pipeline_depth(pipeline_depth, fronts.period_steps)
        require_places((*cut_features, *fronts.cut_features), up, down)
        if codecs is not None:
            codecs.require_fit(up, down)
        self._server, self._history = server, history
        self._status = history.status
        self._up, self._down = up, down
        self._pipeline_depth = pipeline_depth
        settings = fronts, cut_features, on_device_error, codec_threads, codecs
        self._rounds = Rounds(server, down, history.traffic, limits, *settings)
        self._fronts = fronts
        self._before: dict[str, torch.Tensor] = {}
        self._seed = seed
        self._step_timeout_s = step_timeout_s
        self._evaluate_bytes = evaluate_bytes
        self._transport, self._limits = transport, limits
        self._link: Carrier | None = None
        self._round_timeout_s: float | None = None

    def summary(self) -> list[str]:
        """Return the settings, a line each."""
        settings = (
            f"Scheme: {self._server.scheme}",
            f"Codec up: {format_codec(self._up)}",
            f"Codec down: {format_codec(self._down)}",
            *self._fronts.summary(),
            *(["Pipeline depth: 1"] if self._pipeline_depth else []),
        )
        return [*(f"├── {line}" for line in settings), f"└── Seed: {self._seed}"]

    def log_summary(self) -> None:
        """Log the settings."""
        logger.info("\t├──> Split learning (flwr-slfac %s):", RELEASE)
        for line in self.summary():
            logger.info("\t│\t%s", line)

    def arguments(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of Flower's `start` by name; take over those of rounds.

        Raises
        ------
        SettingError
            If the timeout is not above 0.
        """
        bound = inspect.signature(Strategy.start).bind(None, *args, **kwargs)
        # Flower's own default, an hour, is one for a single message.
        self._round_timeout_s = bound.arguments.get("timeout")
        timeout_s = self._round_timeout_s
        if timeout_s is not None and not timeout_s > 0:
            raise SettingError(f"timeout is {timeout_s} s; it must be above 0")
        bound.apply_defaults()
        num_rounds = bound.arguments["num_rounds"]
        self._fronts.last_round = self._status.num_rounds = num_rounds
        return bound.arguments

    @property
    def rounds(self) -> Rounds:
        """What runs, over any link."""
        return self._rounds

    @property
    def server(self) -> ServerHalf:
        """The back and how it learns."""
        return self._server

    def settings(self) -> dict[str, Any]:
        """Return what makes a run another one."""
        return self._rounds.settings(self._seed, self._up, self._pipeline_depth)

    def devices(self, grid: Grid, nodes: list[int]) -> dict[int, int]:
        """Return the partition ids of the nodes that answer."""
        return self._link_to(grid).devices(nodes)

    def train(self, grid: Grid, server_round: int, sampled: Sampled) -> RoundResult:
        """Train a round; should it fail, the back is that of the round before.

        Raises
        ------
        AllDevicesLostError, DeviceError, DivergedError
            As `Rounds.train`.
        SettingError
            If the strategy sends a front that cannot be carried here.
        """
        begin = self._begin(server_round, sampled)
        self._before = self._server.snapshot()
        carrier, nodes = self._link_to(grid), sampled.nodes
        carrier.hold(nodes)
        link = NodeLink(carrier, sampled, self._round_timeout_s)
        seen = self._history.around(link, server_round)
        try:
            with (
                self._status.during("train", server_round, carrier, nodes),
                step_progress(f"round {server_round}", self._status) as progress,
            ):
                return self._rounds.train(seen, nodes, begin, progress)
        except Exception:
            self._server.back.load_state_dict(self._before)
            raise

    def undo(self, why: str) -> None:
        """Bring the back to where it was before the last round of training."""
        logger.warning("%s: the back is again that of the round before", why)
        self._server.back.load_state_dict(self._before)

    def evaluate(
        self, grid: Grid, server_round: int, sampled: Sampled
    ) -> dict[int, dict[str, float]]:
        """Evaluate through the split; return each device's metrics by node id."""
        begin = self._begin(server_round, sampled)
        carrier, nodes = self._link_to(grid), sampled.nodes
        link = NodeLink(carrier, sampled, self._round_timeout_s)
        with self._status.during("evaluate", server_round, carrier, nodes):
            return self._rounds.evaluate(link, nodes, begin, self._evaluate_bytes)

    def _begin(self, server_round: int, sampled: Sampled) -> Begin:
        """Return what all devices are told; a `NodeLink` adds what each one is."""
        self._require_carried(sampled)
        return Begin(
            server_round=server_round,
            seed=self._seed,
            front=sampled.of(sampled.nodes[0]).front,
            up=self._up,
            release=RELEASE,
            min_batch=self._server.min_batch,
            # Each device is told its own; that any has one is for the round to know.
            proximal_mu=max(sampled.of(n).proximal_mu for n in sampled.nodes),
            pipeline_depth=self._pipeline_depth,
        )

    def _require_carried(self, sampled: Sampled) -> None:
        """Refuse fronts of the strategy's own where something else decides on them.

        Raises
        ------
        SettingError
            If there are some.
        """
        whole = isinstance(self._fronts, WholeFronts) and not self._fronts.in_parts
        if not whole and not sampled.sends_offered:
            raise SettingError(
                "the strategy sends devices another front than the one that it was "
                "given, and with lightweight= or cuts= devices are given parts of that "
                "one; leave them out, or let the strategy send what it is given"
            )
        weights = {sampled.of(node).proximal_mu for node in sampled.nodes}
        if self._fronts.in_parts and len(weights) > 1:
            raise SettingError(
                "the strategy sends devices unlike proximal terms, and with cuts= the "
                "server trains layers of theirs by one; send all the same"
            )
        if self._server.scheme == "sequential" and not sampled.is_uniform:
            raise SettingError(
                "the strategy sends unlike fronts to devices, and in the relay of "
                "scheme='sequential' a device goes on with the front of the one "
                "before; use scheme='parallel', 'sflv1' or 'sflv2'"
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """At the end let all devices go; who goes on is given a new link."""
        try:
            with self._history.running():
                yield
        finally:
            link, self._link = self._link, None
            if link is not None:
                link.close()

    def _link_to(self, grid: Grid) -> Carrier:
        if self._link is None:
            self._link = link_for(
                grid, self._transport, self._step_timeout_s, self._limits
            )
        return self._link
