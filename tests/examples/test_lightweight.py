"""The lightweight example on a folder of images, by its public door."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.flower.harness import Flower

ROOT = Path(__file__).parents[2]
NODES = "num-supernodes=3 client-resources-num-cpus=1 init-args-num-cpus=2"


def run(flower: Flower, cache: Path, options: str) -> subprocess.CompletedProcess[str]:
    """Run the example as the README does."""
    command = [sys.executable, "-m", "flwr_slfac.run", f"{ROOT}/examples/lightweight"]
    environment = {**flower.environment(), "HF_HOME": str(cache)}
    environment.pop("SLFAC_DATA_DIR", None)
    return subprocess.run(
        [*command, "--federation-config", NODES, "--run-config", options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.flower
def test_a_folder_of_images_trains_with_every_reduction(
    flower: Flower, tmp_path: Path
) -> None:
    """Weak devices do a quarter of the work; what each one spends is written down."""
    rng = np.random.default_rng(0)
    for label in ("dark", "light"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(120):
            low = 128 * (label == "light")
            pixels = rng.integers(low, low + 128, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    options = (
        f"data='{tmp_path}/images' output-folder='{tmp_path}/out' width=4 "
        "num-images=0 num-rounds=3 prune=0.0 prune-weak=0.5"
    )
    done = run(flower, tmp_path / "cache", options)
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert done.returncode == 0, log[-3000:] + done.stderr
    rows = json.loads((tmp_path / "out" / "devices.json").read_text())
    assert [(r["server_round"], r["device"]) for r in rows] == [
        (number, device) for number in (1, 2, 3) for device in (0, 1, 2)
    ]
    for row in rows:
        share = row["step"]["forward_flops"] / row["step"]["plain_forward_flops"]
        assert share == 1.0 if row["device"] != 1 else 0.2 < share < 0.4
    assert "of plain" in log


@pytest.mark.flower
def test_images_that_are_not_there_are_named(flower: Flower, tmp_path: Path) -> None:
    """Without data the run fails at once and says what to set."""
    done = run(flower, tmp_path / "cache", "data='/no/such/folder'")
    assert done.returncode == 1
    assert "'/no/such/folder', and there is no such file" in done.stdout
