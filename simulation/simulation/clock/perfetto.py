"""A timeline as a file for Perfetto (ui.perfetto.dev) and chrome://tracing."""

import json
from pathlib import Path
from typing import Any

from simulation.clock.timeline import SERVER, Timeline


def trace_events(timeline: Timeline) -> dict[str, Any]:
    """Return a timeline in the Trace Event Format of Chrome.

    Every device and the server is a thread; a span is a complete event (``"X"``), with
    time in microseconds; a wait is a span named ``wait``.

    Parameters
    ----------
    timeline : Timeline
        Of a run.
    """
    events: list[dict[str, Any]] = []
    for span in timeline.spans:
        args: dict[str, Any] = {"round": span.server_round, "step": span.step}
        args |= {"bytes": span.num_bytes} if span.num_bytes else {}
        args |= {} if span.complete else {"broken off": True}
        event = _event(span.device, span.kind, span.start_s, span.end_s)
        events.append({**event, "args": args})
    for wait in timeline.waits:
        event = _event(wait.device, "wait", wait.start_s, wait.end_s)
        awaited = _name(timeline, wait.awaited)
        args = {"for": awaited, "round": wait.server_round, "step": wait.step}
        events.append({**event, "args": args})
    # Perfetto nests events of a thread by time; the order of the file must not matter.
    events.sort(key=lambda event: (event["ts"], -event["dur"]))
    for device in sorted({event["tid"] for event in events}):
        name = {"name": _name(timeline, device)}
        events.append(
            {"ph": "M", "pid": 0, "tid": device, "name": "thread_name", "args": name}
        )
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _event(device: int, name: str, start_s: float, end_s: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": 0,
        "tid": device,
        "name": name,
        "ts": start_s * 1e6,
        "dur": (end_s - start_s) * 1e6,
    }


def _name(timeline: Timeline, device: int) -> str:
    if device == SERVER:
        return "server"
    return f"{device} {timeline.profiles[device].tier}"


def write_trace(timeline: Timeline, path: Path) -> None:
    """Write `trace_events` as JSON."""
    path.write_text(json.dumps(trace_events(timeline)), encoding="utf-8")
