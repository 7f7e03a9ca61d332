"""What a round came to, as one line of a table, and hooks that are told of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flwr_slfac.lightweight import StepCost
from flwr_slfac.traffic import SMASHED, Direction, Traffic

_COLUMNS = (
    ("round", 5),
    ("devices", 7),
    ("loss", 8),
    ("eval loss", 9),
    ("accuracy", 8),
    ("up", 9),
    ("down", 9),
    ("model up", 9),
    ("model down", 10),
    ("ratio", 6),
    ("seconds", 7),
)


@dataclass
class RoundReport:
    """What one round came to.

    Parameters
    ----------
    server_round : int
        The round, from 1.
    num_devices : int
        Devices that finished.
    lost : dict of int to str
        Reason for each device that was lost, by partition id (by node id if it never
        told its own).
    loss : float
        Mean training loss.
    evaluation : dict of str to float
        Federated evaluation: ``loss`` and the server's metrics; empty without one.
    num_bytes : dict of str to int
        Bytes of this round by direction, training and evaluation together.
    compression_ratio : float
        Float32 bytes over bytes that crossed, of the smashed data in training.
    train_s, compute_s : float
        Wall time of training, and the sum of what devices spent on computing.
    num_steps : int
        Steps in lock-step, of the device with most; summed over a relay's devices.
    central : dict of str to float
        What ``evaluate_fn`` returned; empty without one.
    """

    server_round: int
    num_devices: int
    lost: dict[int, str]
    loss: float
    evaluation: dict[str, float] = field(default_factory=dict)
    num_bytes: dict[str, int] = field(default_factory=dict)
    compression_ratio: float = float("nan")
    train_s: float = 0.0
    compute_s: float = 0.0
    num_steps: int = 0
    central: dict[str, float] = field(default_factory=dict)

    def count(self, traffic: Traffic) -> None:
        """Take this round's bytes from the ledger."""
        self.num_bytes = bytes_by_direction(traffic, self.server_round)
        self.compression_ratio = traffic.compression_ratio(
            server_round=self.server_round, phase="train"
        )

    def scalars(self) -> dict[str, float]:
        """Return the round's numbers under the names that trackers show."""
        return {
            "train/loss": self.loss,
            "train/seconds": self.train_s,
            "train/devices": self.num_devices,
            "traffic/compression_ratio": self.compression_ratio,
            **{f"evaluate/{k}": v for k, v in self.evaluation.items()},
            **{f"central/{k}": v for k, v in self.central.items()},
            **{f"traffic/{k}_bytes": v for k, v in self.num_bytes.items()},
        }

    def line(self) -> str:
        """Return the round as a line that fits under `table_head`."""
        values = (
            str(self.server_round),
            f"{self.num_devices}" + (f"-{len(self.lost)}" if self.lost else ""),
            f"{self.loss:.4f}",
            _number(self.evaluation.get("loss")),
            _number(self.evaluation.get("accuracy")),
            *(
                readable_bytes(self.num_bytes.get(d, 0))
                for d in ("up", "down", "model-up", "model-down")
            ),
            f"{self.compression_ratio:.1f}x",
            f"{self.train_s:.1f}",
        )
        return "  ".join(
            v.rjust(width) for v, (_, width) in zip(values, _COLUMNS, strict=True)
        )


@dataclass(frozen=True)
class DeviceCost:
    """What a round cost a device, with and without what makes it lighter.

    Parameters
    ----------
    server_round, device : int
        The round, from 1, and the partition id.
    step : StepCost
        Operations, parameters and activations of one step.
    model_down_bytes, model_up_bytes : int
        Of the front that crossed in training; 0 in a round in which it did not.
    plain_model_bytes : int
        Of the whole front's parameters in one direction.
    smashed_up_bytes, smashed_down_bytes : int
        Of activations and gradients that crossed in training.
    plain_smashed_bytes : int
        The same, whole and in float32, in both directions.
    """

    server_round: int
    device: int
    step: StepCost
    model_down_bytes: int
    model_up_bytes: int
    plain_model_bytes: int
    smashed_up_bytes: int
    smashed_down_bytes: int
    plain_smashed_bytes: int

    @classmethod
    def of(
        cls, server_round: int, device: int, step: StepCost, traffic: Traffic
    ) -> "DeviceCost":
        """Join a device's own account with what crossed."""
        rows = {
            row.direction: row
            for row in traffic.rows(
                server_round=server_round, device=device, phase="train"
            )
        }
        crossed = {name: row.num_bytes for name, row in rows.items()}
        return cls(
            server_round,
            device,
            step,
            model_down_bytes=crossed.get("model-down", 0),
            model_up_bytes=crossed.get("model-up", 0),
            plain_model_bytes=step.plain_parameter_bytes,
            smashed_up_bytes=crossed.get("up", 0),
            smashed_down_bytes=crossed.get("down", 0),
            plain_smashed_bytes=sum(
                row.raw_bytes for name, row in rows.items() if name in SMASHED
            ),
        )


class Callback(Protocol):
    """Something that wants to know of every round: a plot, a tracker, a file.

    For Weights & Biases, for example::

        class WandB:
            def on_round(self, report: RoundReport) -> None:
                wandb.log(report.scalars(), step=report.server_round)

    One that has a method ``on_start(strategy)`` is told of the `SplitFed` before the
    first round; one that has ``on_end()`` when the run is over, or failed. One that has
    ``on_link(link, server_round)`` is given the link of each round of training, and
    what it returns carries the round's requests: it sees every step of every device,
    and may lose one (`flwr_slfac.split.Lost`), as the simulation's clock does. What one
    remembers is saved with the run, and given back when that is resumed, if it has the
    methods ``state_dict()`` and ``load_state_dict(state)``.
    """

    def on_round(self, report: RoundReport) -> bool | None:
        """Be told of a finished round; return True to end the run after it."""
        ...


class TensorBoard:
    """Writes every round to TensorBoard (needs the ``tensorboard`` package).

    Parameters
    ----------
    log_dir : str or Path
        Where the event files go.
    """

    def __init__(self, log_dir: str | Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(log_dir))

    def on_round(self, report: RoundReport) -> None:
        """Write the round's scalars."""
        for name, value in report.scalars().items():
            self._writer.add_scalar(name, value, report.server_round)
        self._writer.flush()


def table_head() -> str:
    """Return the head of the table whose lines `RoundReport.line` returns."""
    return "  ".join(name.rjust(width) for name, width in _COLUMNS)


def bytes_by_direction(traffic: Traffic, server_round: int) -> dict[str, int]:
    """Return a round's bytes in each direction that was used."""
    totals: dict[Direction, int] = {}
    for row in traffic.rows(server_round=server_round):
        totals[row.direction] = totals.get(row.direction, 0) + row.num_bytes
    return {str(name): num_bytes for name, num_bytes in totals.items()}


def readable_bytes(num_bytes: float) -> str:
    """Return bytes in decimal units.

    Examples
    --------
    >>> readable_bytes(999), readable_bytes(12_345), readable_bytes(7_000_000)
    ('999 B', '12.3 kB', '7.0 MB')
    """
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    if num_bytes < 1e6:
        return f"{num_bytes / 1e3:.1f} kB"
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e9:.1f} GB"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
