"""What a run came to, as rows: a round each, a device each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flwr_slfac import RoundReport
from simulation.channel import Cell, Channel, typical_bit_per_s
from simulation.clock import RoundTimes, Timeline
from simulation.notes import DeviceNotes
from simulation.profiles import Profile


@dataclass(frozen=True)
class RoundRow:
    """A round; sums are those since the start.

    Parameters
    ----------
    server_round : int
        From 1.
    start_s, end_s : float
        Virtual time.
    accuracy, loss : float
        Of the joined model on the server's test, and mean training loss; NaN for none.
    num_devices, num_lost : int
        Who finished, and who did not.
    up_bytes, down_bytes, model_up_bytes, model_down_bytes : int
        What crossed in training, of this round; values around tensors included.
    total_bytes : int
        What has crossed.
    total_j : float
        What devices have spent.
    """

    server_round: int
    start_s: float
    end_s: float
    accuracy: float
    loss: float
    num_devices: int
    num_lost: int
    up_bytes: int
    down_bytes: int
    model_up_bytes: int
    model_down_bytes: int
    total_bytes: int
    total_j: float

    @classmethod
    def of(
        cls,
        report: RoundReport,
        times: RoundTimes,
        notes: Sequence[DeviceNotes],
        total_j: float,
        before: "RoundRow | None",
    ) -> "RoundRow":
        """Join a round's report with its times and what was seen of it."""
        up, down = (
            sum(getattr(step, name) for own in notes for step in own.steps)
            for name in ("up_bytes", "down_bytes")
        )
        model_up = sum(own.model_up_bytes for own in notes)
        model_down = sum(own.model_down_bytes for own in notes)
        crossed = up + down + model_up + model_down
        return cls(
            report.server_round,
            times.start_s,
            times.end_s,
            report.central.get("accuracy", math.nan),
            report.loss,
            report.num_devices,
            len(report.lost),
            up,
            down,
            model_up,
            model_down,
            crossed + (before.total_bytes if before else 0),
            total_j,
        )


@dataclass(frozen=True)
class DeviceRow:
    """A device, over the whole run.

    Parameters
    ----------
    device : int
        Partition id.
    tier : str
        Its kind.
    distance_m : float
        To the base; NaN where there is no cell.
    up_bit_per_s, down_bit_per_s : float
        Of its link, while all devices send at once; of a cell with round 1's fading.
    num_rounds : int
        In which it did something.
    compute_s, transmit_s, receive_s, wait_s : float
        Where its time went: computing and coding, sending, receiving, and waiting for
        others or the server. Latency counts as sending.
    num_bytes : float
        What it sent and received.
    compute_j, radio_j : float
        What it spent.
    """

    device: int
    tier: str
    distance_m: float
    up_bit_per_s: float
    down_bit_per_s: float
    num_rounds: int
    compute_s: float
    transmit_s: float
    receive_s: float
    wait_s: float
    num_bytes: float
    compute_j: float
    radio_j: float


_PLACES = {
    **dict.fromkeys(("forward", "backward", "encode", "decode"), "compute"),
    **dict.fromkeys(("up", "model-up", "flight"), "transmit"),
    **dict.fromkeys(("down", "model-down"), "receive"),
}


def device_rows(
    profiles: Sequence[Profile], channel: Channel, timeline: Timeline
) -> list[DeviceRow]:
    """Return a row for every device, also for those that did nothing.

    Parameters
    ----------
    profiles : sequence of Profile
        By device.
    channel : Channel
        Their links.
    timeline : Timeline
        Of the run.
    """
    count = len(profiles)
    seconds = [dict.fromkeys(("compute", "transmit", "receive"), 0.0) for _ in profiles]
    crossed, rounds = [0.0] * count, [set[int]() for _ in profiles]
    for span in timeline.spans:
        if span.device >= 0:
            seconds[span.device][_PLACES[span.kind]] += span.seconds
            crossed[span.device] += span.num_bytes
            rounds[span.device].add(span.server_round)
    waited = timeline.waited_s()
    up, down = (typical_bit_per_s(m, count) for m in (channel.up, channel.down))
    distances = [math.nan] * count
    if isinstance(channel.up, Cell):
        distances = channel.up.distances_m().tolist()
    return [
        DeviceRow(
            device,
            profile.tier,
            distances[device],
            float(up[device]),
            float(down[device]),
            len(rounds[device]),
            seconds[device]["compute"],
            seconds[device]["transmit"],
            seconds[device]["receive"],
            waited.get(device, 0.0),
            crossed[device],
            timeline.energy[device].compute_j,
            timeline.energy[device].transmit_j + timeline.energy[device].receive_j,
        )
        for device, profile in enumerate(profiles)
    ]
