"""The page of a simulated run: learning in virtual time, and where the time went."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flwr_slfac.report import Page, Plot, Table, readable_bytes
from simulation.clock import SERVER, Timeline
from simulation.pictures import AGAINST
from simulation.results import DeviceRow, RoundRow
from simulation.scenario import Scenario

# One colour a kind of work, in the order of a step; waits are pale.
_COLOURS = {
    "model-down": "#9467bd",
    "forward": "#1f77b4",
    "encode": "#17becf",
    "up": "#ff7f0e",
    "flight": "#c7c7c7",
    "server-decode": "#7f7f7f",
    "server": "#8c564b",
    "server-encode": "#7f7f7f",
    "down": "#d62728",
    "decode": "#bcbd22",
    "backward": "#2ca02c",
    "model-up": "#e377c2",
    "aggregate": "#8c564b",
    "wait": "#fff3bf",
}
_SPLIT = ("compute_s", "transmit_s", "receive_s", "wait_s")
# Rows of a Gantt chart that still can be told apart.
_MOST_DEVICES = 60


def report_page(
    scenario: Scenario,
    rounds: Sequence[RoundRow],
    devices: Sequence[DeviceRow],
    timeline: Timeline,
) -> Page:
    """Return the page of a run: a function of what is given, no wall time in it.

    Parameters
    ----------
    scenario : Scenario
        What was simulated.
    rounds : sequence of RoundRow
        One a round, one or more.
    devices : sequence of DeviceRow
        One a device.
    timeline : Timeline
        Of the run.
    """
    parts: list[Plot | Table] = [
        *(_curve(name, *field, rounds) for name, field in AGAINST.items()),
        _bytes_by_round(rounds),
        _time_by_tier(devices),
        _gantt(timeline, rounds[-1]),
        _places(devices),
        Table("Rounds", list(RoundRow.__dataclass_fields__), _cells(rounds)),
        Table("Devices", list(DeviceRow.__dataclass_fields__), _cells(devices)),
    ]
    return Page(
        f"Simulation: {scenario.name}", _facts(scenario, rounds, len(devices)), parts
    )


def _cells(rows: Sequence[Any]) -> list[list[Any]]:
    return [list(asdict(row).values()) for row in rows]


def _facts(
    scenario: Scenario, rounds: Sequence[RoundRow], num_devices: int
) -> dict[str, Any]:
    own, last = scenario.training, rounds[-1]
    reached = [row.accuracy for row in rounds if not math.isnan(row.accuracy)]
    return {
        "scheme, cut": f"{own.scheme}, {own.cut}",
        "codecs up, down": ", ".join(
            text or "default" for text in (own.codec_up, own.codec_down)
        ),
        "lightweight": own.lightweight or "no",
        "sampling": f"{own.sampling}, {own.devices_per_round or 'all'} a round",
        "seed": scenario.seed,
        "devices": num_devices,
        "accuracy at the end": reached[-1] if reached else "-",
        "virtual time": f"{last.end_s:.6g} s",
        "crossed": readable_bytes(last.total_bytes),
        "energy on devices": f"{last.total_j:.6g} J",
        "devices lost, summed over rounds": sum(row.num_lost for row in rounds),
    }


def _curve(name: str, field: str, label: str, rounds: Sequence[RoundRow]) -> Plot:
    tested = [row for row in rounds if not math.isnan(row.accuracy)]
    trace = {
        "x": [getattr(row, field) for row in tested],
        "y": [row.accuracy for row in tested],
        "text": [f"round {row.server_round}" for row in tested],
        "mode": "lines+markers",
    }
    title = f"Accuracy on the server's test against {label}"
    return Plot(f"accuracy-by-{name}", title, [trace], label, "accuracy")


def _bytes_by_round(rounds: Sequence[RoundRow]) -> Plot:
    names = ("up_bytes", "down_bytes", "model_up_bytes", "model_down_bytes")
    traces = [
        {
            **{"type": "bar", "name": name.removesuffix("_bytes").replace("_", " ")},
            "x": [row.server_round for row in rounds],
            "y": [getattr(row, name) for row in rounds],
        }
        for name in names
    ]
    title = "Bytes that crossed in training, by round"
    stack = {"barmode": "stack"}
    return Plot("bytes-by-round", title, traces, "round", "bytes", stack)


def _time_by_tier(devices: Sequence[DeviceRow]) -> Plot:
    """Return the mean time of a tier's devices that took part, by what they did."""
    tiers = sorted({row.tier for row in devices if row.num_rounds})
    own = {t: [r for r in devices if r.tier == t and r.num_rounds] for t in tiers}
    traces = [
        {
            **{"type": "bar", "name": name.removesuffix("_s"), "x": tiers},
            "y": [sum(getattr(r, name) for r in own[t]) / len(own[t]) for t in tiers],
        }
        for name in _SPLIT
    ]
    title = "Where a device's time went: mean of a tier's devices that took part"
    stack = {"barmode": "stack"}
    return Plot("time-by-tier", title, traces, "tier", "virtual time (s)", stack)


def _gantt(timeline: Timeline, last: RoundRow) -> Plot:
    """Return the last round, a row a device, the server on top."""
    bars: dict[str, list[tuple[int, float, float]]] = {}
    for span in timeline.spans:
        if span.server_round == last.server_round:
            bar = span.device, span.start_s - last.start_s, span.seconds
            bars.setdefault(span.kind, []).append(bar)
    for wait in timeline.waits:
        if wait.server_round == last.server_round:
            bar = wait.device, wait.start_s - last.start_s, wait.end_s - wait.start_s
            bars.setdefault("wait", []).append(bar)
    took_part = sorted({bar[0] for own in bars.values() for bar in own})
    shown = took_part[: _MOST_DEVICES + 1]
    traces = []
    for kind in (name for name in _COLOURS if name in bars):
        own = [bar for bar in bars[kind] if bar[0] in shown]
        traces.append(
            {
                **{"type": "bar", "orientation": "h", "name": kind},
                "marker": {"color": _COLOURS[kind]},
                "y": [_label(timeline, bar[0]) for bar in own],
                "base": [bar[1] for bar in own],
                "x": [bar[2] for bar in own],
            }
        )
    title = f"Round {last.server_round}: who did what, and who waited"
    if len(shown) < len(took_part):
        title += f"; {_MOST_DEVICES} of {len(took_part) - 1} devices"
    labels = [_label(timeline, device) for device in reversed(shown)]
    layout = {
        "barmode": "overlay",
        "height": max(416, 60 + 24 * len(shown)),
        "yaxis": {"categoryorder": "array", "categoryarray": labels},
    }
    return Plot("gantt", title, traces, "virtual time in the round (s)", "", layout)


def _label(timeline: Timeline, device: int) -> str:
    if device == SERVER:
        return "server"
    return f"{device} {timeline.profiles[device].tier}"


def _places(devices: Sequence[DeviceRow]) -> Plot:
    """Return link rates by distance, or by device where there is no cell."""
    placed = not all(math.isnan(row.distance_m) for row in devices)
    traces = []
    for tier in sorted({row.tier for row in devices}):
        own = [row for row in devices if row.tier == tier]
        traces.append(
            {
                "x": [row.distance_m if placed else row.device for row in own],
                "y": [row.up_bit_per_s for row in own],
                "text": [f"device {row.device}" for row in own],
                **{"mode": "markers", "name": tier},
            }
        )
    return Plot(
        "places",
        "Where each device sat, and how fast its uplink was while all sent at once",
        traces,
        "distance to the base (m)" if placed else "device",
        "uplink (bit/s)",
    )
