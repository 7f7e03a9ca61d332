"""A run's status in a terminal: ``python -m flwr_slfac.status [HOST:PORT]``.

Reads the page of a `StatusPage`; on another host, forward its port over ssh:
``ssh -L 9464:127.0.0.1:9464 host``.
"""

import argparse
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from flwr_slfac.report import readable_bytes
from flwr_slfac.status.page import DEFAULT_PORT
from flwr_slfac.status.status import DeviceStatus, Status, summed

_TIMEOUT_S = 5.0


def read_page(text: str) -> Status:
    """Return the status that a page of metrics tells."""
    from prometheus_client.parser import text_string_to_metric_families

    samples = [
        (sample.name.removeprefix("slfac_"), sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    plain = {name: value for name, labels, value in samples if not labels}
    phases = [w["phase"] for n, w, v in samples if n == "phase" and v]
    total = {w["direction"]: int(v) for n, w, v in samples if n == "bytes_total"}
    waiting = {w["device"]: v for n, w, v in samples if n == "device_waiting_seconds"}
    crossed: dict[str, dict[str, int]] = {}
    for name, labels, value in samples:
        if name == "device_bytes":
            crossed.setdefault(labels["device"], {})[labels["direction"]] = int(value)
    devices = tuple(
        DeviceStatus(
            int(labels["device"]),
            bool(value),
            waiting.get(labels["device"]),
            crossed.get(labels["device"], {}),
        )
        for name, labels, value in samples
        if name == "device_connected"
    )
    return Status(
        int(plain["round"]),
        int(plain["rounds"]),
        phases[0],  # type: ignore[arg-type]
        int(plain["step"]),
        int(plain["steps"]),
        devices,
        num_bytes=summed(crossed.values()),
        total_bytes=total,
        left_s=plain.get("left_seconds"),
        metrics={w["name"]: v for n, w, v in samples if n == "metric"},
    )


def table_of(status: Status) -> Table:
    """Return a status as a table, a line a device."""
    table = Table(title=status.line(), title_justify="left")
    table.add_column("device", justify="right")
    table.add_column("stream")
    table.add_column("waited for", justify="right")
    directions = sorted({d for each in status.devices for d in each.num_bytes})
    for direction in directions:
        table.add_column(direction, justify="right")
    for device in status.devices:
        wait = device.waiting_s
        table.add_row(
            str(device.device),
            "open" if device.connected else "away",
            "" if wait is None else f"{wait:.1f} s",
            *(readable_bytes(device.num_bytes.get(d, 0)) for d in directions),
        )
    table.caption = ", ".join(
        f"{name} {value:.4g}"
        for name, value in status.metrics.items()
        if not name.startswith("traffic/")
    )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Show a run's status until it ends; return 0, or 1 if there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m flwr_slfac.status", description="a run's status in a terminal"
    )
    parser.add_argument("page", nargs="?", default=f"127.0.0.1:{DEFAULT_PORT}")
    parser.add_argument("--every", type=float, default=1.0, help="seconds (default: 1)")
    parser.add_argument("--once", action="store_true", help="show it once")
    known = parser.parse_args(argv)
    url = f"http://{known.page}/metrics"
    console = Console()
    try:
        status = _fetch(url)
    except OSError as error:
        print(
            f"no status at {url}: {error}; does the run have a StatusPage among its "
            "callbacks?",
            file=sys.stderr,
        )
        return 1
    if known.once:
        console.print(table_of(status))
        return 0
    with Live(table_of(status), console=console) as live:
        while True:
            time.sleep(known.every)
            try:
                live.update(table_of(_fetch(url)))
            except KeyboardInterrupt:
                return 0
            except OSError:
                break
    console.print("The run is over.")
    return 0


def _fetch(url: str) -> Status:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as page:
        return read_page(page.read().decode())


if __name__ == "__main__":
    sys.exit(main())
