"""The same jobs in one process, without Flower: what every run must come to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch.nn import CrossEntropyLoss
from torch.optim import SGD

from flwr_slfac import Device, accuracy, cut
from flwr_slfac.codec import parse_codec
from flwr_slfac.split import (
    Begin,
    DeviceHalf,
    LocalLink,
    LocalResult,
    Lost,
    ServerHalf,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.protocol import TrainAnswer
from tests.flower.app.splitapp.task import (
    Job,
    build_cuts,
    build_device,
    build_model,
    build_setting,
    fingerprint,
)


class LossyLink(LocalLink):
    """Loses devices from a step of a round to the end of that round.

    Parameters
    ----------
    halves : sequence of DeviceHalf
        The devices.
    losses : mapping of (int, int) to int
        First step that is lost, by (device, round).
    tell : callable
        From a device and what it is told to what it is told instead.
    """

    def __init__(
        self,
        halves: Sequence[DeviceHalf],
        losses: Mapping[tuple[int, int], int],
        tell: Callable[[int, Begin], Begin],
    ) -> None:
        super().__init__(halves)
        self._losses, self._tell = losses, tell
        self._round = 0

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Call each device that is not lost."""
        begun = [r.begin.server_round for r in requests.values() if r.begin]
        self._round = max(begun, default=self._round)
        lost = {
            k
            for k, r in requests.items()
            if r.step >= self._losses.get((k, self._round), 1_000_000)
        }
        reached = {
            k: r if r.begin is None else replace(r, begin=self._tell(k, r.begin))
            for k, r in requests.items()
            if k not in lost
        }
        return {**super().train(reached), **{k: Lost("unplugged") for k in lost}}


def train_in_process(
    job: Job,
    num_devices: int = 4,
    *,
    losses: Mapping[tuple[int, int], int] | None = None,
    proximal_mu: float = 0.0,
    configure: Callable[[int, Device], None] = lambda partition, device: None,
    tell: Callable[[int, Begin], Begin] = lambda partition, begin: begin,
) -> tuple[str, LocalResult]:
    """Return the hash of the final weights, and the result."""
    halves = cut(build_model(job.seed), at="front")
    server = ServerHalf(
        halves.back,
        CrossEntropyLoss(),
        partial(SGD, lr=0.1, momentum=0.9),
        scheme=job.scheme,  # type: ignore[arg-type]
        metrics={"accuracy": accuracy},
    )
    devices = [build_device(job, partition) for partition in range(num_devices)]
    for partition, device in enumerate(devices):
        configure(partition, device)
    result = train_locally(
        devices,
        halves.front.state_dict(),
        server,
        num_rounds=job.num_rounds,
        seed=job.seed,
        up=parse_codec(job.up),
        down=parse_codec(job.down),
        proximal_mu=proximal_mu,
        lightweight=build_setting(job),
        cuts=build_cuts(job),
        pipeline_depth=job.pipeline_depth,
        make_link=partial(LossyLink, losses=losses or {}, tell=tell),
    )
    return fingerprint(result.front, server.snapshot()), result
