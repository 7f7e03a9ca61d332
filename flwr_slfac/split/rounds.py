"""Rounds of training and evaluation over any link."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flwr_slfac.codec import Codec, format_codec
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.codec_pool import CodecPool
from flwr_slfac.split.crossing import ServerSide
from flwr_slfac.split.device_codecs import DeviceCodecs
from flwr_slfac.split.evaluation import Evaluation
from flwr_slfac.split.features import CutFeature, named
from flwr_slfac.split.limits import (
    CutSize,
    Limits,
    OnDeviceError,
    require_on_device_error,
)
from flwr_slfac.split.link import Link
from flwr_slfac.split.protocol import Begin
from flwr_slfac.split.results import RoundResult
from flwr_slfac.split.round import Progress, Round
from flwr_slfac.split.server_fronts import ServerFronts
from flwr_slfac.split.server_half import ServerHalf
from flwr_slfac.split.server_run import ServerRun
from flwr_slfac.split.whole_fronts import WholeFronts
from flwr_slfac.traffic import Traffic


class Rounds:
    """Runs rounds of training and evaluation over a link.

    Parameters
    ----------
    server : ServerHalf
        The back and how it learns.
    down : Codec
        How cut-layer gradients are coded.
    traffic : Traffic
        Where what crosses is entered.
    limits : Limits or int
        What is taken from one device; a number is that of `Limits.max_elements`.
    fronts : ServerFronts, optional
        Hands out fronts and takes them back; whole ones by default.
    cut_features : sequence of CutFeature
        What is done to the smashed data, before what `fronts` asks for.
    on_device_error : {"drop", "raise"} (default: "raise")
        Whether a device that refuses, or sends what cannot be used, is lost for the
        round with its reason, or ends the run.
    codec_threads : int or None (default: 1)
        Of `CodecPool`; no number changes a bit of what the rounds come to.
    codecs : DeviceCodecs, optional
        Codecs of devices' own.

    Raises
    ------
    SettingError
        If `on_device_error` is not known, or `codec_threads` is below 1.
    """

    def __init__(
        self,
        server: ServerHalf,
        down: Codec,
        traffic: Traffic,
        limits: Limits | int,
        fronts: ServerFronts | None = None,
        cut_features: Sequence[CutFeature] = (),
        on_device_error: OnDeviceError = "raise",
        codec_threads: int | None = 1,
        codecs: DeviceCodecs | None = None,
    ) -> None:
        require_on_device_error(on_device_error)
        # Started anew in each phase, so that none of its threads outlives one.
        self._pool = partial(CodecPool, codec_threads)
        self._pool()
        fronts = fronts or WholeFronts()
        self._features = (*cut_features, *fronts.cut_features)
        self._told = named(self._features, server.back)
        memories = [(feature, feature.memory()) for feature in self._features]
        limits = Limits(max_elements=limits) if isinstance(limits, int) else limits
        size = CutSize(
            limits, getattr(server.back, "example_shape", None), *fronts.shapes
        )
        side = ServerSide(down, memories, size, server.where)
        self._run = ServerRun(server, fronts, traffic, side, on_device_error, codecs)

    @property
    def run(self) -> ServerRun:
        """The server's side of the run, which outlives its rounds."""
        return self._run

    @property
    def features(self) -> tuple[CutFeature, ...]:
        """What is done to the smashed data, in the order of sending."""
        return self._features

    def settings(self, seed: int, up: Codec, pipeline_depth: int) -> dict[str, Any]:
        """Return what makes a run another one; the arguments are told to devices."""
        server = self._run.server
        return {
            "seed": seed,
            "up": format_codec(up),
            "scheme": server.scheme,
            "down": format_codec(self._run.side.down),
            "loss": server.loss,
            "metrics": server.metrics,
            **server.replica.settings(),
            "lightweight": self._run.fronts.setting,
            "cut_features": self._features,
            **self._run.fronts.settings(),
            **({"codecs": self._run.codecs} if self._run.codecs else {}),
            # Folders of runs without one were saved before there was the setting.
            **({"pipeline_depth": 1} if pipeline_depth else {}),
        }

    def train(
        self,
        link: Link,
        keys: Iterable[int],
        begin: Begin,
        progress: Progress | None = None,
    ) -> RoundResult:
        """Train one round on the devices with these keys.

        Parameters
        ----------
        link : Link
            To the devices.
        keys : iterable of int
            Whom to train on.
        begin : Begin
            What all of them are told at the start.
        progress : callable, optional
            Told (steps done, steps of the device with most) after each step.

        Returns
        -------
        RoundResult
            With at least one finished device.

        Raises
        ------
        AllDevicesLostError
            If no device finishes.
        DeviceError
            If a device refuses, or sends what cannot be used.
        DivergedError
            If a loss or a gradient is NaN or infinite.
        SettingError
            If a relay is asked for FedProx's proximal term.
        """
        begin = replace(begin, cut_features=self._told)
        with self._pool() as pool:
            return Round(self._run, link, begin, progress, pool).train(list(keys))

    def evaluate(
        self, link: Link, keys: Iterable[int], begin: Begin, max_bytes: int
    ) -> dict[int, dict[str, float]]:
        """Evaluate through the split; return each device's metrics by key.

        Each holds ``num-examples``, ``loss`` and the server's metrics, means over that
        device's test set. Devices without a test set are left out, lost ones too.

        Parameters
        ----------
        link, keys, begin
            As for `train`.
        max_bytes : int
            Smashed test data that a device sends per reply, one batch at the least.

        Raises
        ------
        DeviceError
            If a device refuses, or sends what cannot be used.
        """
        run, begin = self._run, replace(begin, cut_features=self._told)
        accounts = Accounts(run.traffic, begin.server_round, "evaluate")
        with self._pool() as pool:
            evaluation = Evaluation(run, accounts)
            return evaluation.evaluate(link, list(keys), begin, max_bytes, pool)
