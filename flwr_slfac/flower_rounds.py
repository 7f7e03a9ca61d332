"""Rounds of split training on Flower's nodes."""

from collections.abc import Sequence

from flwr.serverapp import Grid

from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Codec
from flwr_slfac.errors import SettingError
from flwr_slfac.progress import step_progress
from flwr_slfac.split import (
    Begin,
    CutFeature,
    Limits,
    OnDeviceError,
    RoundResult,
    Rounds,
    ServerFronts,
    ServerHalf,
    require_places,
)
from flwr_slfac.traffic import Traffic
from flwr_slfac.transport import MessageLink
from flwr_slfac.wrapped import Sampled


class FlowerRounds:
    """Runs `Rounds` over Flower's messages.

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
    traffic : Traffic
        Where what crosses is entered.
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
        traffic: Traffic,
        *,
        limits: Limits,
        on_device_error: OnDeviceError,
        seed: int,
        step_timeout_s: float,
        evaluate_bytes: int,
    ) -> None:
        if not step_timeout_s > 0:
            raise SettingError(f"step_timeout_s is {step_timeout_s}, not above 0")
        require_places((*cut_features, *fronts.cut_features), up, down)
        self._server = server
        self._up = up
        self._rounds = Rounds(
            server, down, traffic, limits, fronts, cut_features, on_device_error
        )
        self._seed = seed
        self._step_timeout_s = step_timeout_s
        self._evaluate_bytes = evaluate_bytes
        self._link: MessageLink | None = None

    def devices(self, grid: Grid, nodes: list[int]) -> dict[int, int]:
        """Return the partition ids of the nodes that answer."""
        return self._link_to(grid).devices(nodes)

    def train(self, grid: Grid, server_round: int, sampled: Sampled) -> RoundResult:
        """Train a round; should it fail, the back is that of the round before.

        Raises
        ------
        AllDevicesLostError, DeviceError, DivergedError
            As `Rounds.train`.
        """
        begin = self._begin(server_round, sampled)
        before = self._server.snapshot()
        link = self._link_to(grid)
        try:
            with step_progress(f"round {server_round}") as progress:
                return self._rounds.train(link, sampled.nodes, begin, progress)
        except Exception:
            self._server.back.load_state_dict(before)
            raise

    def evaluate(
        self, grid: Grid, server_round: int, sampled: Sampled
    ) -> dict[int, dict[str, float]]:
        """Evaluate through the split; return each device's metrics by node id."""
        begin = self._begin(server_round, sampled)
        link = self._link_to(grid)
        return self._rounds.evaluate(link, sampled.nodes, begin, self._evaluate_bytes)

    def _begin(self, server_round: int, sampled: Sampled) -> Begin:
        """Return what devices are told, from what the wrapped strategy wants."""
        return Begin(
            server_round=server_round,
            seed=self._seed,
            front=sampled.front,
            up=self._up,
            release=RELEASE,
            min_batch=self._server.min_batch,
            proximal_mu=sampled.proximal_mu,
        )

    def _link_to(self, grid: Grid) -> MessageLink:
        if self._link is None:
            self._link = MessageLink(grid, self._step_timeout_s)
        return self._link
