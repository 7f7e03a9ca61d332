"""The deployment example does what its page says."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "deployment" / "run.py"


def deploy(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the script."""
    words = (sys.executable, str(SCRIPT), "--folder", str(folder), *arguments)
    root = str(SCRIPT.parents[2])
    return subprocess.run(
        words, env={**os.environ, "PYTHONPATH": root}, text=True, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def living(folder: Path) -> list[str]:
    """Return processes whose Flower is in the folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (each / "environ").read_bytes():
                found.append((each / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found


@pytest.mark.flower
def test_the_quickstart_runs_on_known_nodes_over_tls(tmp_path: Path) -> None:
    """It trains over streams, and leaves no process behind."""
    folder = tmp_path / "deployed"
    output = tmp_path / "out"
    output.mkdir()
    config = f'num-rounds=2 epochs=1 output-folder="{output}"'
    done = deploy(folder, "--run-config", config)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "finished:completed" in done.stdout
    assert (output / "rounds.json").exists()
    # A session in the two nodes' logs, and steps in no other message.
    for number in range(2):
        log = (folder / f"supernode{number}.log").read_text()
        assert log.count("train.stream") >= 1
        assert "train.step" not in log
    assert (folder / "server.key").stat().st_mode & 0o077 == 0
    # What a SuperNode starts for itself ends when it sees that its parent is gone.
    deadline = time.monotonic() + 60
    while living(folder) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not living(folder)


def test_wrong_arguments_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """One node, which FedAvg would wait with for ever, and a folder in use."""
    few = deploy(tmp_path / "new", "--supernodes", "1")
    assert few.returncode == 2
    assert "2 or more" in few.stdout
    (tmp_path / "file").touch()
    used = deploy(tmp_path)
    assert used.returncode == 2
    assert "not empty" in used.stdout
