"""What a lock-step over ten simulated devices costs besides computing.

Usage: python -m tests.bench.overhead_in_simulation [--rounds 2] [--codec identity]

A full-width ResNet-18 on MNIST (``SLFAC_DATA_DIR``), cut after its first stage, over
ten devices of the simulation's app on two Ray actors. Beside the wall time of a round's
training stand the devices' own computing, as they tell it, over two actors, and the
server's, steps of as many batches measured on their own. The quotient is what messages,
records, codecs and the clock come to.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD

from flwr_slfac import cut
from flwr_slfac.split import Batch, ServerHalf
from tests.flower.harness import flower_in
from tests.models import resnet18

ROOT = Path(__file__).parents[2]
DEVICES, ACTORS, STEPS, BATCH, CUT = 10, 2, 4, 32, "layer1"
SCENARIO = """name = "overhead"
seed = 1

[training]
num_rounds = {rounds}
num_steps = {steps}
batch_size = {batch}
cut = "{cut}"
codec_up = "{codec}"
codec_down = "{codec}"
evaluate_every = 1000

[model]
build = "tests.bench.overhead_in_simulation:mnist_resnet18"
input_shape = [1, 28, 28]

[data]
source = "$SLFAC_DATA_DIR/mnist"
partition = "iid"
test_share = 0.001

[devices]
count = {devices}
tiers = {{ raspberry-pi-5 = 1.0 }}

[server]
flop_per_s = 29e12

[channel]
kind = "plain"
up_bit_per_s = 1e8
down_bit_per_s = 1e8
"""


def mnist_resnet18() -> nn.Module:
    """Return a full-width ResNet-18 on MNIST's images."""
    return resnet18(in_channels=1)


def server_s() -> float:
    """Return the seconds of the server's part of a step, one thread."""
    halves = cut(mnist_resnet18(), at=CUT)
    server = ServerHalf(halves.back, CrossEntropyLoss(), partial(SGD, lr=0.1))
    with torch.no_grad():
        smashed = halves.front(torch.randn(BATCH, 1, 28, 28))
    targets = torch.randint(0, 10, (BATCH,))
    server.begin_round(1, 0)
    taken = []
    for step in range(4):
        batches = {d: Batch(smashed.clone(), targets, BATCH) for d in range(DEVICES)}
        start = time.perf_counter()
        server.step(step, batches)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def main() -> None:
    """Print wall time over computing of every round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--codec", default="identity")
    options = parser.parse_args()
    torch.set_num_threads(1)
    own_s = STEPS * server_s()
    with tempfile.TemporaryDirectory() as folder, flower_in(Path(folder)) as flower:
        path, output = Path(folder) / "overhead.toml", Path(folder) / "out"
        path.write_text(
            SCENARIO.format(
                rounds=options.rounds,
                steps=STEPS,
                batch=BATCH,
                cut=CUT,
                codec=options.codec,
                devices=DEVICES,
            )
        )
        words = ("run", str(path), "--output", str(output), "--cpus", str(ACTORS))
        done = subprocess.run(
            [sys.executable, "-m", "simulation", *words],
            cwd=ROOT, env={**os.environ, **flower.environment()},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stdout[-3000:] + done.stderr[-2000:])
        rows = json.loads((output / "rounds.json").read_text())
    print(f"{options.codec}, {STEPS} steps of {BATCH} on {DEVICES} devices")
    print("| round | wall s | devices s | server s | wall over computing |")
    print("|---|---|---|---|---|")
    for row in rows:
        wall_s, devices_s = row["train_s"], row["compute_s"] / ACTORS
        over = wall_s / (devices_s + own_s)
        numbers = f"{wall_s:.1f} | {devices_s:.1f} | {own_s:.1f} | {over:.2f}"
        print(f"| {row['server_round']} | {numbers} |")


if __name__ == "__main__":
    main()
