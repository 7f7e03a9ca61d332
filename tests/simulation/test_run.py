"""The app under Flower's own command: a real run, its report, and what it refuses."""

import csv
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")
pytest.importorskip("plotly", reason="a report needs flwr-slfac[report]")

from simulation.__main__ import main
from simulation.errors import ScenarioError
from simulation.launch import config_of
from simulation.pictures import AGAINST
from simulation.run_folder import write_run
from simulation.scenario import SCENARIOS

from tests.browser import drawn_by
from tests.flower.harness import Flower, flower_in
from tests.simulation.in_process import train
from tests.simulation.ray_cluster import two_nodes

ROOT = Path(__file__).parents[2]
# A deadline that some keep and some do not, and the codec that needs most care.
OPTIONS: dict[str, Any] = {
    "codec": "waterfill(nrmse=0.1)",
    "more": "[deadline]\nstep_s = 0.09",
}
# What a run leaves that is a function of scenario and seed.
FILES = (
    *("report.html", "virtual-rounds.csv", "virtual-devices.csv", "spans.csv"),
    *("waits.csv", "trace.json", "accuracy-by-time.png"),
)


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Give Flower a home and ports of its own."""
    with flower_in(tmp_path_factory.mktemp("flower")) as started:
        yield started


def command(
    flower: Flower, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m simulation`` from the repository's root."""
    return subprocess.run(
        [sys.executable, "-m", "simulation", *words],
        cwd=ROOT,
        env={**flower.environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@dataclass
class Both:
    """A scenario run by Flower, and by the same parts in one process."""

    flower: Path
    in_process: Path
    log: str


@pytest.fixture(scope="module")
def both(flower: Flower, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Run a small scenario on two Ray actors, and in this process."""
    folder = tmp_path_factory.mktemp("run")
    own = train(folder, **OPTIONS)
    write_run(str(folder / "in-process"), own.virtual, own.strategy)
    output, scenario = folder / "flower", str(folder / "small.toml")
    done = command(flower, "run", scenario, "--output", str(output), "--cpus", "2")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    return Both(output, folder / "in-process", log)


@pytest.mark.flower
def test_ray_gives_the_report_of_one_process(both: Both) -> None:
    """On Ray with two actors and in one process all files are the same bytes."""
    for name in FILES:
        one, other = (folder / name for folder in (both.flower, both.in_process))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.flower
def test_a_run_tells_how_virtual_time_stands(both: Both) -> None:
    """The log has, for every round, a line of virtual time, accuracy and bytes."""
    rows = rows_of(both.flower / "virtual-rounds.csv")
    assert any(int(row["num_lost"]) for row in rows)
    for row in rows:
        line = (
            f"virtual {float(row['end_s']):.1f} s after round {row['server_round']}, "
            f"accuracy {float(row['accuracy']):.4f}, "
        )
        assert line in both.log


@pytest.mark.flower
def test_the_report_draws_what_the_tables_tell(both: Both, tmp_path: Path) -> None:
    """In a browser all plots are drawn, with the tables' numbers, and no complaint."""
    drawn, said = drawn_by(both.flower / "report.html", tmp_path)
    assert said == []
    for name, plot in drawn.items():
        assert plot["svg"], name
        assert plot["marks"], name
    rounds = rows_of(both.flower / "virtual-rounds.csv")
    for name, (field, _) in AGAINST.items():
        trace = drawn[f"accuracy-by-{name}"]["traces"][0]
        assert trace["x"] == [float(row[field]) for row in rounds]
        assert trace["y"] == [float(row["accuracy"]) for row in rounds]
    devices = rows_of(both.flower / "virtual-devices.csv")
    rates = [y for trace in drawn["places"]["traces"] for y in trace["y"]]
    assert sorted(rates) == sorted(float(row["up_bit_per_s"]) for row in devices)
    spans = rows_of(both.flower / "spans.csv")
    last = [row for row in spans if row["server_round"] == rounds[-1]["server_round"]]
    bars = {t["name"]: t["x"] for t in drawn["gantt"]["traces"]}
    for kind in {row["kind"] for row in last}:
        own = [row for row in last if row["kind"] == kind]
        took = [float(row["end_s"]) - float(row["start_s"]) for row in own]
        assert sorted(bars[kind]) == sorted(took)


@pytest.mark.flower
def test_two_ray_nodes_give_the_report_of_one_process(
    both: Both, tmp_path: Path
) -> None:
    """On a cluster whose first node has no core, the second trains the same bytes."""
    scenario = str(both.in_process.parent / "small.toml")
    output = tmp_path / "run"
    words = ("run", scenario, "--output", str(output))
    # A SuperLink keeps the environment that it was started with.
    with flower_in(tmp_path / "flower") as own, two_nodes() as (address, logs):
        done = command(own, *words, RAY_ADDRESS=address)
        drivers = list(logs.glob("python-core-driver-*"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert drivers
    for name in FILES:
        assert (output / name).read_bytes() == (both.flower / name).read_bytes(), name


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["run", "nowhere.toml"], r"nowhere.toml cannot be read"),
        (["run", "quick", "--set", "codec=identity"], r"'codec=identity' is no KEY"),
        (
            ["run", "quick", "--set", "cut=layer9"],
            r"quick.toml:\d+: training.cut is 'la",
        ),
        (["run", "quick", "--set", "scheme=fast"], r"run configuration: scheme 'fast'"),
        (["compare", "quick", "--settings", "a=1"], r"settings 'a=1' have no name"),
        (["run", "quick", "--set", "device-cuts=best"], r"device_cuts is 'best'"),
    ],
)
def test_what_cannot_be_run_is_refused_before(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that would fail is refused with its reason before Flower is started."""
    assert main(words) == 1
    assert re.search(reason, capsys.readouterr().err)


def test_devices_that_do_not_wait_are_for_the_clock_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scenario whose devices go on as they are served is refused before it trains."""
    path = tmp_path / "t.toml"
    text = (SCENARIOS / "quick.toml").read_text()
    path.write_text(text.replace("[training]", '[training]\nwaits = "arrival"', 1))
    assert main(["run", str(path)]) == 1
    assert "training.waits is 'arrival'" in capsys.readouterr().err


def test_a_device_that_holds_no_front_is_refused(tmp_path: Path) -> None:
    """A device too small for any legal cut, or for this one, is named with its line."""
    path = tmp_path / "t.toml"
    text = (SCENARIOS / "quick.toml").read_text()
    tiers = "{ raspberry-pi-4 = 2.0, raspberry-pi-5 = 1.0, jetson-nano = 1.0 }"
    assert tiers in text
    path.write_text(text.replace(tiers, "{ microcontroller = 1.0 }"))
    line = next(
        number
        for number, each in enumerate(text.splitlines(), start=1)
        if each.startswith("tiers")
    )
    where = rf"t.toml:{line}: devices.tiers.microcontroller can hold no legal cut: dev"
    with pytest.raises(ScenarioError, match=where):
        config_of(str(path), {"batch-size": 4096})
    # The smashed data of a first layer fit, the weights of the last do not.
    with pytest.raises(
        ScenarioError, match=r"t.toml:\d+: training.cut is 'layer3', wh"
    ):
        config_of(str(path), {"cut": "layer3", "batch-size": 64})


def test_data_that_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    """Inputs of another shape than the model's are named before training."""
    path = tmp_path / "t.toml"
    text = (SCENARIOS / "quick.toml").read_text()
    own = text.replace("digits_resnet", "small_resnet").replace(
        "[1, 8, 8]", "[3, 8, 8]"
    )
    path.write_text(own)
    where = r"t.toml:\d+: model.input_shape is \(3, 8, 8\), and digits has \(1, 8, 8\)"
    with pytest.raises(ScenarioError, match=where):
        config_of(str(path), {})
