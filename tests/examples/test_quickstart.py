"""The first thing that a user runs: the quickstart, by the README's command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flower.harness import Flower

ROOT = Path(__file__).parents[2]
NODES = "num-supernodes=5 client-resources-num-cpus=1 init-args-num-cpus=2"


def run(flower: Flower, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the quickstart as the README does."""
    command = [sys.executable, "-m", "flwr_slfac.run", f"{ROOT}/examples/quickstart"]
    return subprocess.run(
        [*command, "--federation-config", NODES, *options],
        env=flower.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.flower
def test_quickstart_reaches_95_percent(flower: Flower, tmp_path: Path) -> None:
    """Both evaluations reach 95 % in a tenth of the bytes or less, a line a round."""
    done = run(flower, "--run-config", f"output-folder='{tmp_path}'")
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert done.returncode == 0, log[-3000:] + done.stderr
    federated, central = (
        [float(x) for x in re.findall(rf"{start}.*'accuracy': ([0-9.]+)", log)]
        for start in (r"Aggregated MetricRecord: \{'loss'", r"> MetricRecord: ")
    )
    assert len(federated) == len(central) == 8
    assert federated[-1] >= 0.95
    assert central[-1] >= 0.95
    assert abs(federated[-1] - central[-1]) < 0.03
    ratios = [float(x) for x in re.findall(r"\d+ +5 .* (\d+\.\d)x ", log)]
    assert len(ratios) == 8
    assert min(ratios) > 10
    rows = json.loads((tmp_path / "traffic.json").read_text())
    assert {row["server_round"] for row in rows} == set(range(1, 9))
    rounds = json.loads((tmp_path / "rounds.json").read_text())
    assert [r["evaluation"]["accuracy"] for r in rounds] == federated
    for report in rounds:
        mine = [r for r in rows if r["server_round"] == report["server_round"]]
        assert sum(r["num_bytes"] for r in mine) == sum(report["num_bytes"].values())


@pytest.mark.flower
def test_a_failed_run_has_a_failed_status(flower: Flower) -> None:
    """A run that Flower itself ends with 0 ends with 1 here, and says why."""
    done = run(flower, "--run-config", "cut='layer9'")
    assert done.returncode == 1
    assert "finished:failed" in done.stderr
    assert "layer9" in done.stdout
    assert "layer1" in done.stdout  # the nearest name is offered
