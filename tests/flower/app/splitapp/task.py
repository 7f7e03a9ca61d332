"""Model, data, devices and jobs: what the app and its in-process twin share."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import TensorDataset

from flwr_slfac import Device, DeviceCuts, Lightweight, cut

SIZES = (24, 16, 20, 32)  # training examples of devices 0 to 3, then again
BATCH_SIZE = 8
NUM_CLASSES = 4
OPTIMIZER = partial(SGD, lr=0.1, momentum=0.9)
SCHEDULER = partial(StepLR, step_size=1, gamma=0.5)


@dataclass
class Fault:
    """What a device does at a step of a round: raise, die, hang or answer wrongly."""

    device: int
    server_round: int
    step: int
    kind: str


@dataclass
class Job:
    """One training from the first to the last round."""

    name: str
    scheme: str = "parallel"
    strategy: str = "FedAvg"
    strategy_settings: dict[str, Any] = field(default_factory=dict)
    num_rounds: int = 2
    up: str = "identity"
    down: str = "identity"
    seed: int = 7
    step_timeout_s: float = 600.0
    evaluate_bytes: int = 2**23
    pipeline_depth: int = 0
    live_cache: int = 32
    keep_optimizer: bool = True
    batch_size: int = BATCH_SIZE
    faults: list[Fault] = field(default_factory=list)
    bad: str = ""
    on_device_error: str = "drop"
    lightweight: dict[str, Any] = field(default_factory=dict)
    cuts: dict[str, str] = field(default_factory=dict)  # by partition id
    around: str = ""
    mods: list[str] = field(default_factory=list)
    configure: bool = False
    start: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    resume: bool = False
    killed: str = ""  # when the ServerApp is killed, in round 2
    transport: str | dict[str, Any] = "auto"
    pace_s: float = 0.0  # how long a training step takes on a device, at least

    def to_json(self) -> str:
        """Return the job as JSON text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Job":
        """Return the job that `to_json` wrote."""
        fields = json.loads(text)
        fields["faults"] = [Fault(**f) for f in fields["faults"]]
        return Job(**fields)


def build_setting(job: Job) -> Lightweight | None:
    """Return the job's setting; ``prune="odd"`` prunes odd partitions."""
    if not job.lightweight:
        return None
    fields = dict(job.lightweight)
    if fields.get("prune") == "odd":
        fields["prune"] = lambda _, profile: 0.4 * (profile["partition-id"] % 2)
    return Lightweight(**fields)


def build_cuts(job: Job) -> DeviceCuts | None:
    """Return the job's cuts of devices' own."""
    at = {int(device): name for device, name in job.cuts.items()}
    how = OPTIMIZER, SCHEDULER, "round", job.keep_optimizer
    return DeviceCuts(build_model(job.seed), "front", at, *how) if at else None


class Net(nn.Module):
    """Convolutions, with BatchNorm and Dropout on both sides of the cut."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.Dropout(0.2),
            nn.ReLU(),
        )
        self.back = nn.Sequential(
            nn.Conv2d(channels, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(16, NUM_CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.front(x))


def build_model(seed: int, channels: int = 3) -> nn.Module:
    """Build the whole model; the same seed gives the same weights everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(channels)


def build_data(num_examples: int, seed: int) -> TensorDataset:
    """Return images whose labels depend on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_examples, 1, 6, 6, generator=generator)
    y = (x.mean((1, 2, 3)) * 12).long().clamp(-2, 1) + 2
    return TensorDataset(x, y)


def build_test_set(partition: int) -> TensorDataset:
    """Return the test set of a device; no two devices' are of one size in four."""
    return build_data(10 + partition % 4, 100_000 + partition)


def build_device(job: Job, partition: int) -> Device:
    """Build a device; its optimizer's state and schedule outlive a round."""
    return Device(
        cut(build_model(job.seed), at=job.cuts.get(str(partition), "front")).front,
        optimizer=OPTIMIZER,
        scheduler=SCHEDULER,
        keep_optimizer=job.keep_optimizer,
        train_set=build_data(SIZES[partition % 4], partition),
        test_set=build_test_set(partition),
        batch_size=job.batch_size,
    )


def fingerprint(*states: Mapping[str, Tensor]) -> str:
    """Return one hash of all tensors, in the order of their names."""
    joined = {name: tensor for state in states for name, tensor in state.items()}
    digest = hashlib.sha256()
    for name in sorted(joined):
        value = joined[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file that a reader finds whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)
