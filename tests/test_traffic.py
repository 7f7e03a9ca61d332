"""The ledger adds up, and can be written."""

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from flwr_slfac import RoundReport, TensorBoard, Traffic
from flwr_slfac.report import readable_bytes, table_head
from flwr_slfac.split import train_locally
from flwr_slfac.split.local import LocalLink
from tests.split import builders


def ledger() -> Traffic:
    """Return a ledger of two rounds and two devices."""
    traffic = Traffic()
    for server_round in (1, 2):
        for device in (0, 1):
            place = (server_round, device, "train")
            traffic.add(*place, "up", num_bytes=100, raw_bytes=400, seconds=0.5)
            traffic.add(*place, "up", num_bytes=50, raw_bytes=400, seconds=0.25)
            traffic.add(*place, "down", num_bytes=10 * server_round, raw_bytes=80)
    return traffic


def test_sums_by_round_direction_and_phase() -> None:
    """Totals of any selection are the sums of its entries."""
    traffic = ledger()
    assert traffic.num_bytes() == 4 * 150 + 2 * 10 + 2 * 20
    assert traffic.num_bytes(server_round=2, directions=("down",)) == 40
    assert traffic.num_bytes(phase="evaluate") == 0
    assert [c.num_messages for c in traffic.rows(directions=("up",))] == [2] * 4
    assert traffic.rows(server_round=1)[1].seconds == 0.75


def test_ratio_is_raw_over_crossed() -> None:
    """The ratio counts smashed data alone, and is NaN where nothing crossed."""
    traffic = ledger()
    traffic.add(1, 0, "train", "model-up", num_bytes=10**9)
    assert traffic.compression_ratio(server_round=1) == 2 * 880 / (2 * 160)
    assert math.isnan(traffic.compression_ratio(server_round=9))


def test_files_hold_every_entry(tmp_path: Path) -> None:
    """CSV and JSON hold the same rows, in the ledger's order."""
    traffic = ledger()
    table, entries = traffic.write(tmp_path / "new" / "traffic")
    want = [asdict(c) for c in traffic.rows()]
    assert json.loads(entries.read_text()) == want
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [{k: str(v) for k, v in row.items()} for row in want]


def test_counted_bytes_are_the_frames_that_crossed() -> None:
    """Bytes up, down and of targets equal the lengths seen on the link."""
    seen = {"up": 0, "down": 0, "targets": 0}

    class Watching(LocalLink):
        def train(self, requests):
            answers = super().train(requests)
            seen["down"] += sum(len(r.gradient or b"") for r in requests.values())
            for answer in answers.values():
                if answer.smashed:
                    seen["up"] += len(answer.smashed.activations)
                    seen["targets"] += len(answer.smashed.targets)
            return answers

    front, back = builders.halves()
    result = train_locally(
        builders.devices(front, [20, 10]),
        front.state_dict(),
        builders.server(back),
        num_rounds=2,
        make_link=Watching,
    )
    counted = {
        d: result.traffic.num_bytes(phase="train", directions=(d,)) for d in seen
    }
    assert counted == seen


def test_a_line_fits_its_head() -> None:
    """The table's head and lines are equally wide, with and without evaluation."""
    report = RoundReport(3, 5, {7: "gone"}, 0.25, {"loss": 0.5, "accuracy": 0.75})
    for line in (report.line(), RoundReport(1, 2, {}, 1.0).line()):
        assert len(line) == len(table_head())


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB")]
)
def test_readable_bytes(num_bytes: float, text: str) -> None:
    """Bytes are shown in decimal units."""
    assert readable_bytes(num_bytes) == text


def test_tensorboard_gets_every_round(tmp_path: Path) -> None:
    """The TensorBoard callback writes losses, metrics and bytes that can be read."""
    event = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    board = TensorBoard(tmp_path)
    for server_round in (1, 2):
        report = RoundReport(server_round, 2, {}, 1.0 / server_round, {"accuracy": 0.5})
        report.count(ledger())
        board.on_round(report)
    events = event.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.value for e in events.Scalars("train/loss")] == [1.0, 0.5]
    assert [e.value for e in events.Scalars("traffic/up_bytes")] == [300.0, 300.0]
    assert events.Scalars("evaluate/accuracy")[1].step == 2


def test_old_rounds_in_a_file_are_as_good_as_in_memory() -> None:
    """Whatever is asked of a ledger that put rounds away is what another one says."""
    small, large = Traffic(rounds_in_memory=2), Traffic()
    for traffic in (small, large):
        for server_round in (1, 2, 3, 5, 4, 1, 6, 2):
            for device in (1, 0):
                place = (server_round, device, "train")
                traffic.add(*place, "up", num_bytes=server_round, raw_bytes=device)
                traffic.add(*place, "down", num_bytes=7)
            traffic.add_seconds(server_round, 0, "evaluate", "up", 0.5)
    assert small.rows() == large.rows()
    assert small.rows(server_round=1, device=0) == large.rows(server_round=1, device=0)
    assert small.num_bytes(directions=("up",)) == large.num_bytes(directions=("up",))
    assert small.compression_ratio(phase="train") == large.compression_ratio(
        phase="train"
    )
