"""What a lock-step over ten simulated devices costs besides the devices' computing.

Usage: python tests/bench/overhead_in_simulation.py [--rounds 3]

Runs the quickstart's model over ten devices through `flwr run` on two Ray actors, and
prints for each round: wall time per step, the devices' own computing per step on two
actors, and the difference, which is Flower's messages, the codec and the server.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.flower.harness import flower_in

ROOT = Path(__file__).parents[2]
NODES = "num-supernodes=10 client-resources-num-cpus=1 init-args-num-cpus=2"
NUM_ACTORS = 2


def main() -> None:
    """Print the overhead per step of every round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, flower_in(Path(folder)) as flower:
        config = f"num-rounds={options.rounds} output-folder='{folder}'"
        done = subprocess.run(
            [sys.executable, "-m", "flwr_slfac.run", f"{ROOT}/examples/quickstart",
             "--federation-config", NODES, "--run-config", config],
            env=flower.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout[-3000:]) + done.stderr)
        rows = json.loads((Path(folder) / "rounds.json").read_text())
    print(
        f"{'round':>5} {'steps':>5} {'wall s':>8} {'compute s':>9} {'overhead s':>10}"
    )
    for row in rows:
        steps = row["num_steps"]
        wall = row["train_s"] / steps
        compute = row["compute_s"] / steps / NUM_ACTORS
        print(f"{row['server_round']:>5} {steps:5d} {wall:8.3f} {compute:9.3f} "
              f"{wall - compute:10.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
