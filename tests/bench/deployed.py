"""What a deployment costs: the quickstart in one process, over streams, over messages.

Usage: python -m tests.bench.deployed [--repeats 3] [--no-messages]

Deployed is what `examples/deployment` starts: a SuperLink with TLS and two known
SuperNodes on the loopback. Compared are the seconds that a run's rounds take, its
evaluation included, as Flower logs them (``Strategy execution finished``); imports and
the start of processes before the first round are not in them, those of the devices are.
Beside it, on the same SuperLink: a bare Flower app of as many rounds with two messages
each, which do nothing, and one round of few steps over messages.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from flwr_slfac.codec import Float16
from flwr_slfac.split import train_locally
from tests.bench.rounds_to_95 import NODES, ROUNDS, accuracy_of, quickstart

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES / "deployment"))
from run import NAME, Deployment  # noqa: E402 - where the script is

_FINISHED = re.compile(r"Strategy execution finished in ([0-9.]+)s")
_SEED = 1  # as in examples/quickstart/pyproject.toml
BARE_APP = '''
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
import numpy as np
from flwr.app import Array

client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Send back what came."""
    content = RecordDict({
        "arrays": message.content["arrays"],
        "metrics": MetricRecord({"num-examples": 1}),
    })
    return Message(content=content, reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Do nothing."""
    content = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run rounds that do nothing."""
    arrays = ArrayRecord({"w": Array(np.zeros(1))})
    FedAvg().start(grid, arrays, num_rounds=context.run_config["num-rounds"])
'''
BARE_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "bare"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["bare"]

[tool.flwr.app]
publisher = "flwr-slfac"

[tool.flwr.app.components]
serverapp = "bare.app:server"
clientapp = "bare.app:client"

[tool.flwr.app.config]
num-rounds = 8
"""


def in_process() -> float:
    """Return the seconds of the run in one process."""
    devices, halves, server = quickstart(_SEED)
    start = time.perf_counter()
    result = train_locally(
        *(devices, halves.front.state_dict(), server),
        num_rounds=ROUNDS,
        seed=_SEED,
        up=Float16(),
        down=Float16(),
    )
    found = accuracy_of(halves, result.front, _SEED)
    seconds = time.perf_counter() - start
    print(f"in process: {seconds:.2f} s, accuracy {found:.4f}", flush=True)
    return seconds


def seconds_of(deployment: Deployment, app: Path, config: str) -> float:
    """Return the seconds of a run on a deployment."""
    words = ("run", str(app), NAME, "--stream", "--run-config", config)
    said = deployment.flwr(*words).stdout
    found = _FINISHED.search(said)
    if found is None:
        raise SystemExit(f"the run did not finish:\n{said[-3000:]}")
    return float(found[1])


def over_messages(folder: Path) -> Path:
    """Return a copy of the quickstart that takes messages."""
    app = folder / "quickstart"
    shutil.copytree(EXAMPLES / "quickstart", app)
    server = app / "quickstart" / "server_app.py"
    text = server.read_text()
    changed = re.sub(r"transport=_transport\(.*\)", 'transport="messages"', text)
    assert changed != text
    server.write_text(changed)
    return app


def per_step(folder: Path) -> float:
    """Return the seconds of a step, from the files that a run wrote."""
    rounds = json.loads((folder / "rounds.json").read_text())
    return statistics.median(r["train_s"] / r["num_steps"] for r in rounds)


def main() -> None:
    """Print the seconds of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-messages", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="deployed-"))
    bare = folder / "bare-app"
    (bare / "bare").mkdir(parents=True)
    (bare / "pyproject.toml").write_text(BARE_PROJECT)
    (bare / "bare" / "__init__.py").write_text("")
    (bare / "bare" / "app.py").write_text(BARE_APP)
    (folder / "deployment").mkdir()
    deployment = Deployment(folder / "deployment", NODES)
    local, streams, flowers, steps = [], [], [], []
    try:
        deployment.start()
        for repeat in range(options.repeats):
            local.append(in_process())
            out = folder / f"out{repeat}"
            app = EXAMPLES / "quickstart"
            streams.append(seconds_of(deployment, app, f'output-folder="{out}"'))
            steps.append(per_step(out))
            flowers.append(seconds_of(deployment, bare, f"num-rounds={ROUNDS}"))
            print(f"streams: {streams[-1]:.2f} s, a step {1e3 * steps[-1]:.1f} ms")
            print(f"bare Flower, two messages a round: {flowers[-1]:.2f} s", flush=True)
        allowed = [1.5 * a + b for a, b in zip(local, flowers, strict=True)]
        ratios = [s / a for s, a in zip(streams, allowed, strict=True)]
        print(f"of what is allowed: {', '.join(f'{r:.2f}' for r in ratios)}")
        if not options.no_messages:
            out = folder / "out-messages"
            config = f'num-rounds=1 epochs=1 batch-size=300 output-folder="{out}"'
            seconds_of(deployment, over_messages(folder), config)
            slow = per_step(out)
            ratio = slow / statistics.median(steps)
            print(f"messages: a step {slow:.1f} s, {ratio:.0f} x a step over streams")
    finally:
        deployment.stop()


if __name__ == "__main__":
    main()
