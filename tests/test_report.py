"""The page of a run: whole in one file, the same bytes, the numbers of the run."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("plotly", reason="a page needs flwr-slfac[report]")

from flwr_slfac import RoundReport, Traffic
from flwr_slfac.history import History
from flwr_slfac.report import Page, Plot, Table, run_page, write_page
from flwr_slfac.report.__main__ import main
from tests.browser import drawn_by


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fill a folder as `SplitFed.write` does."""
    history = History()
    for number in (1, 2, 3):
        for device in range(3):
            for direction, size in (("up", 100), ("down", 50), ("model-up", 30)):
                num_bytes = size * (device + 1) * number
                history.traffic.add(
                    number,
                    device,
                    "train",
                    direction,
                    num_bytes=num_bytes,
                    raw_bytes=8 * num_bytes,
                )
        lost = {2: "late"} if number == 2 else {}
        report = RoundReport(number, 3 - len(lost), lost, loss=1 / number)
        report.count(history.traffic)
        report.central = {"accuracy": 1 - 0.5 / number} if number > 1 else {}
        history.reports.append(report)
    history.write(tmp_path)
    return tmp_path


def figures(path: Path) -> dict[str, dict[str, list[dict[str, list[float]]]]]:
    """Return what a page tells Plotly to draw."""
    found = re.search(r'id="figures">(.*?)</script>', path.read_text())
    assert found
    return json.loads(found[1])


def test_a_page_tells_what_the_files_tell(folder: Path) -> None:
    """Bytes by round and device, loss and accuracy are those of the run's files."""
    assert main([str(folder)]) == 0
    own = figures(folder / "report.html")
    traffic = Traffic()
    traffic.restore(json.loads((folder / "traffic.json").read_text()))
    by_round = own["bytes-by-round"]["data"]
    for trace in by_round:
        for number, num_bytes in zip(trace["x"], trace["y"], strict=True):
            directions = [trace["name"]]
            assert num_bytes == traffic.num_bytes(
                server_round=number, directions=directions
            )
    by_device = own["bytes-by-device"]["data"][0]
    assert sum(by_device["y"]) == traffic.num_bytes()
    assert own["accuracy-by-bytes"]["data"][0]["y"] == [None, 0.75, 1 - 0.5 / 3]
    assert own["accuracy-by-bytes"]["data"][0]["x"][-1] == traffic.num_bytes()
    assert own["learning"]["data"][0]["y"] == [1, 1 / 2, 1 / 3]


def test_the_same_run_gives_the_same_bytes(folder: Path) -> None:
    """A page is a function of its folder, and names nothing outside itself."""
    assert main([str(folder), "--output", str(folder / "a.html")]) == 0
    assert main([str(folder), "--output", str(folder / "b.html")]) == 0
    page = (folder / "a.html").read_bytes()
    assert page == (folder / "b.html").read_bytes()
    own = re.sub(rb"<script>\s*/\*\*.*?</script>", b"", page, flags=re.DOTALL)
    assert len(own) < 10_000
    assert not re.findall(rb"(?:src|href)=|https?://|@import", own)


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that no run has filled, or with other files, is named, with no trace."""
    assert main([str(tmp_path)]) == 1
    assert "is no folder of a run (FileNotFoundError" in capsys.readouterr().err
    (tmp_path / "rounds.json").write_text('[{"round": 1}]')
    (tmp_path / "traffic.csv").write_text("device\n1\n")
    assert main([str(tmp_path)]) == 1
    assert "is no folder of a run (KeyError" in capsys.readouterr().err


def test_no_text_ends_its_script(tmp_path: Path) -> None:
    """Names with HTML in them stay text, in the page and in its data."""
    evil = "</script><script>alert(1)</script>"
    trace = {"x": [1], "y": [float("nan")], "name": evil}
    parts = [Plot("p", evil, [trace]), Table(evil, [evil], [[evil]])]
    write_page(tmp_path / "p.html", Page(evil, {evil: evil}, parts))
    assert "<script>alert" not in (tmp_path / "p.html").read_text()
    own = figures(tmp_path / "p.html")["p"]["data"][0]
    assert own["name"] == evil
    assert own["y"] == [None]


def test_the_page_is_drawn(folder: Path) -> None:
    """In a browser every plot is drawn, with the files' numbers, and no complaint."""
    write_page(folder / "report.html", run_page(folder))
    drawn, said = drawn_by(folder / "report.html", folder)
    assert said == []
    own = figures(folder / "report.html")
    assert drawn.keys() == own.keys()
    for name, plot in drawn.items():
        assert plot["svg"], name
        assert plot["marks"], name
        for trace, told in zip(plot["traces"], own[name]["data"], strict=True):
            assert [str(x) for x in trace["x"]] == [str(x) for x in told["x"]]
            assert trace["y"] == told["y"]
