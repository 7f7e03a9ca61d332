"""How a run stands is told while it runs, and rightly."""

import logging
import socket
import threading
import time
import urllib.request
from typing import Any

import pytest

from flwr_slfac import RoundReport, SettingError, StatusPage, Traffic
from flwr_slfac.progress import lines_of
from flwr_slfac.split import DeviceHalf
from flwr_slfac.status import DeviceStatus, RunStatus, Status
from flwr_slfac.status.__main__ import main, read_page
from flwr_slfac.transport import Reply, Request
from tests.resumable import Case, assert_same_run
from tests.split.builders import devices, halves
from tests.transport.loopback import answer_with, linked


def fetched(port: int) -> Status:
    """Return what the page of a run says."""
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as page:
        return read_page(page.read().decode())


class Reader:
    """Reads a page over and over in a thread, and at each round's end."""

    def __init__(self, page: StatusPage) -> None:
        self.page = page
        self.seen: list[Status] = []
        self.at_rounds: list[tuple[Status, RoundReport]] = []
        self.errors: list[Exception] = []
        self._over = threading.Event()

    def on_start(self, strategy: Any) -> None:
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        while not self._over.is_set():
            try:
                self.seen.append(fetched(self.page.port))
            except Exception as error:
                self.errors.append(error)

    def on_round(self, report: RoundReport) -> None:
        self.at_rounds.append((fetched(self.page.port), report))

    def on_end(self) -> None:
        self._over.set()
        self.thread.join()


def test_a_page_tells_how_a_run_stands_and_changes_nothing() -> None:
    """Read without pause, it agrees with the reports, and the bits stay the same."""
    page = StatusPage(port=0)
    reader = Reader(page)
    watched = Case().run(callbacks=(page, reader))
    assert not reader.errors
    assert len(reader.seen) > 10
    assert {status.phase for status in reader.seen} <= {"between", "train", "evaluate"}
    assert any(status.phase == "train" and status.devices for status in reader.seen)
    for status, report in reader.at_rounds:
        assert (status.server_round, status.num_rounds) == (report.server_round, 4)
        assert status.left_s is not None
    rows = watched.split.traffic.rows()
    last, _ = reader.at_rounds[-1]
    for direction in {row.direction for row in rows}:
        total = watched.split.traffic.num_bytes(directions=(direction,))
        assert last.total_bytes[direction] == total
    # What a page tells of metrics is of the rounds before the one that ends just now.
    assert last.metrics["train/loss"] == reader.at_rounds[-1][1].loss
    assert_same_run(watched, Case().run())


def test_a_page_is_closed_when_a_run_fails() -> None:
    """The port is free again."""
    page = StatusPage(port=0)
    reader = Reader(page)
    broken = Case().run(callbacks=(page, reader), breaks_off_in=2)
    assert broken.result is None
    assert not reader.thread.is_alive()
    port = reader.at_rounds and page.port
    assert port == 0


def test_a_page_reads_back_as_what_it_was_made_of() -> None:
    """Names, numbers, devices that are away or late: nothing is lost on the way."""
    two = (
        DeviceStatus(0, True, 2.5, {"up": 10, "down": 4}),
        DeviceStatus(7, False, None, {"up": 5}),
    )
    status = Status(
        *(3, 9, "train", 4, 20, two),
        num_bytes={"up": 15, "down": 4},
        total_bytes={"up": 115, "down": 40},
        left_s=61.5,
        metrics={"train/loss": 0.25},
    )

    class Fixed(RunStatus):
        def now(self) -> Status:
            return status

    class Run:
        status = Fixed(Traffic(), [])

    page = StatusPage(port=0)
    page.on_start(Run())
    try:
        assert fetched(page.port) == status
    finally:
        page.on_end()


def test_settings_of_a_page_are_checked() -> None:
    """A port that is none, or is taken, is named before the first round."""
    for port in (-1, 2**16, True, "80"):
        with pytest.raises(SettingError, match="port is"):
            StatusPage(port=port)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"cannot listen at 127.0.0.1:{port}"):
            Case().run(callbacks=(StatusPage(port=port),))


def test_a_terminal_shows_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The devices of the round are listed; where no run is, this is said."""
    page = StatusPage(port=0)

    class Looks:
        def on_round(self, report: RoundReport) -> None:
            assert main([f"127.0.0.1:{page.port}", "--once"]) == 0

    Case(num_rounds=2).run(callbacks=(page, Looks()))
    out = capsys.readouterr().out
    assert "round 2/2" in out
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main([f"127.0.0.1:{port}"]) == 1
    assert "does the run have a StatusPage" in capsys.readouterr().err


def test_a_log_gets_lines_while_nothing_else_happens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a terminal a line comes every so often, and none after the end."""
    status = RunStatus(Traffic(), [])
    status.num_rounds = 5
    with caplog.at_level(logging.INFO, "flwr"):
        with lines_of(status, every_s=0.01):
            deadline = time.monotonic() + 20
            while len(caplog.messages) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
        said = len(caplog.messages)
        time.sleep(0.05)
    assert len(caplog.messages) == said >= 3
    assert caplog.messages[0] == "round 0/5, between, 0 devices, time left unknown"


def test_who_is_waited_for_is_told() -> None:
    """A device that computes is seen as asked and connected, then as not asked."""
    asked, go_on = threading.Event(), threading.Event()
    front, _ = halves()
    half = DeviceHalf(devices(front, [16])[0], 0)
    reply = answer_with(half)

    def slow(request: Request) -> Reply:
        asked.set()
        assert go_on.wait(30)
        return reply(request)

    with linked({0: slow}) as (link, _):
        found: list[Any] = []
        link.devices([1000])
        trainer = threading.Thread(
            target=lambda: found.append(link.describe([1000], channels=False))
        )
        trainer.start()
        assert asked.wait(30)
        seen = link.look()[1000]
        assert (seen.device, seen.connected) == (0, True)
        assert seen.asked_at is not None
        go_on.set()
        trainer.join(30)
        assert link.look()[1000].asked_at is None
    assert link.look() == {}


def test_a_line_names_who_is_late_and_who_is_away() -> None:
    """The longest wait first, three at most."""
    six = tuple(DeviceStatus(i, i != 3, float(i)) for i in range(6))
    line = Status(1, 2, "train", 3, 0, six, {"up": 1_000}, left_s=3661.0).line()
    assert line == (
        "round 1/2, train step 3, 6 devices (1 away: 3), up 1.0 kB, "
        "waiting for 5 (5 s) 4 (4 s) 3 (3 s) and 1 more, 1:01:01 left"
    )
