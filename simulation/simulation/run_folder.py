"""Everything that a run leaves: tables, a page, pictures, a trace for Perfetto."""

import tempfile
from pathlib import Path

from flwr_slfac import SplitFed
from flwr_slfac.report import write_page
from simulation.clock import Span, Wait, write_trace
from simulation.pictures import write_pictures
from simulation.report_page import report_page
from simulation.results import DeviceRow, RoundRow
from simulation.row_files import write_rows
from simulation.virtual import VirtualTime


def write_run(folder: str, virtual: VirtualTime, strategy: SplitFed) -> Path:
    """Write all files of a run; return its folder.

    ``report.html``, ``virtual-rounds``, ``virtual-devices``, ``spans`` and ``waits`` as
    CSV (and Parquet), ``trace.json``, pictures where matplotlib is at hand: all a
    function of scenario and seed. What `SplitFed.write` leaves has wall times, too.

    Parameters
    ----------
    folder : str
        Where to; empty for a new temporary folder.
    virtual : VirtualTime
        The clock and what it has seen.
    strategy : SplitFed
        What has trained.
    """
    path = Path(folder or tempfile.mkdtemp(prefix="simulation-"))
    path.mkdir(parents=True, exist_ok=True)
    strategy.write(path)
    timeline, devices = virtual.clock.timeline, virtual.devices()
    write_rows(path / "virtual-rounds", RoundRow, virtual.rounds)
    write_rows(path / "virtual-devices", DeviceRow, devices)
    write_rows(path / "spans", Span, timeline.spans)
    write_rows(path / "waits", Wait, timeline.waits)
    write_trace(timeline, path / "trace.json")
    page = report_page(virtual.scenario, virtual.rounds, devices, timeline)
    write_page(path / "report.html", page)
    write_pictures(path, virtual.rounds)
    return path
