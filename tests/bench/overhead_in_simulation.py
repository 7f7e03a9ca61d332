"""What a lock-step over ten simulated devices costs besides computing.

Usage: python -m tests.bench.overhead_in_simulation [--rounds 2] [--codec identity]

A full-width ResNet-18 on MNIST (``SLFAC_DATA_DIR``), cut after its first stage, over ten
devices of the simulation's app on two Ray actors. Beside the wall time of a round's
training stand the devices' own computing, as they tell it, over two actors, and the
server's, which is that of the same steps in one process without devices' and codecs'
time. The quotient is what messages, records, codecs and the clock come to.
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
