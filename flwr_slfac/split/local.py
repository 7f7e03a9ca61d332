"""Split training in one process, without Flower: the fastest way, and the oracle."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from flwr_slfac._release import RELEASE
from flwr_slfac.checkpoint import Saving
from flwr_slfac.codec import Codec, Identity
from flwr_slfac.errors import SlfacError
from flwr_slfac.lightweight import Lightweight
from flwr_slfac.split.crossing import require_places
from flwr_slfac.split.device import Device
from flwr_slfac.split.device_codecs import DeviceCodecs
from flwr_slfac.split.device_cuts import DeviceCuts
from flwr_slfac.split.device_half import DeviceHalf
from flwr_slfac.split.features import CutFeature
from flwr_slfac.split.forwards import require_pipeline_depth
from flwr_slfac.split.limits import Limits, OnDeviceError
from flwr_slfac.split.local_run import LocalResult, LocalRun
from flwr_slfac.split.protocol import (
    Begin,
    Description,
    EvaluateAnswer,
    EvaluateReply,
    EvaluateRequest,
    Lost,
    TrainAnswer,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.split.rounds import Rounds
from flwr_slfac.split.run_fronts import fronts_for
from flwr_slfac.split.server_half import ServerHalf
from flwr_slfac.states import State
from flwr_slfac.traffic import Traffic

A = TypeVar("A", TrainReply, EvaluateReply, Description)


class LocalLink:
    """Carries requests by calling the devices' halves; keys are partition ids."""

    on_device_error: OnDeviceError = "raise"

    def __init__(self, halves: Sequence[DeviceHalf]) -> None:
        self._halves = {half.partition: half for half in halves}

    def _call(self, key: int, work: Callable[[DeviceHalf], A]) -> A | Lost:
        """Return what a device answers; what it raises is its loss, if so wanted."""
        try:
            return work(self._halves[key])
        except SlfacError as error:
            if self.on_device_error == "raise":
                raise
            reason = f"{type(error).__name__}: {error}"
            return Lost(f"refused: {reason}", key, at_fault=True)

    def devices(self, keys: list[int]) -> dict[int, int]:
        """Return the keys: here they are the partition ids."""
        return {key: key for key in keys}

    def describe(
        self, keys: list[int], *, channels: bool
    ) -> dict[int, Description | Lost]:
        """Call each device."""
        return {k: self._call(k, lambda h: h.describe(channels=channels)) for k in keys}

    def train_each(
        self, requests: Iterable[tuple[int, TrainRequest]]
    ) -> Iterator[tuple[int, TrainAnswer]]:
        """Call each device when all requests are there."""
        yield from self.train(dict(requests)).items()

    def evaluate_each(
        self, requests: Iterable[tuple[int, EvaluateRequest]]
    ) -> Iterator[tuple[int, EvaluateAnswer]]:
        """Call each device when all requests are there."""
        yield from self.evaluate(dict(requests)).items()

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Call each device in partition order."""
        return {
            k: self._call(k, lambda half, k=k: half.train(requests[k]))  # type: ignore[misc]
            for k in sorted(requests)
        }

    def evaluate(
        self, requests: Mapping[int, EvaluateRequest]
    ) -> dict[int, EvaluateAnswer]:
        """Call each device in partition order."""
        return {
            k: self._call(k, lambda half, k=k: half.evaluate(requests[k]))  # type: ignore[misc]
            for k in sorted(requests)
        }


def train_locally(
    devices: Sequence[Device],
    front: State,
    server: ServerHalf,
    *,
    num_rounds: int,
    seed: int = 0,
    up: Codec | None = None,
    down: Codec | None = None,
    evaluate: bool = True,
    proximal_mu: float = 0.0,
    lightweight: Lightweight | None = None,
    cuts: DeviceCuts | None = None,
    codecs: DeviceCodecs | None = None,
    cut_features: Sequence[CutFeature] = (),
    on_device_error: OnDeviceError = "raise",
    limits: Limits | None = None,
    codec_threads: int | None = 1,
    pipeline_depth: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    keep: int = 3,
    resume: bool = False,
    make_link: Callable[[Sequence[DeviceHalf]], LocalLink] = LocalLink,
) -> LocalResult:
    """Train a split model over several devices in this process.

    The same seed, settings and data give the same weights as `SplitFed` around FedAvg,
    bit for bit at an equal number of threads.

    Parameters
    ----------
    devices : sequence of Device
        Their position is their partition id.
    front : mapping of str to Tensor
        First weights of the device-side model.
    server : ServerHalf
        The back, the loss, the scheme.
    num_rounds : int
        Rounds of training; each ends in averaging the fronts by examples.
    seed : int
        Seed of the run.
    up, down : Codec (default: Identity())
        How activations and cut-layer gradients are coded.
    evaluate : bool (default: True)
        Evaluate through the split after each round.
    proximal_mu : float (default: 0)
        Weight of FedProx's proximal term on the devices.
    lightweight : Lightweight, optional
        What makes training lighter on the devices.
    cuts, codecs : DeviceCuts and DeviceCodecs, optional
        Cuts and codecs of devices' own.
    cut_features : sequence of CutFeature
        What else is done to the smashed data, in the order of sending.
    on_device_error : {"drop", "raise"} (default: "raise")
        As in `SplitFed`, whose default is to drop.
    limits : Limits, optional
        What is taken from one device.
    codec_threads : int or None (default: 1)
        As in `SplitFed`, whose default is None; here devices take the cores, too.
    pipeline_depth : {0, 1} (default: 0)
        As in `SplitFed`; here it changes the weights and saves no time.
    checkpoint, checkpoint_every, keep, resume
        As in `SplitFed`; what devices keep between rounds is saved, too.
    make_link : callable
        How the halves are reached.

    Raises
    ------
    SettingError
        If a setting is out of range, or the checkpoint folder holds another run.
    CheckpointError
        If something of the run cannot be stored, or all that was is damaged.
    """
    coding = up or Identity(), down or Identity()
    saving = Saving(checkpoint, checkpoint_every, keep, resume=resume)
    fronts = fronts_for(lightweight, server, *coding, cuts=cuts)
    require_pipeline_depth(pipeline_depth, fronts.period_steps)
    require_places((*cut_features, *fronts.cut_features), *coding)
    if codecs is not None:
        codecs.require_fit(*coding)
    result = LocalResult(dict(front), [], [], Traffic())
    shared = (
        limits or Limits(),
        fronts,
        cut_features,
        on_device_error,
        codec_threads,
        codecs,
    )
    rounds = Rounds(server, coding[1], result.traffic, *shared)
    link = make_link(halves := [DeviceHalf(d, i) for i, d in enumerate(devices)])
    link.on_device_error = on_device_error
    told = coding[0], RELEASE, server.min_batch, proximal_mu
    begin = Begin(0, seed, None, *told, pipeline_depth=pipeline_depth)
    run = LocalRun(rounds, link, halves, begin, result, num_rounds, evaluates=evaluate)
    with saving.session(run) as session:
        while run.server_round < num_rounds:
            run.next_round()
            session.save(last=run.server_round == num_rounds)
    return result
